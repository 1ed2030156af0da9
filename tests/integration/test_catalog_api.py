"""The catalog and the users over HTTP, from the request to the slate."""

import json
from datetime import datetime
from urllib.parse import quote

import pytest

from app.api.factory import create_app
from app.bootstrap.keeper import build_keeper
from app.bootstrap.web import build_api
from app.settings import load_settings
from tests.builders import count, query

EDITOR = {"title": "Try the editor", "category": "tools", "tags": ["new"], "value": 2.5}


@pytest.fixture
def client(settings):
    services, _, registry = build_api(settings)
    return create_app(settings, services, registry).test_client()


def send(client, method, path, body=None):
    return client.open(path, method=method, data=json.dumps(body), content_type="application/json")


def catalog_head(settings):
    return query(settings, "SELECT last_at FROM log_heads WHERE name = 'catalog'")


def test_what_was_put_is_what_is_there(client):
    created = send(client, "PUT", "/propositions/p1", {**EDITOR, "attributes": {"url": "/é"}})

    got = client.get("/propositions/p1")
    assert created.status_code == 201 and created.headers["Location"] == "/propositions/p1"
    assert got.status_code == 200 and got.get_json() == created.get_json()
    assert got.get_json()["title"] == "Try the editor" and got.get_json()["attributes"] == {"url": "/é"}
    assert got.get_json()["created_at"] is not None


def test_what_get_answers_can_be_put_back_and_changes_nothing(settings, client):
    send(client, "PUT", "/propositions/p1", EDITOR)
    before = client.get("/propositions/p1")
    head = catalog_head(settings)

    again = send(client, "PUT", "/propositions/p1", before.get_json())

    assert again.status_code == 200 and again.headers["ETag"] == before.headers["ETag"]
    assert catalog_head(settings) == head
    assert count(settings, "proposition_catalog") == 1


@pytest.mark.parametrize("offset", ["+23:59", "-23:59", "Z"])
def test_a_time_with_any_offset_is_the_moment_that_it_names(client, offset):
    assert (
        send(
            client, "PUT", "/propositions/p1", {**EDITOR, "ends_at": f"2030-05-05T12:00:00{offset}"}
        ).status_code
        == 201
    )

    told = datetime.fromisoformat(client.get("/propositions/p1").get_json()["ends_at"])
    assert told == datetime.fromisoformat(f"2030-05-05T12:00:00{offset}")


@pytest.mark.parametrize("number", [1.5e207, -(2.0**70), 2**63 - 1, 5e-324])
def test_a_number_of_any_size_comes_back(client, number):
    assert send(client, "PUT", "/propositions/p1", {**EDITOR, "attributes": {"n": number}}).status_code == 201

    assert client.get("/propositions/p1").get_json()["attributes"] == {"n": number}


@pytest.mark.parametrize("entity_id", ["a\nb", "\n", "a\u2028b", "\r\nX: y"])
def test_line_breaks_in_a_path_are_refused_by_name(client, entity_id):
    answer = send(client, "PUT", f"/propositions/{quote(entity_id)}", EDITOR)

    assert answer.status_code == 422
    assert answer.get_json()["errors"][0]["field"] == "proposition_id"


def test_each_version_says_what_the_proposition_has_in_common_with_others(settings, client):
    send(
        client,
        "PUT",
        "/propositions/p1",
        {**EDITOR, "tags": ["new"], "attributes": {"maker": "A", "pages": 12}},
    )
    send(client, "PUT", "/propositions/p1", {**EDITOR, "tags": [], "attributes": {"is_free": True}})

    assert query(
        settings,
        "SELECT traits, number_names, number_values FROM proposition_catalog ORDER BY event_timestamp",
    ) == [(["maker=A", "new"], ["pages"], [12.0]), ([], ["is_free"], [1.0])]


def test_a_change_replaces_all_but_the_time_of_creation(client):
    first = send(client, "PUT", "/propositions/p1", EDITOR).get_json()

    changed = send(client, "PUT", "/propositions/p1", {"title": "New"})

    assert changed.status_code == 200
    assert changed.get_json()["category"] is None and changed.get_json()["tags"] == []
    assert changed.get_json()["created_at"] == first["created_at"]


def test_an_unchanged_entity_is_not_sent_twice(client):
    etag = send(client, "PUT", "/users/u1", {"segment": "writer"}).headers["ETag"]

    assert client.get("/users/u1", headers={"If-None-Match": etag}).status_code == 304
    send(client, "PUT", "/users/u1", {"segment": "reader"})
    assert client.get("/users/u1", headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize("entity_id", ["a/b", "//a", "ü %2F?", "100%", ".hidden", "x" * 200])
def test_any_id_can_stand_in_a_path(client, entity_id):
    path = send(client, "POST", "/propositions", {"propositions": [{**EDITOR, "proposition_id": entity_id}]})
    assert path.get_json()["created"] == [entity_id]

    got = client.get(f"/propositions/{quote(entity_id, safe='')}")

    assert got.get_json()["proposition_id"] == entity_id


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/propositions/%20p", "/propositions/a%1Fb", "/users/" + "x" * 201])
def test_an_id_that_is_none_is_refused_by_name(client, method, path):
    answer = send(client, method, path, {"title": "T"} if "propositions" in path else {})

    assert answer.status_code == 422
    assert answer.get_json()["errors"][0]["field"] in ("proposition_id", "user_id")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/propositions/p1", {}, "title"),
        ("/propositions/p1", {**EDITOR, "proposition_id": "p2"}, "proposition_id"),
        ("/propositions/p1", {**EDITOR, "colour": "red"}, "colour"),
        ("/propositions/p1", {**EDITOR, "starts_at": "2026-05-15T11:00:00"}, "starts_at"),
        ("/users/u1", {"age_years": -1}, "age_years"),
        ("/users/u1", {"user_id": "u2"}, "user_id"),
        ("/users/u1", [], "body"),
    ],
)
def test_a_bad_entity_is_refused_by_field_and_nothing_is_stored(settings, client, path, body, field):
    answer = send(client, "PUT", path, body)

    assert answer.status_code == 422
    assert field in [problem["field"] for problem in answer.get_json()["errors"]]
    assert count(settings, "propositions") == count(settings, "users") == 0


@pytest.mark.parametrize("path", ["/users/u1", "/propositions/p1", "/suggest"])
def test_a_hundred_thousand_unknown_fields_are_not_named_one_by_one(client, path):
    body = {f"field_{n}": n for n in range(100_000)}

    answer = client.open(path, method="POST" if path == "/suggest" else "PUT", json=body)

    assert answer.status_code == 422
    (problem,) = answer.get_json()["errors"]
    assert problem["field"] == "body" and "unknown fields" in problem["reason"]


def test_what_is_not_there_is_a_problem_document(client):
    for method, path in (("GET", "/propositions/p1"), ("DELETE", "/propositions/p1"), ("GET", "/users/u1")):
        answer = send(client, method, path)
        assert answer.status_code == 404
        assert answer.content_type == "application/problem+json"


def test_in_bulk_bad_ones_do_not_block_good_ones(settings, client):
    send(client, "PUT", "/propositions/old", EDITOR)
    send(client, "PUT", "/propositions/same", EDITOR)
    items = [
        {**EDITOR, "proposition_id": "new"},
        {"proposition_id": "untitled"},
        {**EDITOR, "proposition_id": "old", "title": "Newer"},
        {**EDITOR, "proposition_id": "same"},
        {**EDITOR, "proposition_id": ""},
        "no object",
        {**EDITOR, "proposition_id": "new", "title": "The last counts"},
    ]

    answer = send(client, "POST", "/propositions", {"propositions": items})

    body = answer.get_json()
    assert answer.status_code == 200
    assert (body["created"], body["changed"], body["unchanged"]) == (["new"], ["old"], ["same"])
    assert [(r["index"], r["proposition_id"], r["errors"][0]["field"]) for r in body["rejected"]] == [
        (1, "untitled", "title"),
        (4, "", "proposition_id"),
        (5, None, "body"),
    ]
    assert client.get("/propositions/new").get_json()["title"] == "The last counts"


@pytest.mark.parametrize("items", [[], [EDITOR] * 10_001, "many"])
def test_a_bulk_is_bounded(client, items):
    answer = send(client, "POST", "/propositions", {"propositions": items})

    assert answer.status_code == 422
    assert answer.get_json()["errors"][0]["field"] == "propositions"


def test_a_user_gets_a_version_for_training_with_every_change(settings, client):
    for segment in ("writer", "writer", "reader"):
        send(client, "PUT", "/users/u1", {"segment": segment})

    versions = query(settings, "SELECT segment FROM user_profile ORDER BY event_timestamp")
    assert versions == [("writer",), ("reader",)]


def test_a_changed_user_does_not_make_snapshots_look_for_news(settings, client):
    head = catalog_head(settings)

    send(client, "PUT", "/users/u1", {"segment": "writer"})

    assert catalog_head(settings) == head


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/propositions/p1"), ("GET", "/propositions/p1"), ("DELETE", "/users/u1"), ("PUT", "/users/u1")],
)
def test_when_postgres_is_gone_the_caller_is_told_when_to_try_again(settings, monkeypatch, method, path):
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    services, _, registry = build_api(load_settings())
    client = create_app(settings, services, registry).test_client()

    answer = send(client, method, path, EDITOR if "propositions" in path else {})

    assert answer.status_code == 503 and answer.headers["Retry-After"] == "5"


@pytest.fixture
def shown(settings):
    """A function that tells what a slate shows after the keeper and a worker have looked once."""
    keeper = build_keeper(settings)

    def look(now_s: float = 1e9) -> list[str]:
        keeper.refresh(now_s)
        services, _, registry = build_api(settings)
        worker = create_app(settings, services, registry).test_client()
        answer = send(worker, "POST", "/suggest", {"user_id": "u1"}).get_json()
        return [p["proposition_id"] for p in answer["propositions"]]

    return look


def test_changes_are_seen_in_slates_and_a_deleted_proposition_never_again(client, shown):
    send(client, "PUT", "/propositions/p1", EDITOR)
    send(client, "PUT", "/propositions/p2", EDITOR)
    assert shown() == ["p1", "p2"]

    assert send(client, "DELETE", "/propositions/p1").status_code == 204
    assert shown() == ["p2"]
    send(client, "PUT", "/propositions/p2", {**EDITOR, "is_active": False})
    assert shown() == ["explore"]

    assert send(client, "PUT", "/propositions/p1", EDITOR).status_code == 201
    assert shown() == ["p1"]


def test_a_keeper_that_starts_anew_does_not_show_what_was_deleted_before(settings, client, shown):
    send(client, "PUT", "/propositions/explore", EDITOR)
    send(client, "DELETE", "/propositions/explore")

    assert shown() == []


def test_what_happened_to_a_deleted_proposition_stays(settings, client):
    send(client, "PUT", "/propositions/p1", EDITOR)
    event = {"event_id": "e1", "event_type": "click", "proposition_id": "p1", "user_id": "u1"}
    send(client, "POST", "/log_event", event)

    send(client, "DELETE", "/propositions/p1")

    assert query(settings, "SELECT category FROM events") == [("tools",)]
    assert count(settings, "proposition_catalog") == 1
    assert send(client, "DELETE", "/propositions/p1").status_code == 404
