"""Which pages of other origins may ask, for browsers to enforce."""

from collections.abc import Sequence

from flask import Flask
from flask_cors import CORS

from app.api.access import KEY_HEADER
from app.api.suggest import DEADLINE_HEADER
from app.api.trace_context import RESPONSE_HEADER

_PREFLIGHT_S = 600


def allow_origins(app: Flask, origins: Sequence[str]) -> None:
    """Lets pages of these origins send keys and read answers; without any, nothing is registered at all."""
    if not origins:
        return
    CORS(
        app,
        origins=list(origins),
        methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "If-None-Match",
            KEY_HEADER,
            DEADLINE_HEADER,
            "X-Request-Id",
            "traceparent",
            "tracestate",
        ],
        expose_headers=["ETag", "Location", "Retry-After", "Server-Timing", "X-Request-Id", RESPONSE_HEADER],
        max_age=_PREFLIGHT_S,
        always_send=False,
    )
