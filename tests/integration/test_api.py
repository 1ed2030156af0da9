"""The HTTP interface over real stores, in process."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from openapi_spec_validator import validate

from app.adapters.model_store import ModelStore
from app.api.factory import create_app
from app.bootstrap.keeper import take_snapshot
from app.bootstrap.projector import build_projector
from app.bootstrap.stores import open_import
from app.bootstrap.web import build_api
from app.domain.errors import EventRefused
from app.settings import load_settings
from tests.builders import count, event, proposition, query


@pytest.fixture
def catalog(settings):
    """Three propositions with some history, one of them no longer active."""
    with open_import(settings) as loader:
        loader.add(proposition("good", category="sport", tags=("new",), value=2.0))
        loader.add(proposition("fair", category="news"))
        loader.add(proposition("gone", category="sport", is_active=False))
        for n in range(20):
            at = datetime.now(UTC) - timedelta(hours=n + 1)
            for name in ("good", "fair", "gone"):
                loader.add(event(f"i{n}{name}", "impression", name, at))
            loader.add(event(f"c{n}", "click", "good", at))
        loader.finish(False)
    build_projector(settings)[0].run()
    take_snapshot(settings)


@pytest.fixture
def client(settings):
    services, _, registry = build_api(settings)
    return create_app(settings, services, registry).test_client()


def post(client, path, body, **kwargs):
    return client.post(path, data=json.dumps(body), content_type="application/json", **kwargs)


def ids(answer):
    return [p["proposition_id"] for p in answer.get_json()["propositions"]]


def test_a_slate_has_titles_ranks_and_tells_how_it_came_about(catalog, client):
    answer = post(client, "/suggest", {"user_id": "u1", "context": {"page": "home"}, "limit": 2})

    body = answer.get_json()
    assert answer.status_code == 200
    assert ids(answer) == ["good", "fair"]
    assert [p["rank"] for p in body["propositions"]] == [1, 2]
    assert body["propositions"][0]["title"] == "GOOD"
    assert body["strategy"] == "rules" and body["degradation_level"] == 2
    assert body["model_version"] is None and body["cached"] is False


@pytest.mark.parametrize("body", [{}, {"user_id": "nobody"}, {"context": {"page": "never seen"}}])
def test_anonymous_unknown_and_context_free_requests_get_a_slate(catalog, client, body):
    assert ids(post(client, "/suggest", body)) == ["good", "fair"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"exclude": ["good"]}, ["fair"]),
        ({"candidates": ["fair", "gone", "unknown"]}, ["fair"]),
        ({"filters": {"categories": ["sport"]}}, ["good"]),
        ({"filters": {"tags": ["new"]}}, ["good"]),
        ({"filters": {"min_value": 1}}, ["good"]),
        ({"limit": 1}, ["good"]),
    ],
)
def test_a_request_narrows_its_slate(catalog, client, body, expected):
    assert ids(post(client, "/suggest", body)) == expected


def test_each_proposition_tells_why_it_was_a_candidate(catalog, client):
    answer = post(client, "/suggest", {"user_id": "u1"}).get_json()

    assert [p["sources"] for p in answer["propositions"]] == [["catalog"], ["catalog"]]


def test_the_answer_tells_where_its_time_went(catalog, client):
    timing = post(client, "/suggest", {"user_id": "u1"}).headers["Server-Timing"]

    stages = dict(stage.split(";dur=") for stage in timing.split(", "))
    assert {"rules", "total"} <= stages.keys()
    assert all(float(milliseconds) >= 0 for milliseconds in stages.values())


@pytest.mark.parametrize("deadline", ["1", "80", "100000"])
def test_a_request_may_lower_its_deadline(catalog, client, deadline):
    answer = post(client, "/suggest", {"user_id": "u1"}, headers={"X-Deadline-Ms": deadline})

    assert answer.status_code == 200 and ids(answer)


@pytest.mark.parametrize("deadline", ["0", "-5", "soon", "1.5", "\u0664", " "])
def test_a_deadline_that_is_none_is_refused_by_name(client, deadline):
    answer = post(client, "/suggest", {"user_id": "u1"}, headers={"X-Deadline-Ms": deadline})

    assert answer.status_code == 422
    assert answer.get_json()["errors"][0]["field"] == "X-Deadline-Ms"


def test_an_empty_database_still_gives_the_default_slate(settings, client):
    answer = post(client, "/suggest", {"user_id": "u1"})

    assert ids(answer) == ["explore"]
    assert answer.get_json()["degradation_level"] == 3


def test_a_decision_is_logged_with_its_slate(settings, catalog):
    services, _, registry = build_api(settings)
    client = create_app(settings, services, registry).test_client()
    answer = post(client, "/suggest", {"user_id": "u1"}).get_json()

    services.flush_decisions()

    (row,) = query(settings, "SELECT request_id, user_id, strategy, degradation_level, slate FROM decisions")
    assert row[:4] == (answer["request_id"], "u1", "rules", 2)
    assert [entry["proposition_id"] for entry in row[4]] == ["good", "fair"]


def test_one_event_is_committed_when_it_is_acknowledged(settings, client):
    answer = post(
        client, "/log_event", {"event_id": "e1", "event_type": "click", "proposition_id": "p", "user_id": "u"}
    )

    assert answer.status_code == 202
    assert answer.get_json() == {
        "events": [{"event_id": "e1", "outcome": "recorded", "stored_in": "postgres", "errors": []}],
        "recorded": ["e1"],
        "duplicates": [],
        "rejected": 0,
    }
    assert query(settings, "SELECT event_id, user_id FROM events") == [("e1", "u")]


def test_a_batch_is_counted_once_however_often_it_is_sent(settings, client):
    batch = {
        "events": [
            {"event_id": f"e{n}", "event_type": "impression", "proposition_id": "p"} for n in range(50)
        ]
    }

    first, second = (post(client, "/log_event", batch).get_json() for _ in range(2))

    assert len(first["recorded"]) == 50 and first["duplicates"] == []
    assert second["recorded"] == [] and len(second["duplicates"]) == 50
    assert count(settings, "events") == 50


def test_an_event_without_an_id_gets_one(settings, client):
    answer = post(client, "/log_event", {"event_type": "click", "proposition_id": "p"}).get_json()

    assert query(settings, "SELECT event_id FROM events") == [(answer["recorded"][0],)]


GOOD = {"event_type": "click", "proposition_id": "p"}
LONG = "x" * 201

BAD_EVENTS = [
    ({**GOOD, "event_type": "stare"}, "event_type"),
    ({**GOOD, "event_type": 5}, "event_type"),
    ({"event_type": "click"}, "proposition_id"),
    ({**GOOD, "proposition_id": ""}, "proposition_id"),
    ({**GOOD, "proposition_id": LONG}, "proposition_id"),
    ({**GOOD, "proposition_id": 7}, "proposition_id"),
    ({**GOOD, "user_id": " "}, "user_id"),
    ({**GOOD, "user_id": "a\x1fb"}, "user_id"),
    ({**GOOD, "user_id": "a\x00b"}, "user_id"),
    ({**GOOD, "event_id": ""}, "event_id"),
    ({**GOOD, "timestamp": "3000-01-01T00:00:00Z"}, "timestamp"),
    ({**GOOD, "timestamp": "yesterday"}, "timestamp"),
    ({**GOOD, "timestamp": "2026-05-15T11:00:00"}, "timestamp"),
    ({**GOOD, "timestamp": 1747300000}, "timestamp"),
    ({**GOOD, "context": {"page": {"deep": 1}}}, "context.page"),
    ({**GOOD, "context": {"page one": "x"}}, "context.page one"),
    ({**GOOD, "context": "home"}, "context"),
    ({**GOOD, "context": {f"f{n}": "x" for n in range(33)}}, "context"),
    ({**GOOD, "position": 0}, "position"),
    ({**GOOD, "position": 2**70}, "position"),
    ({**GOOD, "value": "much"}, "value"),
    ({**GOOD, "colour": "red"}, "colour"),
    ({"events": []}, "events"),
    ({"events": [{**GOOD, "event_type": "stare"}]}, "events.0.event_type"),
    ({"events": [7, {**GOOD, "timestamp": "3000-01-01T00:00:00Z"}]}, "events.1.timestamp"),
    ({"events": [7]}, "events.0"),
    ({"events": [GOOD], "colour": "red"}, "colour"),
    ({"events": [GOOD] * 1_001}, "events"),
    ({"events": "many"}, "events"),
    ([GOOD], "body"),
    ("text", "body"),
    (None, "body"),
]


@pytest.mark.parametrize(("body", "field"), BAD_EVENTS)
def test_a_bad_event_is_refused_by_field_and_nothing_is_stored(settings, client, body, field):
    answer = post(client, "/log_event", body)

    assert answer.status_code == 422
    assert answer.content_type == "application/problem+json"
    assert field in [problem["field"] for problem in answer.get_json()["errors"]]
    assert count(settings, "events") == count(settings, "event_keys") == 0


def test_a_bad_event_of_a_batch_is_rejected_with_its_reason_and_the_others_are_recorded(settings, client):
    bad = [
        b'{"event_id": "typo", "event_type": "stare", "proposition_id": "p"}',
        b'{"event_type": "click", "proposition_id": ""}',
        b'{"event_type": "click", "proposition_id": "p", "context": {"page": "%s"}}' % (b"x" * 2_000_000),
        b'{"event_type": "click", "proposition_id": "p", "value": NaN}',
        b'{"event_type": "click", "proposition_id": "p", "value": -Infinity}',
        b'{"event_type": "click", "proposition_id": "p", "context": '
        + b"[" * 100_000
        + b"]" * 100_000
        + b"}",
        b'{"event_type": "click", "proposition_id": "p", "timestamp": "2026-05-17T09:30:00 Europe/Berlin"}',
        b'{"event_type": "click", "proposition_id": "p", "timestamp": "3000-01-01T00:00:00Z"}',
        b'{"event_type": "click", "proposition_id": "\\ud800"}',
        b'{"event_type": "click", "proposition_id": "\xff"}',
        b"17",
        b"",
    ]
    good = b'{"event_id": "good-%d", "event_type": "click", "proposition_id": "p}],\\""}'
    texts = [text for n, text_ in enumerate(bad) for text in (text_, good % n)]

    answer = client.post(
        "/log_event", data=b'{"events": [%s]}' % b", ".join(texts), content_type="application/json"
    )

    body = answer.get_json()
    assert answer.status_code == 202
    assert [told["outcome"] for told in body["events"]] == ["rejected", "recorded"] * len(bad)
    assert all(told["errors"][0]["reason"] and told["stored_in"] is None for told in body["events"][::2])
    assert [told["errors"][0]["field"] for told in body["events"][::2]] == [
        "events.0.event_type",
        "events.2.proposition_id",
        "events.4.context.page",
        "events.6",
        "events.8",
        "events.10",
        "events.12.timestamp",
        "events.14.timestamp",
        "events.16",
        "events.18",
        "events.20",
        "events.22",
    ]
    assert body["events"][0]["event_id"] == "typo" and body["rejected"] == len(bad)
    assert count(settings, "events") == len(body["recorded"]) == len(bad)


@pytest.mark.parametrize(
    "text",
    [
        "17/05/2026 09:30",
        "2026-05-17",
        "09:30:00Z",
        "Sun, 17 May 2026 09:30:00 GMT",
        "1747474200",
        "-1716000000",
        "1716.5",
        "+1716000000",
        "2026-05-17T09:30:00",
        "20260517T093000Z",
        "2026-W20-7T09:30:00Z",
        "2026-05-17T09:30:00+25:00",
        "2026-13-01T09:30:00Z",
    ],
)
def test_a_time_in_another_format_than_rfc_3339_is_rejected_with_the_reason(settings, client, text):
    batch = {"events": [{**GOOD, "timestamp": text}, GOOD]}

    body = post(client, "/log_event", batch).get_json()

    assert [told["outcome"] for told in body["events"]] == ["rejected", "recorded"]
    assert body["events"][0]["errors"][0]["field"] == "events.0.timestamp"


def test_of_equal_ids_in_a_batch_the_first_is_recorded(settings, client):
    batch = {"events": [{**GOOD, "event_id": "e1"}, {**GOOD, "event_id": "e1"}, {**GOOD, "event_id": "e2"}]}

    body = post(client, "/log_event", batch).get_json()

    assert [told["outcome"] for told in body["events"]] == ["recorded", "duplicate", "recorded"]
    assert (body["recorded"], body["duplicates"]) == (["e1", "e2"], ["e1"])


BAD_SUGGESTS = [
    ({"limit": 0}, "limit"),
    ({"limit": 10_000}, "limit"),
    ({"limit": 101}, "limit"),
    ({"limit": "5"}, "limit"),
    ({"limit": 2.5}, "limit"),
    ({"limit": True}, "limit"),
    ({"user_id": ""}, "user_id"),
    ({"user_id": 5}, "user_id"),
    ({"context": []}, "context"),
    ({"context": {"page": 5}}, "context.page"),
    ({"candidates": []}, "candidates"),
    ({"candidates": [""]}, "candidates.0"),
    ({"exclude": "p1"}, "exclude"),
    ({"filters": {"colour": "red"}}, "filters.colour"),
    ({"filters": {"min_value": "x"}}, "filters.min_value"),
    ({"who": "me"}, "who"),
    ([], "body"),
]


@pytest.mark.parametrize(("body", "field"), BAD_SUGGESTS)
def test_a_bad_suggest_request_is_refused_by_field(client, body, field):
    answer = post(client, "/suggest", body)

    assert answer.status_code == 422
    assert field in [problem["field"] for problem in answer.get_json()["errors"]]


@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [
        (b"{bad", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"event_type": "click", "proposition_id": "p", "value": NaN}', "application/json", 400),
        (b'{"event_type": "\xff"}', "application/json", 400),
        (b'{"event_type": "click", "proposition_id": "\\ud800"}', "application/json", 400),
        (b"[" * 5_000 + b"]" * 5_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', "application/json", 413),
    ],
)
@pytest.mark.parametrize("path", ["/suggest", "/log_event"])
def test_what_is_no_json_of_sane_size_is_refused(settings, client, path, data, content_type, status):
    answer = client.post(path, data=data, content_type=content_type)

    assert answer.status_code == status
    assert answer.content_type == "application/problem+json"
    assert answer.get_json()["status"] == status
    assert answer.get_json()["errors"][0]["field"] == "body"
    assert count(settings, "events") == 0


@pytest.mark.parametrize(("method", "path", "status"), [("get", "/nowhere", 404), ("get", "/suggest", 405)])
def test_wrong_paths_and_methods_are_problem_documents_too(client, method, path, status):
    answer = getattr(client, method)(path)

    assert answer.status_code == status
    assert answer.get_json()["title"]


def test_every_answer_carries_a_request_id_and_a_sane_one_is_kept(client):
    assert client.get("/health/live", headers={"X-Request-Id": "abc"}).headers["X-Request-Id"] == "abc"
    assert len(client.get("/health/live", headers={"X-Request-Id": "x" * 500}).headers["X-Request-Id"]) == 36
    assert post(client, "/suggest", {"limit": 0}).get_json()["request_id"]


def test_when_postgres_is_gone_events_are_kept_in_the_spool(settings, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    services, _, registry = build_api(load_settings())
    client = create_app(settings, services, registry).test_client()

    answer = post(client, "/log_event", GOOD)

    assert answer.status_code == 202
    assert answer.get_json()["events"][0]["stored_in"] == "spool"


def test_when_the_spool_is_full_as_well_events_are_refused_for_now(settings, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("SPOOL_MAX_BYTES", "4096")
    services, _, registry = build_api(load_settings())
    client = create_app(settings, services, registry).test_client()

    answer = post(client, "/log_event", {"events": [GOOD] * 100})

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    assert "send it again" in answer.get_json()["detail"]


def test_an_event_that_no_store_will_ever_take_is_the_callers_problem(settings):
    def refuse(events):
        raise EventRefused("an event is larger than Kafka takes")

    services, _, registry = build_api(settings)
    client = create_app(settings, replace(services, record_events=refuse), registry).test_client()

    answer = post(client, "/log_event", GOOD)

    assert answer.status_code == 422
    assert answer.get_json()["errors"] == [{"field": "body", "reason": "an event is larger than Kafka takes"}]


def test_health_names_every_dependency(catalog, client):
    body = client.get("/health").get_json()

    assert set(body["dependencies"]) == {"postgres", "redis", "events", "model", "snapshot"}
    assert {name for name, told in body["dependencies"].items() if told["breaker"]} == {
        "postgres",
        "redis",
        "events",
        "model",
    }
    assert body["dependencies"]["postgres"]["status"] == "up"
    assert body["dependencies"]["model"]["status"] == "down"
    assert body["status"] == "degraded"


def test_a_worker_that_can_only_serve_the_default_is_ready_and_says_what_it_lacks(settings, client):
    answer = client.get("/health/ready")

    assert answer.status_code == 200
    assert answer.get_json()["dependencies"]["snapshot"]["status"] == "down"


def test_the_openapi_document_is_valid_and_names_every_route(client):
    document = client.get("/openapi.json").get_json()

    validate(document)
    assert document["openapi"].startswith("3.1")
    body = document["paths"]["/log_event"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/LogEventIn"}
    assert document["components"]["schemas"]["EventIn"]["additionalProperties"] is False
    assert set(document["paths"]) >= {"/suggest", "/log_event", "/health", "/health/live", "/health/ready"}
    limit = document["components"]["schemas"]["SuggestIn"]["properties"]["limit"]
    assert limit["minimum"] == 1


def test_the_documentation_page_loads_nothing_from_elsewhere(client):
    page = client.get("/docs", follow_redirects=True)

    assert page.status_code == 200 and "swagger" in page.text.lower()
    assert 'src="http' not in page.text and 'href="http' not in page.text
    assert client.get("/docs/swagger/js/swagger-ui-bundle.js").status_code == 200


def test_a_damaged_model_is_refused_while_rules_serve(settings, catalog):
    store = ModelStore(settings.model_dir, settings.half_lives_s)
    store.write("broken", {"ranker.json": b"x"}, {"matrix": {}})
    store.activate("broken")
    services, _, registry = build_api(settings)
    client = create_app(settings, services, registry).test_client()

    assert post(client, "/suggest", {}).get_json()["strategy"] == "rules"
    assert client.get("/health").get_json()["dependencies"]["model"]["status"] == "down"
