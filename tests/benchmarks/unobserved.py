"""The service with metrics that count nothing, to see what they cost.

The product has no such switch: nobody should run it blind, and each number would have to ask whether it counts.
"""

from collections.abc import Iterator

from flask import Flask
from prometheus_client import Counter, Gauge, Histogram

from app.api.http_metrics import HttpMetrics

METHODS = ("inc", "dec", "set", "observe")


def web() -> Flask:
    from app.bootstrap.web import web as observed

    app = observed()
    for kind in (Counter, Gauge, Histogram):
        _silence(kind)
    for hooks in (app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs):
        hooks[None] = [hook for hook in hooks.get(None, ()) if not _is_for_metrics(hook)]
    return app


def _silence(kind: type) -> None:
    for one in (kind, *_subclasses(kind)):
        for name in METHODS:
            if name in vars(one):
                setattr(one, name, lambda *_, **__: None)


def _subclasses(kind: type) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)


def _is_for_metrics(hook) -> bool:
    return hook.__module__ == HttpMetrics.__module__
