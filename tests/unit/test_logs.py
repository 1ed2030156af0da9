"""Access logs: what was asked and what came of it, and nothing about whom."""

import json
import logging

import pytest
from flask import Flask

from app.api.logs import log_requests


@pytest.fixture
def client(caplog):
    caplog.set_level(logging.INFO, "app.access")
    app = Flask("test")
    log_requests(app)
    app.add_url_rule("/users/<user_id>", view_func=lambda user_id: {}, endpoint="forget", methods=["DELETE"])
    return app.test_client()


def line_of(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_a_line_names_the_route_and_not_whom_it_was_about(client, capsys):
    client.delete("/users/alice@example.org?and=alice")

    line = line_of(capsys)
    assert line["message"] == "DELETE /users/<user_id> 200"
    assert line["http"]["route"] == "/users/<user_id>"
    assert "alice" not in json.dumps(line)


@pytest.mark.parametrize(("method", "status"), [("DELETE", 404), ("GET", 405)])
def test_a_request_that_no_route_takes_leaves_method_and_status_only(client, capsys, method, status):
    path = "/user/alice@example.org" if status == 404 else "/users/alice@example.org"

    client.open(path, method=method)

    line = line_of(capsys)
    assert line["message"] == f"{method} {status}"
    assert "alice" not in json.dumps(line)
