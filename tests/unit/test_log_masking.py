"""No API key, row, path or address stands in a log line, whoever wrote it there; and a line that cannot be written costs no answer."""

import json
import logging
import subprocess
import sys

import pytest
from flask import Flask

from app.api.logs import EcsFormatter, GunicornPrivacy
from app.api.request_log import log_requests
from app.settings import Settings

KEY = "pp_0123456789ab_" + "s" * 43


def record_of(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    trace = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("gunicorn.error", logging.WARNING, "f", 1, message, arguments, trace)


@pytest.mark.parametrize(
    "message",
    ["Invalid request from ip=1.2.3.4: GET /?api_key=%s HTTP/9.9", "Authorization Bearer %s", "%s%s"],
)
def test_keys_in_messages_are_masked(message):
    line = EcsFormatter().format(record_of(message, *(KEY,) * message.count("%s")))

    assert "sss" not in line and "pp_0123456789ab_..." in json.loads(line)["message"]


def test_keys_in_traces_are_masked():
    line = EcsFormatter().format(record_of("unexpected error", error=ValueError(f"wrong: {KEY}")))

    assert "sss" not in line


def test_rows_that_postgres_quotes_are_masked():
    refusal = 'null value in column "x"\nDETAIL:  Failing row contains (e-1, alice).\nCONTEXT:  COPY events: "alice"'

    line = EcsFormatter().format(record_of("not stored: %s", refusal, error=ValueError(refusal)))

    assert "alice" not in line
    assert json.loads(line)["error"]["message"] == 'null value in column "x"\nDETAIL: ...\nCONTEXT: ...'


@pytest.mark.parametrize(
    ("message", "arguments", "left"),
    [
        ("Invalid request from ip=1.2.3.4: GET /users/alice", (), "invalid request: ValueError"),
        ("Error handling request %s %s", ("GET", "/users/alice"), "a request could not be handled"),
        ("Booting worker with pid: %s", (7,), "Booting worker with pid: 7"),
    ],
)
def test_lines_of_gunicorn_tell_neither_addresses_nor_paths(message, arguments, left):
    record = record_of(message, *arguments)
    try:
        raise ValueError
    except ValueError:
        assert GunicornPrivacy().filter(record)

    assert record.getMessage() == left


@pytest.mark.parametrize(
    "program", ["1 / 0", "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()"]
)
def test_what_ends_a_process_or_a_thread_is_one_line_of_json(program):
    begin = "from app.api.logs import configure_logging; configure_logging('INFO', 'projector');"

    done = subprocess.run([sys.executable, "-c", f"{begin}{program}"], capture_output=True, text=True)

    line = json.loads(done.stdout)
    assert (line["error"]["type"], line["log.level"]) == ("ZeroDivisionError", "critical")
    assert line["service"]["node"]["roles"] == ["projector"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), BrokenPipeError(), ValueError("closed")]
)
def test_a_line_that_cannot_be_written_costs_no_answer(monkeypatch, error):
    class Full:
        def __init__(self, tried):
            self._tried = tried

        def write(self, text):
            self._tried.append(text)
            raise error

        def flush(self):
            raise error

    monkeypatch.setattr(logging.getLogger("app.access"), "level", logging.INFO)
    logging.getLogger("app.access").manager._clear_cache()
    app = Flask("test")
    log_requests(app, Settings(_env_file=None))
    app.add_url_rule("/", "index", lambda: "answer")
    tried = []
    monkeypatch.setattr("sys.stdout", Full(tried))

    assert app.test_client().get("/").text == "answer"
    assert tried
