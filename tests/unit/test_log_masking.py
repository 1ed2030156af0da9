"""No API key stands in a log line, whoever wrote it there; and a line that cannot be written costs no answer."""

import json
import logging

import pytest
from flask import Flask

from app.api.logs import KeyMaskingFormatter, log_requests

KEY = "pp_0123456789ab_" + "s" * 43


@pytest.mark.parametrize(
    "message",
    ["Invalid request from ip=1.2.3.4: GET /?api_key=%s HTTP/9.9", "Authorization Bearer %s", "%s%s"],
)
def test_keys_in_messages_are_masked(message):
    arguments = (KEY,) * message.count("%s")
    record = logging.LogRecord("gunicorn.error", logging.WARNING, "f", 1, message, arguments, None)

    line = KeyMaskingFormatter().format(record)

    assert "sss" not in line and "pp_0123456789ab_..." in json.loads(line)["message"]


def test_keys_in_traces_are_masked():
    try:
        raise ValueError(f"wrong: {KEY}")
    except ValueError as error:
        trace = (type(error), error, error.__traceback__)
    record = logging.LogRecord("app", logging.ERROR, "f", 1, "unexpected error", (), trace)

    assert "sss" not in KeyMaskingFormatter().format(record)


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
    log_requests(app)
    app.add_url_rule("/", "index", lambda: "answer")
    tried = []
    monkeypatch.setattr("sys.stdout", Full(tried))

    assert app.test_client().get("/").text == "answer"
    assert tried
