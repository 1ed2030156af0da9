"""Logs: one JSON object a line on stdout, in the Elastic Common Schema."""

import logging
import os
import sys
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime

import ecs_logging
import orjson
from flask import Flask, Response, g, request

from app.domain.access import has_key, mask_keys

ECS_VERSION = "1.6.0"
MAX_REQUEST_ID = 100


class KeyMaskingFormatter(ecs_logging.StdlibFormatter):
    """Lines in the Elastic Common Schema, in which no API key stands, whoever wrote it into a message."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_keys(super().format(record))


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(KeyMaskingFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Chatty at INFO, and about their own inner life only.
    for name in ("feast", "alembic", "urllib3", "flask-limiter"):
        logging.getLogger(name).setLevel(logging.WARNING)


def log_requests(app: Flask) -> None:
    """Gives every request an id (the caller's `X-Request-Id`, if it is a sane one) and logs its outcome.

    The lines are written without the logging library, which took a tenth of the time of a request.
    """
    is_logged = logging.getLogger("app.access").isEnabledFor(logging.INFO)
    process = {"pid": os.getpid()}

    @app.before_request
    def begin() -> None:
        given = request.headers.get("X-Request-Id", "")
        is_sane = 0 < len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable()
        is_sane = is_sane and not has_key(given)
        g.request_id = given if is_sane else str(uuid.uuid4())
        g.started = time.perf_counter()

    @app.after_request
    def end(response: Response) -> Response:
        request_id, method, status = g.request_id, request.method, response.status_code
        route = request.url_rule.rule if request.url_rule else None
        response.headers["X-Request-Id"] = request_id
        if is_logged:
            line = {
                "@timestamp": datetime.now(UTC),
                "log.level": "info",
                # Not the path: it may hold the id of a person, and logs outlive whom we forget.
                "message": f"{method} {route} {status}" if route else f"{method} {status}",
                "ecs.version": ECS_VERSION,
                "log": {"logger": "app.access"},
                "process": process,
                "http": {
                    "request": {"id": request_id, "method": method},
                    "response": {"status_code": status},
                    "route": route,
                },
                "event": {"duration": int((time.perf_counter() - g.started) * 1e9)},
            }
            if api_key := g.get("api_key"):
                line["labels"] = {"key_id": api_key.key_id}
            # On a full disk, or when whoever collects is gone, the line is lost, not the answer.
            with suppress(OSError, ValueError):
                sys.stdout.write(orjson.dumps(line, option=_LINE).decode())
                sys.stdout.flush()
        return response


_LINE = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
