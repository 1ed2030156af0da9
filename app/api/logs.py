"""Logs: one JSON object a line on stdout, in the Elastic Common Schema."""

import logging
import sys
import time
import uuid

import ecs_logging
from flask import Flask, Response, g, request

access_log = logging.getLogger("app.access")
MAX_REQUEST_ID = 100


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(ecs_logging.StdlibFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Chatty at INFO, and about their own inner life only.
    for name in ("feast", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def log_requests(app: Flask) -> None:
    """Gives every request an id (the caller's `X-Request-Id`, if it is a sane one) and logs its outcome."""

    @app.before_request
    def begin() -> None:
        given = request.headers.get("X-Request-Id", "")
        is_sane = 0 < len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable()
        g.request_id = given if is_sane else str(uuid.uuid4())
        g.started = time.perf_counter()

    @app.after_request
    def end(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        access_log.info(
            "%s %s %d",
            request.method,
            request.path,
            response.status_code,
            extra={
                "http.request.id": g.request_id,
                "http.request.method": request.method,
                "http.route": request.url_rule.rule if request.url_rule else None,
                "http.response.status_code": response.status_code,
                "event.duration": int((time.perf_counter() - g.started) * 1e9),
            },
        )
        return response
