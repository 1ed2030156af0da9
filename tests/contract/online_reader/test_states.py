"""Fresh is told from stale, missing from null, one view from another."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from feast.protos.feast.types.Value_pb2 import Value

from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import open_wire
from app.features.schema import COUNTER_FIELDS, EntityName
from tests.builders import NOON, counter_view
from tests.contract.online_reader.feature_rows import (
    AGE,
    FRESH,
    HALF_LIFE_COUNT,
    MISSING,
    STALE,
    TTL_S,
    list_value,
    put,
    view_schema,
)
from tests.contract.online_reader.redis_servers import PROJECT, free_ports


@pytest.mark.parametrize(
    "at",
    [
        NOON,
        NOON + timedelta(microseconds=1),
        NOON + timedelta(microseconds=999_999),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC),
    ],
)
def test_a_row_is_fresh_up_to_its_ttl_and_not_a_microsecond_longer(single, at):
    single.empty()
    put(single, AGE, "u1", at, age=Value(double_val=42))
    reader, ttl, moment = single.reader(), timedelta(seconds=TTL_S), timedelta(microseconds=1)

    at_ttl = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, at + ttl)["profile"]
    after = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, at + ttl + moment)["profile"]

    assert at_ttl.states == [FRESH] and at_ttl.rows.values["age"].tolist() == [42.0]
    assert after.states == [STALE] and np.isnan(after.rows.values["age"]).all()


def test_a_row_of_nulls_is_not_a_missing_row(place):
    put(place, AGE, "null", age=Value())
    put(place, AGE, "marked null", age=Value(null_val=0))
    put(place, AGE, "no field")
    keys = ["null", "marked null", "no field", "absent"]

    read = place.reader().read({AGE: keys}, HALF_LIFE_COUNT, NOON)["profile"]

    assert read.states == [FRESH, FRESH, FRESH, MISSING]
    assert np.isnan(read.rows.values["age"]).all()


def test_counters_of_other_half_lives_read_as_zeros(single):
    single.empty()
    view = counter_view("counters", EntityName.USER, "user_id", ttl_s=TTL_S)
    counts = [[1.0, 2.0, 3.0], [1.0, 2.0], [], [4.0, 5.0, 6.0]]
    values = {name: list_value("doubles", c) for name, c in zip(COUNTER_FIELDS, counts, strict=True)}
    put(single, view, "u1", **values, as_of_s=Value(double_val=7.0))

    rows = single.reader().read({view: ["u0", "u1"]}, 3, NOON)["counters"].rows

    assert rows.counts[1].tolist() == [[1.0, 2.0, 3.0], [0.0] * 3, [0.0] * 3, [4.0, 5.0, 6.0]]
    assert rows.as_of_s[1] == 7.0
    assert not rows.counts[0].any() and np.isnan(rows.as_of_s[0])


def test_views_of_one_entity_come_with_one_command(single):
    single.empty()
    tags = view_schema("tags", tags="Array(String)")
    put(single, AGE, "u1", age=Value(double_val=42))
    put(single, tags, "u1", tags=list_value("strings", ["a", "b"]))
    reader, node = single.reader(), single.node(0)
    node.config_resetstat()

    read = reader.read({AGE: ["u1"], tags: ["u1"]}, HALF_LIFE_COUNT, NOON)

    assert node.info("commandstats")["cmdstat_hmget"]["calls"] == 1
    assert read["profile"].rows.values["age"].tolist() == [42.0]
    assert read["tags"].rows.values["tags"].tolist() == [("a", "b")]


def test_views_of_one_entity_with_other_keys_get_their_own_rows(place):
    tags = view_schema("tags", tags="Array(String)")
    for number, key in enumerate(["u1", "u2"]):
        put(place, AGE, key, age=Value(double_val=number))
        put(place, tags, key, tags=list_value("strings", [key]))

    read = place.reader().read({AGE: ["u1", "u2"], tags: ["u2"]}, HALF_LIFE_COUNT, NOON)

    assert read["profile"].rows.values["age"].tolist() == [0.0, 1.0]
    assert read["tags"].rows.values["tags"].tolist() == [("u2",)]


def test_a_view_without_keys_has_no_rows_and_asks_nobody():
    (port,) = free_ports(1)
    reader = RedisOnlineReader(open_wire(connect_redis(f"redis://127.0.0.1:{port}/0", 100)), PROJECT)

    read = reader.read({AGE: []}, HALF_LIFE_COUNT, NOON)["profile"]

    assert read.states == [] and len(read.rows.values["age"]) == 0


def test_a_view_that_changed_under_its_name_is_read_as_it_is_now(single):
    single.empty()
    put(single, AGE, "u1", age=Value(double_val=42), nick=Value(string_val="Ann"))
    reader = single.reader()
    reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)

    changed = view_schema("profile", nick="String")
    read = reader.read({changed: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"]

    assert {name: column.tolist() for name, column in read.rows.values.items()} == {"nick": ["Ann"]}
