"""What is compiled of the decoding of Feast's layout reads, or refuses, what Python does."""

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.adapters import feast_layout
from app.adapters.online_reader import _View
from app.features.schema import ViewSchema
from tests.builders import SMALL_SCHEMA
from tests.unit.test_compiled import both


@given(st.binary(max_size=14) | st.lists(st.sampled_from([8, 16, 127, 128, 255, 1]), max_size=24).map(bytes))
def test_timestamps_are_read_or_refused_as_without(serialized):
    ours, pythons = both(lambda: outcome(feast_layout.decode_timestamp, serialized))

    assert ours == pythons


def value_of(field: int, content: bytes) -> bytes:
    return feast_layout._length_delimited(field, len(content)) + content


def list_of(items: list[bytes]) -> bytes:
    return b"".join(value_of(1, item) for item in items)


any_text = st.binary(max_size=150) | st.text(max_size=150).map(str.encode)
any_numbers = st.lists(st.floats(), max_size=20).map(lambda some: struct.pack(f"<{len(some)}d", *some))
any_value = (
    st.floats().map(lambda number: b"\x29" + struct.pack("<d", number))
    | any_text.map(lambda text: value_of(2, text))
    | st.lists(any_text, max_size=6).map(lambda texts: value_of(12, list_of(texts)))
    | any_numbers.map(lambda packed: value_of(15, value_of(1, packed)))
    | st.lists(any_numbers, max_size=3).map(lambda parts: value_of(15, list_of(parts)))
)
# Read with lengths of one byte, it would be another list.
LONG_TEXT = value_of(12, list_of([b"a" * 127 + b"\n", b"b" * 9]))


@given(any_value, st.sampled_from([0, 0, 0, 1, 9]), st.binary(max_size=3))
@example(LONG_TEXT, 0, b"")
@example(value_of(12, b""), 0, b"\n\x01")
@example(value_of(15, b""), 0, b"")
@example(value_of(15, value_of(1, bytes(8)) + b"\x09" + bytes(8)), 0, b"")  # packed, and one by one
@example(value_of(15, value_of(1, bytes(12))), 0, b"")
@example(value_of(15, value_of(2, bytes(8))), 0, b"")
@example(value_of(2, bytes(7)), 0, b"")  # as long as a double
@example(b"\x29" + bytes(8), 0, b"\0")
@example(b"\x7a", 0, b"")
def test_values_are_read_or_refused_as_without(serialized, lost, garbage):
    serialized = serialized[: len(serialized) - lost] + garbage

    ours, pythons = both(lambda: outcome(lambda value: repr(feast_layout.decode_value(value)), serialized))

    assert ours == pythons


def outcome(decode: Callable, serialized: bytes) -> Any:
    try:
        return decode(serialized)
    except (ValueError, IndexError, TypeError) as error:
        return ValueError if isinstance(error, ValueError) else type(error)


numbers = st.lists(st.floats(allow_nan=False, width=32), min_size=2, max_size=2)
counter = numbers.map(lambda two: feast_layout.doubles_opening(2) + struct.pack("<2d", *two))
two_of_something = bytes(len(feast_layout.doubles_opening(2)) + 16)
unusual = st.sampled_from(
    [None, b"", feast_layout.doubles_opening(1) + bytes(8), two_of_something, b"\x29" + bytes(8)]
)
# Never, long ago, lately, later, at the epoch, and what is no timestamp.
written = st.sampled_from(
    [None, b"\x08\x05", b"\x08\xff\x01", b"\x08\xff\x01\x10\x01", b"", b"\x08\x00", b"\x08", "text", 5]
)
time = st.floats(0, 2e9).map(lambda at: b"\x29" + struct.pack("<d", at)) | st.sampled_from(
    [None, b"\x21" + bytes(8)]
)


OLDEST_FRESH, LAST_STALE = b"\x08\x9b\x01", b"\x08\x9a\x01"  # 155 s and 154 s, of 255 less the view's 100
FRESH, ZEROS, NOON_BYTES = b"\x08\xff\x01", feast_layout.doubles_opening(2) + bytes(16), b"\x29" + bytes(8)


@example([(FRESH, two_of_something, ZEROS, ZEROS, ZEROS, NOON_BYTES)])
@example([(FRESH, ZEROS, ZEROS, ZEROS, ZEROS, b"\x21" + bytes(8))])
@example([(FRESH, ZEROS, ZEROS, ZEROS, ZEROS)])
@example(
    [
        (written, ZEROS, ZEROS, ZEROS, ZEROS, NOON_BYTES)
        for written in (FRESH, OLDEST_FRESH, LAST_STALE, FRESH)
    ]
)
@example([()])
@example([(), (FRESH, ZEROS, ZEROS, ZEROS, ZEROS, NOON_BYTES)])
@given(st.lists(st.tuples(written, *[counter | unusual] * 4, time), max_size=4))
def test_rows_of_counters_are_read_or_refused_as_without(counter_view, replies):
    def decode(start: int):
        shifted = [(b"of another view",) * start + reply for reply in replies]
        rows = _View(counter_view, start).decode(shifted, 2, now_ns=255 * 10**9)
        counts, as_of_s = rows.rows.counts.tolist(), np.nan_to_num(rows.rows.as_of_s, nan=-1.0).tolist()
        return rows.states, rows.age_s, counts, as_of_s

    for start in (0, 1):
        ours, pythons = both(lambda start=start: outcome(lambda _: decode(start), b""))

        assert ours == pythons


@pytest.fixture(scope="module")
def counter_view() -> ViewSchema:
    return replace(SMALL_SCHEMA.view("user_activity"), ttl_s=100.0)
