"""Bulk loads of numbers into PostgreSQL: COPY in its binary format, encoded column by column.

As text a row of counters takes ten times as long here, and PostgreSQL has to parse it. The format is in
PostgreSQL's documentation of COPY; what values look like in it is what their types send to clients.
"""

import io
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain, repeat

import numpy as np
from sqlalchemy import Connection

_OPENING = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
_ENDING = struct.pack(">h", -1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FLOAT8_OID, _TEXT_OID = 701, 25

_LENGTH = struct.Struct(">i").pack
_TIMESTAMP = struct.Struct(">iq").pack
# Dimensions, whether there are nulls, type of the items; then per dimension its length and first index.
_NO_ITEMS = struct.Struct(">3i").pack
_ITEMS = struct.Struct(">5i").pack
_FLOAT8 = np.dtype([("length", ">i4"), ("value", ">f8")])

# Values of one column, each with its length before it.
Column = Sequence[bytes]


def copy_columns(connection: Connection, table: str, names: Sequence[str], columns: Sequence[Column]) -> None:
    """Appends rows to `table`: the first values of all columns are the first row, and so on."""
    count = struct.pack(">h", len(columns))
    values = chain.from_iterable(zip(repeat(count), *columns, strict=False))
    data = io.BytesIO(b"".join((_OPENING, *values, _ENDING)))
    with connection.connection.cursor() as cursor:
        cursor.copy_expert(f"COPY {table} ({', '.join(names)}) FROM STDIN (FORMAT binary)", data)


def texts(values: Sequence[str]) -> Column:
    """For columns of type text."""
    return [_text(value) for value in values]


def float8s(values: Sequence[float] | np.ndarray) -> Column:
    """For columns of type double precision."""
    return _sliced(_items(np.asarray(values, np.float64)))


def float8_rows(matrix: np.ndarray) -> Column:
    """For columns of type double precision[], from a matrix (rows, items of each) with at least one item."""
    row_count, width = matrix.shape
    head = _items_head(width, _FLOAT8_OID, width * _FLOAT8.itemsize)
    rows = np.empty(row_count, np.dtype([("head", f"V{len(head)}"), ("items", _FLOAT8, (width,))]))
    rows["head"] = np.void(head)
    rows["items"] = _items(np.asarray(matrix, np.float64))
    return _sliced(rows)


def float8_arrays(arrays: Sequence[Sequence[float]]) -> Column:
    """For columns of type double precision[] whose rows differ in length."""
    items = _items(np.fromiter(chain.from_iterable(arrays), np.float64)).tobytes()
    column, start = [], 0
    for array in arrays:
        end = start + len(array) * _FLOAT8.itemsize
        column.append(_items_head(len(array), _FLOAT8_OID, end - start) + items[start:end])
        start = end
    return column


def text_arrays(arrays: Sequence[Sequence[str]]) -> Column:
    """For columns of type text[]."""
    column = []
    for array in arrays:
        items = b"".join(map(_text, array))
        column.append(_items_head(len(array), _TEXT_OID, len(items)) + items)
    return column


def timestamps(moments: Sequence[datetime]) -> Column:
    """For columns of type timestamptz, from times with a zone."""
    known: dict[datetime, bytes] = {}
    for moment in moments:
        if moment not in known:
            known[moment] = _TIMESTAMP(8, (moment - _EPOCH) // _MICROSECOND)
    return [known[moment] for moment in moments]


@lru_cache(maxsize=100_000)
def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH(len(encoded)) + encoded


def _items(values: np.ndarray) -> np.ndarray:
    items = np.empty(values.shape, _FLOAT8)
    items["length"] = 8
    items["value"] = values
    return items


def _items_head(count: int, oid: int, byte_count: int) -> bytes:
    """What stands before the items of an array, its own length included."""
    head = _ITEMS(1, 0, oid, count, 1) if count else _NO_ITEMS(0, 0, oid)
    return _LENGTH(len(head) + byte_count) + head


def _sliced(rows: np.ndarray) -> Column:
    data, width = rows.tobytes(), rows.dtype.itemsize
    return [data[start : start + width] for start in range(0, len(data), width)]
