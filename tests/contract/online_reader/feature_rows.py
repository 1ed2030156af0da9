"""Views, keys and values as Feast lays them out, and what the reader makes of them."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from feast import FeatureStore
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from google.protobuf.timestamp_pb2 import Timestamp

from app.domain.types import FeatureState
from app.features.ports import OnlineRows
from app.features.schema import EntityName, FieldKind, FieldSchema, ViewSchema
from tests.builders import NOON
from tests.contract.online_reader.redis_servers import PROJECT, Place

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


def view_schema(name: str = "things", join_key: str = "user_id", **dtypes: str) -> ViewSchema:
    fields = tuple(FieldSchema(field, dtype, FieldKind.NUMBER) for field, dtype in dtypes.items())
    return ViewSchema(name, EntityName.USER, join_key, fields, TTL_S)


AGE = view_schema("profile", age="Float64")
ALL_TYPES = view_schema("all_types", **{name: str(dtype) for name, dtype in DTYPES.items()})


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
