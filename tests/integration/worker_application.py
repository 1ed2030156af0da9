"""A small application under the service's own gunicorn worker."""

import os
import time
from pathlib import Path

from flask import Flask, request

from app.api import connection_shares, gunicorn_worker
from app.api.gunicorn_worker import Departure
from app.api.problems import register_error_handlers

gunicorn_worker.BODY_TIMEOUT_S = 0.3
connection_shares.PATIENCE_S = 3_600.0

if "HOLD_UP" in os.environ:  # a folder: it starts no sooner than it is let
    held_up = Path(os.environ["HOLD_UP"])
    (held_up / "starting").touch()
    while not (held_up / "go").exists():
        time.sleep(0.01)

application = Flask(__name__)
application.config["MAX_CONTENT_LENGTH"] = 1_000
register_error_handlers(application, 1)


@application.post("/read")
def read() -> str:
    return str(len(request.get_data()))


@application.get("/ready")
def ready() -> tuple[str, int]:
    return ("leaving", 503) if Departure.is_near else ("ready", 200)


@application.get("/pid")
def pid() -> str:
    return str(os.getpid())


begun: list[float] = []


@application.get("/slow/<float:seconds>")
def slow(seconds: float) -> str:
    begun.append(seconds)
    time.sleep(seconds)
    return "done"


@application.get("/begun")
def has_begun() -> tuple[str, int]:
    return "", 200 if begun else 404


@application.post("/refuse")
def refuse() -> tuple[str, int]:
    return "without a look at the body", 401
