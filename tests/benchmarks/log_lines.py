"""`python -m tests.benchmarks.log_lines`: what the line of a request costs.

The same small application answers in turn without and with a log, whose stdout goes nowhere. The difference is what logging
takes of a request: its id, the header with that, and a line with trace, decision and stages.
"""

import logging
import os
import statistics
import sys
import time
from contextlib import redirect_stdout
from datetime import UTC, datetime
from io import BytesIO

from flask import Flask, Response, g

from app.api.request_log import log_requests
from app.domain.budget import TimeBudget
from app.domain.types import DegradationLevel, Slate, Strategy
from app.settings import Settings

REQUESTS, ROUNDS = 4_000, 15
STAGES = ("cache", "features", "candidates", "score")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def application(is_logged: bool) -> Flask:
    app = Flask("benchmark")
    if is_logged:
        log_requests(app, Settings(_env_file=None))
    # Flask goes another way for applications without any.
    app.before_request(lambda: None)
    app.after_request(lambda response: response)
    app.add_url_rule("/suggest", "suggest", answer, methods=["POST"])
    return app


def answer() -> Response:
    budget = TimeBudget(1.0)
    for stage in STAGES:
        budget.finish(stage)
    g.decision_id, g.budget = "c3d8d0ce-1bd5-4f0e-8f0b-3d0c1f6f2f11", budget
    now = datetime.now(UTC)
    g.slate = Slate(g.decision_id, now, (), Strategy.MODEL, "20260101T000000", DegradationLevel.FULL, {}, 10)
    return Response(b"{}", mimetype="application/json")


def cost_us(app: Flask) -> float:
    """Of processor time, per request."""
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/suggest",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "HTTP_TRACEPARENT": TRACEPARENT,
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
    }
    began_s = time.process_time()
    for _ in range(REQUESTS):
        b"".join(app(environ | {"wsgi.input": BytesIO(b"{}")}, lambda status, headers, error=None: None))
    return (time.process_time() - began_s) / REQUESTS * 1e6


def main() -> None:
    logging.getLogger().setLevel(logging.INFO)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        without, logged = application(False), application(True)
        # The first round warms up.
        rounds = [(cost_us(without), cost_us(logged)) for _ in range(ROUNDS + 1)][1:]
    differences = [both - alone for alone, both in rounds]
    alone_us = statistics.median(alone for alone, _ in rounds)
    print(
        f"{statistics.median(differences):.1f} us a request ({min(differences):.1f} to {max(differences):.1f}), "
        f"beside {alone_us:.1f} us for a request without a log"
    )


if __name__ == "__main__":
    main()
