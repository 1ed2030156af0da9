"""Chunks of generated rows as the bytes that PostgreSQL and Redis take, without a Python loop over rows.

Rows whose texts are of the same lengths are records of the same width: constant bytes and columns of
numbers and texts, side by side in one byte matrix. Both formats are checked against the stock ways of
writing them in test_data.py.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import DoubleList, StringList, Value
from google.protobuf.timestamp_pb2 import Timestamp

from tests.benchmarks.data import Chunk

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_END = b"\xff\xff"
POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MICROSECOND = datetime.resolution
TEXT_OID, FLOAT8_OID = 25, 701

Part = bytes | np.ndarray


# Kept by the projector for itself; no feature.
NOT_SERVED = {"counted_at_s"}


def copy_columns(chunk: Chunk) -> tuple[str, ...]:
    return (chunk.key_column, *chunk.values, chunk.time_column)


def copy_binary(chunk: Chunk, at: datetime) -> bytes:
    """The chunk as PostgreSQL's `COPY ... WITH (FORMAT binary)` reads it."""
    field_count = _big_endian(len(copy_columns(chunk)), 2)
    moment = _copy_field(_big_endian((at - POSTGRES_EPOCH) // MICROSECOND, 8))
    rows = []
    for group in _of_same_widths(chunk):
        fields = (part for column in (group.keys, *group.values.values()) for part in _copy_parts(column))
        rows.append(_side_by_side([field_count, *fields, *moment], len(group)))
    return b"".join((COPY_HEADER, *rows, COPY_END))


def redis_commands(chunk: Chunk, project: str, at: datetime) -> bytes:
    """One HSET per row, in the layout of Feast's Redis online store."""
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    commands = []
    for group in _of_same_widths(chunk):
        arguments: list[list[Part]] = [
            [b"HSET"],
            _redis_key_parts(project, group),
            [f"_ts:{chunk.table}".encode()],
            [timestamp.SerializeToString()],
        ]
        for name, column in group.values.items():
            if name not in NOT_SERVED:
                arguments += [[_mmh3(f"{chunk.table}:{name}")], _value_parts(column)]
        parts: list[Part] = [b"*%d\r\n" % len(arguments)]
        for argument in arguments:
            parts += [b"$%d\r\n" % sum(map(_width, argument)), *argument, b"\r\n"]
        commands.append(_side_by_side(parts, len(group)))
    return b"".join(commands)


def _of_same_widths(chunk: Chunk) -> Iterator[Chunk]:
    """The rows in groups whose texts have the same lengths, each as narrow as its texts."""
    texts = [c for c in (chunk.keys, *chunk.values.values()) if c.dtype.kind == "S" and c.ndim == 1]
    lengths = np.stack([np.strings.str_len(column) for column in texts], axis=1)
    _, group_of = np.unique(lengths, axis=0, return_inverse=True)
    for number in range(group_of.max(initial=-1) + 1):
        group = chunk.where(group_of == number)
        yield Chunk(
            group.table,
            group.key_column,
            _narrowed(group.keys),
            {name: _narrowed(column) for name, column in group.values.items()},
            group.time_column,
        )


def _narrowed(column: np.ndarray) -> np.ndarray:
    if column.dtype.kind != "S":
        return column
    return column.astype(f"S{np.strings.str_len(column).max()}")


def _side_by_side(parts: Sequence[Part], row_count: int) -> bytes:
    """Rows of constant bytes and columns, each column (n,) or (n, k)."""
    matrix = np.empty((row_count, sum(map(_width, parts))), dtype=np.uint8)
    position = 0
    for part in parts:
        width = _width(part)
        matrix[:, position : position + width] = (
            np.frombuffer(part, dtype=np.uint8)
            if isinstance(part, bytes)
            else np.ascontiguousarray(part).view(np.uint8).reshape(row_count, width)
        )
        position += width
    return matrix.tobytes()


def _width(part: Part) -> int:
    if isinstance(part, bytes):
        return len(part)
    return part.dtype.itemsize * (1 if part.ndim == 1 else part.shape[1])


def _copy_parts(column: np.ndarray) -> list[Part]:
    is_text = column.dtype.kind == "S"
    values = column if is_text else column.astype(">f8")
    if column.ndim == 1:
        return _copy_field(values)
    count, item_width = column.shape[1], column.dtype.itemsize
    head = b"".join(
        _big_endian(number, 4) for number in (1, 0, TEXT_OID if is_text else FLOAT8_OID, count, 1)
    )
    parts: list[Part] = [_big_endian(len(head) + count * (4 + item_width), 4), head]
    for item in range(count):
        parts += _copy_field(values[:, item])
    return parts


def _copy_field(value: Part) -> list[Part]:
    return [_big_endian(_width(value), 4), value]


def _redis_key_parts(project: str, group: Chunk) -> list[Part]:
    first = group.keys[0]
    key = EntityKey(join_keys=[group.key_column], entity_values=[Value(string_val=first.decode())])
    head, _, tail = _redis_key(project, key, entity_key_serialization_version=3).partition(bytes(first))
    return [head, group.keys, tail]


def _value_parts(column: np.ndarray) -> list[Part]:
    """Feast's Value around each row: what stands before the first row's content stands before all."""
    first = column[0].tolist()
    if column.dtype.kind != "S":
        value = Value(double_val=first) if column.ndim == 1 else Value(double_list_val=DoubleList(val=first))
        return [value.SerializeToString()[: -_width(column)], column.astype("<f8")]
    if column.ndim == 1:
        return [Value(string_val=first.decode()).SerializeToString()[: -_width(column)], column]
    texts = StringList(val=[text.decode() for text in first])
    item_head = texts.SerializeToString()[:2]  # tag and length, of one byte for texts under 128 bytes
    head = Value(string_list_val=texts).SerializeToString()[: -texts.ByteSize()]
    parts: list[Part] = [head]
    for item in range(column.shape[1]):
        parts += [item_head, column[:, item]]
    return parts


def _big_endian(number: int, width: int) -> bytes:
    return number.to_bytes(width, "big", signed=True)
