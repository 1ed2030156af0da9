"""Logs: one JSON object a line on stdout, in the Elastic Common Schema."""

import atexit
import logging
import logging.config
import re
import socket
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any, TextIO

import ecs_logging

from app.domain.access import mask_keys

ECS_VERSION = "8.11.0"
SERVICE = "propositions"
DISTRIBUTION = "predictive-propositions"
# What PostgreSQL adds to an error: the row that it is about, with whatever stands in it.
_ROWS = re.compile(r"^(DETAIL|CONTEXT):.*", re.MULTILINE)


class EcsFormatter(ecs_logging.StdlibFormatter):
    """Lines with what tells the process that they belong to, and with no API key or row of a table.

    `role` is the kind of process: web, keeper, projector or command.
    """

    def __init__(self, role: str = "command") -> None:
        # The text as it was logged stands in the message.
        super().__init__(exclude_fields=("log.original",), ensure_ascii=True)
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        return mask_keys(super().format(record))

    def format_to_ecs(self, record: logging.LogRecord) -> dict[str, Any]:
        line = super().format_to_ecs(record)
        line["ecs.version"] = ECS_VERSION
        line["service"] = service_fields(self._role)
        line["message"] = _ROWS.sub(r"\1: ...", line["message"])
        if "message" in line.get("error", {}):
            line["error"]["message"] = _ROWS.sub(r"\1: ...", line["error"]["message"])
        return line


class GunicornPrivacy(logging.Filter):
    """Takes addresses of clients and paths of requests, which may hold ids of persons, out of gunicorn's own lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        if text.startswith("Invalid request from ip="):
            error = sys.exc_info()[0]
            record.msg, record.args = "invalid request: %s", (error.__name__ if error else "unknown",)
        elif text.startswith("Error handling request "):
            record.msg, record.args = "a request could not be handled", ()
        return True


@cache
def service_fields(role: str) -> dict[str, Any]:
    return {
        "name": SERVICE,
        "version": version(DISTRIBUTION),
        "node": {"name": socket.gethostname(), "roles": [role]},
    }


def configure_logging(
    level: str,
    role: str = "command",
    stream: TextIO | None = None,
    make_formatter: Callable[[str], logging.Formatter] = EcsFormatter,
) -> None:
    """Has everything that this process logs written to `stream` (stdout), also what ends a thread or the process."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(make_formatter(role))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Chatty at INFO, and about their own inner life only.
    for name in ("feast", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    atexit.register(_forget_handlers)  # the first that is registered is the last that is run
    sys.excepthook = log_the_end
    threading.excepthook = lambda ended: log_the_end(ended.exc_type, ended.exc_value, ended.exc_traceback)


def _forget_handlers() -> None:
    """Handlers that are freed after gevent's modules cannot take their lock, and say so in lines that are no JSON."""
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})


def log_the_end(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    """Instead of a trace on stderr, of many lines that are no JSON."""
    if issubclass(kind, (SystemExit, KeyboardInterrupt)):
        return
    logging.getLogger(__name__).critical("ended by an error", exc_info=(kind, error, trace))
