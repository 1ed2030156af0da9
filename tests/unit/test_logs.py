"""Lines about requests: what was asked, what came of it, and nothing about whom; all that is logged meanwhile belongs to it."""

import json
import logging
import random
import runpy
from datetime import UTC
from pkgutil import resolve_name

import pytest
from flask import g
from flask_openapi import OpenAPI
from gunicorn.config import Config
from gunicorn.util import load_class

from app.api.problems import register_error_handlers
from app.api.request_log import RatedLines, RequestFormatter, log_requests
from app.api.suggest import suggest_routes
from app.domain.budget import TimeBudget
from app.domain.errors import StoreUnavailable
from app.domain.tracing import set_current_span
from app.domain.types import DegradationLevel, Slate, Strategy
from app.settings import Settings

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
KEY = "0123456789abcdef"
log = logging.getLogger("app.test")


@pytest.fixture
def make_client(caplog, capsys):
    """A client of a small service; what it logs is in `lines(capsys)`."""
    caplog.set_level(logging.INFO)
    # What pytest makes of lines is no concern here.
    handler = logging.StreamHandler(_Stdout())
    handler.setFormatter(RequestFormatter("web"))
    logging.getLogger("app").addHandler(handler)

    def make(chance=random.Random(7).random, **settings):
        app = OpenAPI("test")
        app.config["MAX_CONTENT_LENGTH"] = 1_000
        log_requests(app, Settings(_env_file=None, **settings), chance)
        register_error_handlers(app, retry_after_s=5)
        app.add_url_rule(
            "/users/<user_id>", view_func=lambda user_id: {}, endpoint="forget", methods=["DELETE"]
        )
        app.add_url_rule("/down", view_func=down)
        app.add_url_rule("/bug", view_func=bug)
        app.register_api(suggest_routes(answer, ("page",), UTC, 100, 80))
        return app.test_client()

    yield make
    logging.getLogger("app").removeHandler(handler)


class _Stdout:
    """The stdout of now: pytest replaces it."""

    def write(self, text):
        print(text, end="")

    def flush(self):
        pass


def down():
    raise StoreUnavailable("PostgreSQL did not answer")


def bug():
    log.warning("about to fail")
    return 1 / 0


def answer(request, request_id, now, budget: TimeBudget) -> Slate:
    log.warning("ranking")
    budget.finish("features")
    level = DegradationLevel(request.limit % 4)
    return Slate(request_id, now, (), Strategy.RULES, "v1", level, {}, 0)


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_names_the_route_and_not_whom_it_was_about(make_client, capsys):
    make_client().delete("/users/alice@example.org?and=alice")

    (line,) = lines(capsys)
    assert line["message"] == "DELETE /users/<user_id> 200"
    assert line["http"]["route"] == "/users/<user_id>"
    assert line["event"]["outcome"] == "success"
    assert line["service"]["node"]["roles"] == ["web"]
    assert "alice" not in json.dumps(line)


@pytest.mark.parametrize(("method", "status"), [("DELETE", 404), ("GET", 405)])
def test_a_request_that_no_route_takes_leaves_method_and_status_only(make_client, capsys, method, status):
    path = "/user/alice@example.org" if status == 404 else "/users/alice@example.org"

    make_client().open(path, method=method)

    (line,) = lines(capsys)
    assert line["message"] == f"{method} {status}"
    assert "alice" not in json.dumps(line)


def test_all_lines_of_a_request_have_its_id_and_its_trace(make_client, capsys):
    make_client().get("/bug", headers={"X-Request-Id": 'r"1', "traceparent": TRACEPARENT})

    warning, failure, outcome = lines(capsys)
    for line in (warning, failure, outcome):
        assert line["http"]["request"] == {"id": 'r"1', "method": "GET"}
        assert line["http"]["route"] == "/bug"
        assert line["trace"] == {"id": TRACE_ID}
    assert (warning["message"], warning["log.level"]) == ("about to fail", "warning")
    assert failure["error"]["type"] == "ZeroDivisionError"
    assert (outcome["log.level"], outcome["event"]["outcome"]) == ("error", "failure")
    assert outcome["event"]["reason"] == "bug"


def test_lines_of_a_request_that_is_recorded_have_its_span(make_client, capsys):
    class Recorded:
        trace_id = TRACE_ID

        def headers(self):
            return {"traceparent": TRACEPARENT}

    client = make_client()
    client.application.before_request_funcs[None].insert(0, lambda: set_current_span(Recorded()))
    client.get("/bug")
    set_current_span(None)

    told = lines(capsys)
    assert [(line["trace"]["id"], line["span"]["id"]) for line in told] == [
        (TRACE_ID, "00f067aa0ba902b7")
    ] * 3


@pytest.mark.parametrize(
    "header", ["", "00-xyz", TRACEPARENT.replace("00-", "ff-", 1), TRACEPARENT.replace(TRACE_ID, "0" * 32)]
)
def test_a_wrong_traceparent_is_no_trace(make_client, capsys, header):
    make_client().get("/down", headers={"traceparent": header})

    assert not [line for line in lines(capsys) if "trace" in line]


def test_all_lines_of_a_suggestion_have_the_id_of_its_decision(make_client, capsys):
    decision_id = make_client().post("/suggest", json={"user_id": "alice", "limit": 6}).json["request_id"]

    warning, outcome = lines(capsys)
    assert warning["propositions"] == {"decision": {"id": decision_id}}
    assert outcome["propositions"]["decision"] == {"id": decision_id}
    assert outcome["propositions"]["slate"] == {
        "strategy": "rules",
        "level": 2,
        "cached": False,
        "model_version": "v1",
    }
    assert outcome["propositions"]["stage_ns"]["features"] > 0


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("none", None), ("plain", {"id": "alice"}), ("hashed", {"hash": "07428b8bbeecf38c233900e698b96466"})],
)
def test_whom_a_request_was_about_is_told_as_the_settings_say(make_client, capsys, mode, expected):
    client = make_client(log_user_ids=mode, log_user_id_key=KEY)

    client.post("/suggest", json={"user_id": "alice"})
    client.delete("/users/alice")

    told = lines(capsys)
    assert [line.get("user") for line in told] == [expected] * 3
    assert ("alice" in json.dumps(told)) == (mode == "plain")


def test_of_healthy_requests_a_share_is_logged_and_says_for_how_many_it_stands(make_client, capsys):
    client = make_client(log_success_share=0.1)

    for _ in range(1_000):
        client.delete("/users/u")

    counts = [line["transaction"]["representative_count"] for line in lines(capsys)]
    assert set(counts) == {10}
    assert sum(counts) == pytest.approx(1_000, rel=0.3)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_not_healthy_is_logged_whatever_the_share(make_client, capsys, share):
    client = make_client(chance=lambda: 0.999, log_success_share=share)

    client.get("/down")
    client.get("/nowhere")
    client.post("/suggest", json={"limit": 5})
    client.post("/suggest", json={"limit": 4})

    told = [line["message"] for line in lines(capsys) if line["log"]["logger"] == "app.access"]
    assert told == ["GET /down 503", "GET 404", "POST /suggest 200"]


def test_slow_answers_are_logged_whatever_the_share(make_client, capsys):
    client = make_client(log_success_share=0.0, suggest_deadline_ms=1)
    client.application.before_request(lambda: setattr(g, "started", g.started - 0.002))

    client.delete("/users/u")

    (line,) = lines(capsys)
    assert line["event"]["duration"] > 2_000_000


def test_an_outage_fills_no_disk_and_every_request_of_it_is_counted():
    written = []
    rated = RatedLines(3, written.append)

    for second, count in enumerate((2, 10, 0, 3)):
        rated.at(second)
        for number in range(count):
            rated.add(("/suggest", 503, 0), f'{{"second":{second},"number":{number}')
            rated.add(("/log_event", 503, 0), '{"other":1')
    rated.flush()

    told = [json.loads(line) for line in written]
    counts = [
        (line["second"], line["transaction"]["representative_count"]) for line in told if "second" in line
    ]
    assert counts == [(0, 1)] * 2 + [(1, 1)] * 3 + [(1, 7)] + [(3, 1)] * 3
    assert sum(line["transaction"]["representative_count"] for line in told) == 2 * 15


def test_what_a_worker_logs_before_its_application_is_there_has_the_form_of_the_rest(monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    formatter = runpy.run_module("app.api.gunicorn_conf")["logconfig_dict"]["formatters"]["lines"]

    assert resolve_name(formatter["()"]) is RequestFormatter and formatter["role"] == "web"


def test_gunicorn_puts_no_line_of_a_request_together(monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # which the configuration sets for its process
    configuration = runpy.run_module("app.api.gunicorn_conf")
    log = load_class(configuration["logger_class"])(Config())

    log.access(resp=None, req=None, environ=None, request_time=None)  # it looks at none of them
