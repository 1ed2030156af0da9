"""Whatever bytes come from outside, each parser gives a value or the one error that it promises."""

import gzip
import json
import string
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.adapters.feast_layout import decode_timestamp, decode_value
from app.adapters.model_store import ModelStore
from app.adapters.online_reader import RedisOnlineReader
from app.adapters.suggestion_cache import RedisSlateStore
from app.domain.access import KeyRing
from app.domain.context import complete_context, context_key
from app.domain.errors import FeaturesUnavailable, ImportRefused, ModelRefused, StoreUnavailable
from app.domain.types import Event
from app.events.message import SCHEMA_HEADER, Undecodable, decode
from app.events.reading import EventReader, NoEvents, NotJson, Refused
from app.features.ports import OnlineRows
from app.imports.records import ImportRules, Reject
from app.imports.run import FORMATS
from app.serving.online import RECENT
from tests.builders import CONTEXT_FIELDS, NOON, SMALL_SCHEMA

fuzzed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

RULES = ImportRules(NOON, timedelta(minutes=5), UTC)
READER = EventReader(UTC, timedelta(minutes=5), 100)
# Names that the parsers know make deeper places reachable.
NAMES = st.sampled_from(
    [
        "event",
        "events",
        "event_id",
        "event_type",
        "user_id",
        "proposition_id",
        "context",
        "timestamp",
        "occurred_at",
        "position",
        "value",
        "fields",
        "items",
        "item",
        "user",
        "id",
        "name",
        "ranking",
        "interaction",
        "type",
        "tags",
        "category",
        "attributes",
        "is_active",
        "version",
        "previous",
    ]
) | st.text(max_size=5)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["click", "impression", "item", "user", "ranking", "interaction", "2026-05-15T12:00:00Z"]
    )
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)
BODIES = st.binary(max_size=300) | JSON.map(lambda document: json.dumps(document).encode(errors="replace"))
REPLIES = st.recursive(
    st.none() | st.integers() | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=12),
    max_leaves=60,
)


class Wire:
    """A Redis that answers with anything."""

    def __init__(self, reply) -> None:
        self._reply = reply

    def ask(self, packed, reply_count, timeout_s=None):
        return [self._reply] * reply_count


@fuzzed
@given(st.binary(max_size=200))
def test_bytes_from_redis_are_a_value_or_refused(serialized):
    for decoded in (decode_value, decode_timestamp):
        with suppress(ValueError, TypeError, IndexError):
            decoded(serialized)


@fuzzed
@given(st.lists(st.none() | st.binary(max_size=40), max_size=12) | REPLIES)
def test_replies_of_redis_are_rows_or_features_that_are_unavailable(reply):
    reader = RedisOnlineReader(Wire(reply), "propositions")
    keys = {view: ["a", "b"] for view in (*SMALL_SCHEMA.views, RECENT)}
    try:
        rows = reader.read(keys, 2, NOON, 0.1)
    except FeaturesUnavailable:
        return
    assert all(isinstance(of_view, OnlineRows) and len(of_view.states) == 2 for of_view in rows.values())


@fuzzed
@given(st.tuples(st.none() | st.binary(max_size=8), BODIES | st.none()) | REPLIES)
@example((b"1", b'[1, {"propositions": [["p", 1.0, 5]]}]'))
@example((b"1", b"[1, 2]"))
@example((b"x", None))
def test_replies_of_redis_are_a_kept_slate_or_a_cache_that_is_down(reply):
    store = RedisSlateStore(Wire(reply), timedelta(seconds=10))
    with suppress(StoreUnavailable):
        store.find("u", "k", 0.1)


@fuzzed
@given(BODIES)
def test_the_body_of_a_request_is_events_refusals_or_none_at_all(body):
    try:
        submission = READER.read(body, NOON)
    except (NotJson, NoEvents):
        return
    assert all(isinstance(item, Event | Refused) for item in submission.items)
    orjson.dumps([item.event_id for item in submission.items])


@fuzzed
@given(st.none() | BODIES, st.dictionaries(st.just(SCHEMA_HEADER), st.just(b"1") | st.binary(max_size=3)))
def test_a_message_from_kafka_is_an_event_or_undecodable(value, headers):
    with suppress(Undecodable):
        assert isinstance(decode(value, headers), Event)


@fuzzed
@given(st.lists(BODIES, max_size=5))
@pytest.mark.parametrize(
    ("format_", "name"),
    [("metarank", "events.jsonl"), ("metarank", "events.jsonl.gz"), *(("native", f"{kind}.{ending}")
     for kind in ("users", "propositions", "events") for ending in ("jsonl", "csv", "parquet"))],
)  # fmt: skip
def test_lines_of_a_file_are_records_or_rejects_with_a_reason(tmp_path, format_, name, lines):
    path = tmp_path / name
    content = b"\n".join(line.replace(b"\n", b" ") for line in lines)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") and len(lines) % 2 else content)
    with suppress(ImportRefused):
        for parsed in FORMATS[format_]([path], RULES):
            assert not isinstance(parsed, Reject) or parsed.reason


@fuzzed
@given(BODIES, BODIES)
def test_a_model_folder_with_anything_in_it_is_refused(tmp_path, manifest, pointer):
    store = ModelStore(tmp_path, (3600.0,))
    (tmp_path / "v1").mkdir(exist_ok=True)
    (tmp_path / "v1" / "manifest.json").write_bytes(manifest)
    (tmp_path / "active.json").write_bytes(pointer)

    with pytest.raises(ModelRefused):
        store.load("v1", SMALL_SCHEMA)
    with suppress(ModelRefused):
        store.active()


@fuzzed
@given(st.text(max_size=80) | st.from_regex(r"pp_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", fullmatch=True))
def test_no_text_that_was_not_given_out_is_a_key(presented):
    assert KeyRing().find(presented, NOON) is None


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(CONTEXT_FIELDS) | st.text(string.printable, max_size=5), st.text(max_size=8)
    ),
    st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 30)),
)
def test_every_context_has_a_key_that_is_text(context, now):
    key = context_key(complete_context(context, now.replace(tzinfo=UTC), UTC), CONTEXT_FIELDS)

    assert isinstance(key, str)
