"""Feast's keys, values and timestamps in the bytes that its Redis store writes, a column at a time.

Feast makes a protobuf message of every value and serializes each alone; here a column is one Arrow array
from end to end. Types and values beyond the plain ones (see `_FORMS`) are refused, so that Feast's own
conversion decides about their bytes, and complains.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, ValueType
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import make_tzaware
from google.protobuf.timestamp_pb2 import Timestamp

from app.adapters.feast_bytes import BYTES, EMPTY, join, of_equal_width, of_lengths, regrouped, spread, unless
from app.adapters.feast_writes import ColumnarRows, ListedRows

_INSTANT = pa.timestamp("us")

FeastRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


class NotInColumns(Exception):
    """A type or a value whose bytes only Feast's own conversion knows."""


def serialize_batch(
    batch: pa.RecordBatch, view: FeatureView, stored_name: str, project: str, key_version: int
) -> ColumnarRows:
    """The rows of a batch whose columns bear the names of the view's fields.

    `stored_name` is the view's name in the store, with its version if it has one.

    Raises:
        NotInColumns: a column or one of its values is not serialized here.
        KeyError: a column of the view is missing.
    """
    join_keys = {field.name: field.dtype.to_value_type() for field in view.entity_columns}
    timestamps = batch.column(view.batch_source.timestamp_field)
    if timestamps.type != _INSTANT or timestamps.null_count:
        raise NotInColumns("rows without a time")
    return ColumnarRows(
        keys=serialize_keys(
            {name: batch.column(name) for name in join_keys}, join_keys, project, key_version
        ),
        names=field_names(stored_name, [field.name for field in view.features]),
        columns=(
            serialize_timestamps(timestamps.to_numpy(zero_copy_only=False)),
            *(serialize_values(batch.column(f.name), f.dtype.to_value_type()) for f in view.features),
        ),
    )


def serialize_rows(
    data: Sequence[FeastRow], stored_name: str, project: str, key_version: int
) -> Iterator[ListedRows]:
    """Rows as Feast hands them to its stores, in their order; one group per set of features."""
    for features, group in groupby(data, key=lambda row: tuple(row[1])):
        rows = list(group)
        yield ListedRows(
            names=field_names(stored_name, features),
            keys=[_redis_key(project, key, key_version) for key, *_ in rows],
            values=[
                (_timestamp(time), *(value.SerializeToString() for value in values.values()))
                for _, values, time, _ in rows
            ],
        )


def _timestamp(time: datetime) -> bytes:
    timestamp = Timestamp()
    timestamp.FromDatetime(make_tzaware(time))
    return timestamp.SerializeToString()


def field_names(stored_name: str, features: Sequence[str]) -> tuple[bytes, ...]:
    """The names of the hash's fields: the timestamp's, then one per feature."""
    return (f"_ts:{stored_name}".encode(), *(_mmh3(f"{stored_name}:{feature}") for feature in features))


def serialize_timestamps(instants: np.ndarray) -> pa.LargeBinaryArray:
    """protobuf Timestamps of a datetime64[us] array without NaT; a zero part is left out, as proto3 does."""
    seconds, microseconds = np.divmod(instants.astype(np.int64), 1_000_000)
    return join(
        unless(seconds == 0, join(b"\x08", _varints(seconds))),
        unless(microseconds == 0, join(b"\x10", _varints(microseconds * 1_000))),
    )


def serialize_values(column: pa.Array, value_type: ValueType) -> pa.LargeBinaryArray:
    """Serialized Feast Values of a column; what Feast takes for null is the empty string.

    Raises:
        NotInColumns: the column's type is not one that goes with `value_type`, or a value does not fit.
    """
    form = _FORMS.get(value_type)
    if form is None or not form.takes(column.type):
        raise NotInColumns(f"{value_type.name} from {column.type}")
    return form.serialize(column)


def serialize_keys(
    columns: Mapping[str, pa.Array], value_types: Mapping[str, ValueType], project: str, version: int
) -> pa.LargeBinaryArray:
    """Redis' keys of entities, by their join keys' columns and types.

    Raises:
        NotInColumns: a key is null, or its type or Feast's version of the format is not plain.
    """
    if version != 3:
        raise NotInColumns(f"entity keys of version {version}")
    names = sorted(columns)
    parts: list[bytes | pa.LargeBinaryArray] = [_u32(len(names))]
    for name in names:
        parts.append(_u32(ValueType.STRING.value) + _u32(len(name.encode())) + name.encode())
    for name in names:
        parts += _key_value(columns[name], value_types[name])
    return join(*parts, project.encode())


def _key_value(column: pa.Array, value_type: ValueType) -> tuple[bytes | pa.LargeBinaryArray, ...]:
    types, serialize = _KEY_FORMS.get(value_type, (frozenset(), None))
    if column.type not in types or column.null_count:
        raise NotInColumns(f"{value_type.name} in an entity's key from {column.type}, or null")
    value = serialize(column)
    lengths = pc.binary_length(value).to_numpy().astype("<u4")
    return _u32(value_type.value), of_equal_width(lengths), value


def _u32(number: int) -> bytes:
    return struct.pack("<I", number)


# How the elements of a type look on the wire: each takes an array without nulls, gives as many byte strings.


def _fixed(dtype: str) -> Callable[[pa.Array], pa.LargeBinaryArray]:
    def serialize(values: pa.Array) -> pa.LargeBinaryArray:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as in protobuf
            return of_equal_width(values.to_numpy(zero_copy_only=False).astype(dtype))

    return serialize


def _integers(bits: int) -> Callable[[pa.Array], pa.LargeBinaryArray]:
    limit = 1 << (bits - 1)

    def serialize(values: pa.Array) -> pa.LargeBinaryArray:
        numbers = values.to_numpy(zero_copy_only=False)
        # Doubles know no integer between the largest of 64 bits and the limit itself.
        if len(numbers) and not (-limit <= numbers.min() and numbers.max() < limit):
            raise NotInColumns(f"integers beyond {bits} bits")
        return _varints(numbers.astype(np.int64))

    return serialize


def _delimited(values: pa.Array) -> pa.LargeBinaryArray:
    values = values.cast(BYTES)
    return join(_varints(pc.binary_length(values).to_numpy()), values)


def _seconds(values: pa.Array) -> pa.LargeBinaryArray:
    instants = values.to_numpy(zero_copy_only=False).astype("datetime64[s]").astype(np.int64)
    return _varints(instants)


@dataclass(frozen=True, slots=True)
class _Scalar:
    """A field of Value that holds one number or string."""

    field: str
    wire_type: int
    types: frozenset[pa.DataType]
    elements: Callable[[pa.Array], pa.LargeBinaryArray]
    has_nulls: bool = True

    def takes(self, arrow_type: pa.DataType) -> bool:
        return arrow_type in self.types

    def serialize(self, column: pa.Array) -> pa.LargeBinaryArray:
        if not self.has_nulls:
            return join(_tag(self.field, self.wire_type), self.elements(column))
        nulls = column.is_null(nan_is_null=True)
        present = column.filter(pc.invert(nulls))
        serialized = join(_tag(self.field, self.wire_type), self.elements(present))
        return spread(serialized, nulls) if len(present) < len(column) else serialized


@dataclass(frozen=True, slots=True)
class _List:
    """A field of Value that holds a list. Numbers are packed; strings and bytes stand one by one."""

    field: str
    is_packed: bool
    types: frozenset[pa.DataType]
    elements: Callable[[pa.Array], pa.LargeBinaryArray]

    def takes(self, arrow_type: pa.DataType) -> bool:
        return pa.types.is_list(arrow_type) and arrow_type.value_type in self.types

    def serialize(self, column: pa.ListArray) -> pa.LargeBinaryArray:
        values = column.flatten()
        if values.is_null(nan_is_null=True).true_count:
            raise NotInColumns("nulls within lists")
        elements = self.elements(values)
        if not self.is_packed:
            elements = join(b"\x0a", elements)
        sizes = column.value_lengths().fill_null(0).to_numpy()
        lists = regrouped(elements, sizes)
        if self.is_packed:
            lists = unless(sizes == 0, join(b"\x0a", _delimited(lists)))
        serialized = join(_tag(self.field, 2), _delimited(lists))
        return pc.if_else(column.is_null(), EMPTY, serialized) if column.null_count else serialized


def _tag(field: str, wire_type: int) -> bytes:
    number = Value.DESCRIPTOR.fields_by_name[field].number
    return _varints(np.array([number << 3 | wire_type]))[0].as_py()


def _types(*names: str) -> frozenset[pa.DataType]:
    return frozenset(pa.type_for_alias(name) for name in names)


_INTEGER_TYPES = _types("int32", "int64", "double")  # integers with a null among them arrive as doubles
_FORMS: Mapping[ValueType, _Scalar | _List] = {
    ValueType.DOUBLE: _Scalar("double_val", 1, _types("double", "int64"), _fixed("<f8")),
    ValueType.FLOAT: _Scalar("float_val", 5, _types("float", "double"), _fixed("<f4")),
    ValueType.INT32: _Scalar("int32_val", 0, _INTEGER_TYPES, _integers(32)),
    ValueType.INT64: _Scalar("int64_val", 0, _INTEGER_TYPES, _integers(64)),
    ValueType.BOOL: _Scalar("bool_val", 0, _types("bool"), _fixed("<u1")),
    ValueType.STRING: _Scalar("string_val", 2, _types("string"), _delimited),
    ValueType.BYTES: _Scalar("bytes_val", 2, _types("binary"), _delimited),
    # Feast writes a missing time as numpy's NaT, the smallest integer.
    ValueType.UNIX_TIMESTAMP: _Scalar(
        "unix_timestamp_val", 0, frozenset({_INSTANT}), _seconds, has_nulls=False
    ),
    ValueType.DOUBLE_LIST: _List("double_list_val", True, _types("double", "float"), _fixed("<f8")),
    ValueType.FLOAT_LIST: _List("float_list_val", True, _types("double", "float"), _fixed("<f4")),
    ValueType.INT32_LIST: _List("int32_list_val", True, _types("int32", "int64"), _integers(32)),
    ValueType.INT64_LIST: _List("int64_list_val", True, _types("int32", "int64"), _integers(64)),
    ValueType.BOOL_LIST: _List("bool_list_val", True, _types("bool"), _fixed("<u1")),
    ValueType.STRING_LIST: _List("string_list_val", False, _types("string"), _delimited),
    ValueType.BYTES_LIST: _List("bytes_list_val", False, _types("binary"), _delimited),
}


_KEY_FORMS: Mapping[ValueType, tuple[frozenset[pa.DataType], Callable[[pa.Array], pa.LargeBinaryArray]]] = {
    ValueType.STRING: (_types("string"), lambda values: values.cast(BYTES)),
    ValueType.BYTES: (_types("binary"), lambda values: values.cast(BYTES)),
    ValueType.INT64: (_types("int32", "int64"), _fixed("<i8")),
    ValueType.INT32: (_types("int32"), _fixed("<i4")),
}


def _varints(numbers: np.ndarray) -> pa.LargeBinaryArray:
    """protobuf varints: seven bits a byte, the lowest first; negative numbers take all ten bytes."""
    bits = numbers.astype(np.int64).view(np.uint64)[:, None]
    lengths = 1 + np.count_nonzero(bits >= np.uint64(1) << np.arange(7, 64, 7, dtype=np.uint64), axis=1)
    places = np.arange(lengths.max(initial=1))
    groups = (bits >> (7 * places).astype(np.uint64) & np.uint64(0x7F)).astype(np.uint8)
    groups |= np.where(places < lengths[:, None] - 1, 0x80, 0).astype(np.uint8)
    return of_lengths(groups[places < lengths[:, None]], lengths)
