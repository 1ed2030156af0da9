from dataclasses import fields

import orjson
import pytest

from app.domain.types import Event
from app.events.message import SCHEMA_HEADER, SCHEMA_VERSION, Undecodable, decode, encode
from tests.builders import event

HEADERS = {SCHEMA_HEADER: SCHEMA_VERSION}
WHOLE = event(
    "e-ü",
    "conversion",
    "p 🎈",
    user_id="u'1",
    context={"page": "home"},
    request_id="r1",
    position=3,
    value=0.1,
)
BARE = event("e2", user_id=None)


@pytest.mark.parametrize("sent", [WHOLE, BARE], ids=["whole", "bare"])
def test_an_event_is_the_same_on_the_other_side(sent):
    assert decode(encode(sent), HEADERS) == sent


def test_a_context_may_have_all_that_a_sender_may_give_and_what_is_filled_in():
    sent = event("e1", context={f"field_{n}": "x" for n in range(32)})

    assert decode(encode(sent), HEADERS) == sent


@pytest.mark.parametrize("name", [field.name for field in fields(Event)])
def test_a_field_that_was_lost_is_noticed(name):
    body = orjson.loads(encode(WHOLE))
    del body[name]

    with pytest.raises(Undecodable, match=f"{name}: Field required"):
        decode(orjson.dumps(body), HEADERS)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"event_id": ""}, "event_id: "),
        ({"proposition_id": "a\x00b"}, "proposition_id: "),
        ({"event_type": "seen"}, "event_type: "),
        ({"occurred_at": "2026-05-15T12:00:00"}, "occurred_at: .*timezone"),
        ({"occurred_at": 1778846400}, "occurred_at: "),
        ({"position": 0}, "position: "),
        ({"value": 1e300}, "value: "),
        ({"colour": "red"}, "colour: Extra"),
    ],
)
def test_what_postgres_could_not_hold_or_nobody_knows_is_refused_with_the_field(changed, reason):
    body = orjson.loads(encode(WHOLE)) | changed

    with pytest.raises(Undecodable, match=reason):
        decode(orjson.dumps(body), HEADERS)


@pytest.mark.parametrize("value", [None, b"", b"{", b"\xff", b"[]"])
def test_what_is_no_json_object_is_refused(value):
    with pytest.raises(Undecodable):
        decode(value, HEADERS)


@pytest.mark.parametrize(("headers", "shown"), [({}, "missing"), ({SCHEMA_HEADER: b"2"}, "2")])
def test_another_schema_is_not_guessed_at(headers, shown):
    with pytest.raises(Undecodable, match=f"schema version is {shown}, and 1 is known"):
        decode(encode(WHOLE), headers)
