"""Rows of a PostgreSQL query as Arrow columns, without a Python object per value.

PostgreSQL's binary COPY sends each row as one message. The fields of many rows are found together, column
after column.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from feast.type_map import pg_type_code_to_arrow

from app.adapters.feast_values import NotInColumns

_HEADER_SIZE, _TRAILER = 19, b"\xff\xff"
_BIGINT = 20
_NULL = -1
_EPOCH_2000_US = 946_684_800_000_000
_FIRST_US, _LAST_US = np.array(["0001-01-02", "9999-12-30"], "datetime64[us]").astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one column in the bytes of all rows: where each starts, and its length or -1 for null."""

    data: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @property
    def is_null(self) -> np.ndarray:
        return self.lengths == _NULL

    @property
    def ends(self) -> np.ndarray:
        return self.starts + np.maximum(self.lengths, 0)

    def present(self) -> "_Fields":
        return _Fields(self.data, self.starts[~self.is_null], self.lengths[~self.is_null])

    def numbers(self, dtype: str) -> np.ndarray:
        """The fields as numbers; 0 for null."""
        numbers = np.zeros(len(self.starts), np.dtype(dtype).newbyteorder("="))
        numbers[~self.is_null] = _numbers(self.data, self.present().starts, dtype)
        return numbers

    def bytes(self) -> pa.LargeBinaryArray:
        """The fields as they stand; empty for null."""
        if not len(self.starts):
            return pa.array([], pa.large_binary())
        bounds = np.column_stack((self.starts, self.ends)).ravel()
        # The fields and what lies between them, by turns.
        pieces = pa.Array.from_buffers(
            pa.large_binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), pa.py_buffer(self.data)]
        )
        return pieces.take(pa.array(np.arange(0, len(bounds), 2)))


def copy_batches(connection: psycopg.Connection, query: str, size: int) -> Iterator[pa.RecordBatch]:
    """The rows of the query, up to `size` at a time, with the values that Feast's local engine has after pandas.

    Raises:
        NotInColumns: a column's type, or a value, is read as Feast reads it only by Feast.
        psycopg.Error: the query failed.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM ({query}) AS described LIMIT 0")
        names, type_codes = zip(*((c.name, c.type_code) for c in cursor.description), strict=True)
        if not _READERS.keys() >= set(type_codes):
            raise NotInColumns(f"PostgreSQL's types {set(type_codes) - _READERS.keys()}")
        bigints = [name for name, code in zip(names, type_codes, strict=True) if code == _BIGINT]
        # pandas has no missing integers: one null makes doubles of the whole column, which shows beyond 2^53.
        flags = "".join(f", bool_or({_quoted(name)} IS NULL) OVER ()" for name in bigints)
        with cursor.copy(f"COPY (SELECT *{flags} FROM ({query}) AS rows) TO STDOUT (FORMAT BINARY)") as copy:
            rows = _rows(copy)
            while chunk := list(islice(rows, size)):
                columns = _columns(chunk, len(names) + len(bigints))
                has_null = {
                    name: flag.numbers("?")[0]
                    for name, flag in zip(bigints, columns[len(names) :], strict=True)
                }
                arrays = [
                    _array(fields, code, has_null.get(name, False))
                    for name, code, fields in zip(names, type_codes, columns, strict=False)
                ]
                yield pa.RecordBatch.from_arrays(arrays, names=names)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _rows(copy: psycopg.Copy) -> Iterator[bytes]:
    header_size = _HEADER_SIZE
    for message in copy:
        row = bytes(message)[header_size:]
        header_size = 0
        if row and row != _TRAILER:
            yield row


def _array(fields: _Fields, type_code: int, as_doubles: bool) -> pa.Array:
    values = _READERS[type_code](fields).cast(pg_type_code_to_arrow(type_code))
    return values.cast(pa.float64(), safe=False) if as_doubles else values


def _columns(rows: Sequence[bytes], count: int) -> list[_Fields]:
    data = np.frombuffer(b"".join(rows), np.uint8)
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    at = np.cumsum(sizes) - sizes + 2  # the first two bytes count the fields
    columns = []
    for _ in range(count):
        columns.append(_fields_at(data, at))
        at = columns[-1].ends
    return columns


def _fields_at(data: np.ndarray, at: np.ndarray) -> _Fields:
    """Fields as they stand in rows and arrays: four bytes of length, then the value."""
    return _Fields(data, at + 4, _numbers(data, at, ">i4").astype(np.int64))


def _numbers(data: np.ndarray, at: np.ndarray, dtype: str) -> np.ndarray:
    """The big-endian number at each place, in the machine's byte order."""
    width = np.dtype(dtype).itemsize
    values = np.ascontiguousarray(data[at[:, None] + np.arange(width)]).view(dtype).ravel()
    return values.astype(values.dtype.newbyteorder("="))


# One reader per type of PostgreSQL: an array of as many values as there are fields.


def _read_numbers(dtype: str) -> Callable[[_Fields], pa.Array]:
    return lambda fields: pa.array(fields.numbers(dtype), mask=fields.is_null)


def _read_booleans(fields: _Fields) -> pa.Array:
    return pa.array(fields.numbers(">u1") != 0, mask=fields.is_null)


def _read_bytes(fields: _Fields) -> pa.Array:
    return pc.if_else(pa.array(fields.is_null), None, fields.bytes()).cast(pa.binary())


def _read_text(fields: _Fields) -> pa.Array:
    return _read_bytes(fields).cast(pa.string())


def _read_timestamps(fields: _Fields) -> pa.Array:
    microseconds = np.where(fields.is_null, 0, fields.numbers(">i8"))
    first, last = _FIRST_US - _EPOCH_2000_US, _LAST_US - _EPOCH_2000_US
    if ((microseconds < first) | (microseconds > last)).any():
        raise NotInColumns("times that Python does not know")
    return pa.array(microseconds + _EPOCH_2000_US, mask=fields.is_null).cast(pa.timestamp("us"))


# An array: dimensions, whether it has nulls, its elements' type; per dimension size and first index; elements.
_SIZE_AT, _ELEMENTS_AT = 12, 20


def _read_lists(
    read: Callable[[_Fields], pa.Array], width: int | None = None
) -> Callable[[_Fields], pa.Array]:
    """Lists of elements that `read` reads, all `width` bytes wide or each of its own length."""

    def read_lists(fields: _Fields) -> pa.Array:
        present = fields.present()
        dimensions = _numbers(fields.data, present.starts, ">i4")
        if (dimensions > 1).any():
            raise NotInColumns("arrays of arrays")
        sizes = np.zeros(len(fields.starts), np.int64)
        is_filled = np.flatnonzero(~fields.is_null)[dimensions == 1]
        firsts = fields.starts[is_filled]
        sizes[is_filled] = _numbers(fields.data, firsts + _SIZE_AT, ">i4")
        places = _element_places(fields.data, firsts + _ELEMENTS_AT, sizes[is_filled], width)
        values = read(_fields_at(fields.data, places))
        offsets = pa.array(np.concatenate(([0], np.cumsum(sizes))), pa.int32())
        return pa.ListArray.from_arrays(offsets, values, mask=pa.array(fields.is_null))

    return read_lists


def _element_places(data: np.ndarray, firsts: np.ndarray, sizes: np.ndarray, width: int | None) -> np.ndarray:
    """Where each element of each list starts with its length."""
    starts = np.cumsum(sizes) - sizes
    if width is not None:
        within = np.arange(sizes.sum()) - np.repeat(starts, sizes)
        return np.repeat(firsts, sizes) + within * (4 + width)
    places = np.empty(sizes.sum(), np.int64)
    at = firsts.copy()
    for position in range(sizes.max(initial=0)):
        is_long = sizes > position
        places[starts[is_long] + position] = at[is_long]
        at[is_long] = _fields_at(data, at[is_long]).ends
    return places


_READERS: Mapping[int, Callable[[_Fields], pa.Array]] = {
    16: _read_booleans,
    17: _read_bytes,
    _BIGINT: _read_numbers(">i8"),
    21: _read_numbers(">i2"),
    23: _read_numbers(">i4"),
    25: _read_text,
    700: _read_numbers(">f4"),
    701: _read_numbers(">f8"),
    1000: _read_lists(_read_booleans, 1),
    1001: _read_lists(_read_bytes),
    1005: _read_lists(_read_numbers(">i2")),
    1007: _read_lists(_read_numbers(">i4")),
    1009: _read_lists(_read_text),
    1016: _read_lists(_read_numbers(">i8")),
    1021: _read_lists(_read_numbers(">f4")),
    1022: _read_lists(_read_numbers(">f8")),
    1042: _read_text,
    1043: _read_text,
    1114: _read_timestamps,
    1184: _read_timestamps,
}
