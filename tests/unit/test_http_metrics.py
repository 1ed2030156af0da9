"""What is counted of requests, and the traces that lead on from there."""

import pytest
from flask import Flask
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from app.api.trace_context import current_trace_id, recorded_trace_id

OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
TRACE, SPAN = "ab" * 16, "12" * 8


@pytest.fixture
def client(app):
    return app(development_mode=True).test_client()


def samples(client) -> dict[tuple, float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(client.get("/metrics").text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda c: c.post("/suggest", json={"limit": 0}), ("/suggest", "422", "validation_error")),
        (lambda c: c.post("/suggest", data="{"), ("/suggest", "415", "unsupported_media_type")),
        (lambda c: c.get("/nowhere/u-1"), ("none", "404", "not_found")),
        (lambda c: c.get("/suggest"), ("none", "405", "method_not_allowed")),
        (lambda c: c.get("/propositions/p-1"), ("/propositions/<id:proposition_id>", "404", "not_found")),
    ],
)
def test_errors_are_counted_by_route_and_reason(client, ask, expected):
    ask(client)

    errors = {n: v for n, v in samples(client).items() if n[0] == "propositions_request_errors_total"}
    route, status, reason = expected
    assert errors == {("propositions_request_errors_total", reason, route, status): 1.0}


def test_a_refused_caller_is_counted_with_the_time_it_took(app):
    app().test_client().post("/suggest", json={})

    seen = samples(app(development_mode=True).test_client())
    assert seen["flask_http_request_duration_seconds_count", "POST", "401", "/suggest"] == 1
    assert seen["propositions_request_errors_total", "unauthorized", "/suggest", "401"] == 1


def test_a_bug_is_counted_as_one(client):
    @client.application.get("/broken")
    def broken():
        raise KeyError("u-1")

    client.get("/broken")

    seen = samples(client)
    assert seen["propositions_request_errors_total", "bug", "/broken", "500"] == 1
    assert seen["flask_http_request_exceptions_total", "GET", "500"] == 1
    assert seen["flask_http_request_total", "GET", "500"] == 1


def test_that_users_met_no_error_yet_is_known_from_the_start(client):
    seen = samples(client)

    assert seen["flask_http_request_duration_seconds_count", "POST", "503", "/suggest"] == 0
    assert seen["flask_http_request_total", "POST", "500"] == 0


def test_who_reads_metrics_is_not_counted(client):
    before = samples(client)

    assert samples(client) == before


def test_the_last_request_of_a_bucket_that_has_a_recorded_trace_is_its_exemplar(client):
    client.post("/suggest", json={}, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    client.post("/suggest", json={}, headers={"traceparent": f"00-{'cd' * 16}-{SPAN}-00"})

    exemplars = [
        (sample.name, sample.labels["url_rule"], sample.exemplar.labels)
        for family in parse_openmetrics(client.get("/metrics", headers=OPENMETRICS).text)
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert exemplars == [
        ("flask_http_request_duration_seconds_bucket", "/suggest", {"trace_id": TRACE}),
    ]
    assert "trace_id" not in client.get("/metrics").text


def test_metrics_can_be_asked_for_by_name(client):
    seen = client.get("/metrics?name[]=flask_exporter_info").text

    assert [line for line in seen.splitlines() if line[0] != "#"] == [
        'flask_exporter_info{version="0.23.2"} 1.0'
    ]


@pytest.mark.parametrize(
    ("header", "current", "recorded"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE, TRACE),
        (f"00-{TRACE}-{SPAN}-00", TRACE, None),
        (f"cc-{TRACE}-{SPAN}-03-what-comes-later", TRACE, TRACE),
        (f"ff-{TRACE}-{SPAN}-01", None, None),
        (f"00-{'0' * 32}-{SPAN}-01", None, None),
        (f"00-{TRACE}-{'0' * 16}-01", None, None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None, None),
        (f"00-{TRACE}-{SPAN}-01\n", None, None),
        ("", None, None),
    ],
)
def test_a_trace_is_that_of_a_valid_header(header, current, recorded):
    with Flask(__name__).test_request_context(environ_overrides={"HTTP_TRACEPARENT": header}):
        assert (current_trace_id(), recorded_trace_id()) == (current, recorded)
    assert current_trace_id() is None
