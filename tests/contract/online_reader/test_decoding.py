"""Values and timestamps decode as protobuf decodes them, damaged ones included."""

from datetime import datetime
from typing import Any

import numpy as np
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from app.adapters.feast_layout import decode_timestamp, decode_value
from tests.contract.online_reader.feature_rows import list_value

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
