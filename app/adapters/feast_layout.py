"""Feast's Redis layout, byte by byte, without Feast: keys, names of hash fields, values, timestamps.

A hash per entity key (docs/specs/online_store_format.md of Feast; entity keys of version 3) holds per
feature a protobuf `Value`, and per view a protobuf `Timestamp`. Importing Feast takes seconds and more
memory than the rest of a web worker, and its protobufs cost more than the decoding here.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import mmh3
import numpy as np

try:
    from app.adapters import compiled_layout
except ImportError:
    compiled_layout = None

_STRING_TYPE = 2  # Feast's ValueType.STRING
_DOUBLE = struct.Struct("<d")
_FLOAT = struct.Struct("<f")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_TEXT_TAG = 1 << 3 | _BYTES  # of an item in a list


def entity_key_opening(join_key: str) -> bytes:
    """What stands before the length and the bytes of the key's value."""
    name = join_key.encode()
    return struct.pack(f"<3I{len(name)}sI", 1, _STRING_TYPE, len(name), name, _STRING_TYPE)


def timestamp_field(view: str) -> bytes:
    return f"_ts:{view}".encode()


def value_field(view: str, feature: str) -> bytes:
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def decode_timestamp(serialized: bytes) -> int:
    """Nanoseconds since the epoch.

    Raises:
        ValueError: these bytes are no timestamp.
    """
    if compiled_layout is not None:
        return compiled_layout.decode_timestamp(serialized)
    seconds = nanos = position = 0
    while position < len(serialized):
        tag = serialized[position]
        content, position = _read_varint(serialized, position + 1)
        if tag == 1 << 3 | _VARINT:
            seconds = _signed(content)
        elif tag == 2 << 3 | _VARINT:
            nanos = content
        else:
            raise ValueError(f"a timestamp has no field of tag {tag}")
    if nanos >= 1_000_000_000:
        raise ValueError(f"{nanos} nanoseconds are no part of a second")
    return seconds * 1_000_000_000 + nanos


def decode_value(serialized: bytes | None) -> Any:
    """A number, bool, text, bytes, a tuple of such, or None for null.

    Raises:
        ValueError: these bytes are no value, or one of a type that features here cannot have.
    """
    if not serialized:
        return None
    if not isinstance(serialized, bytes):
        raise ValueError(f"{type(serialized).__name__} instead of a value")
    if compiled_layout is not None and (value := compiled_layout.decode_value(serialized)) is not None:
        return value
    if len(serialized) == 9 and serialized[0] == _DOUBLE_TAG:  # by far the most, without the generality
        return _DOUBLE.unpack_from(serialized, 1)[0]
    (tag, content), *more = _fields(serialized)
    if tag not in _VALUES or more:
        raise ValueError(f"features here have no values with Feast's field {tag >> 3}, wire type {tag & 7}")
    return _VALUES[tag](content)


def doubles_opening(count: int) -> bytes:
    """The bytes before the numbers (little-endian float64) in a list of `count` > 0 doubles."""
    numbers = _length_delimited(1, 8 * count)
    return _length_delimited(15, len(numbers) + 8 * count) + numbers


def _length_delimited(field: int, length: int) -> bytes:
    return bytes([field << 3 | _BYTES]) + _varint(length)


def _varint(value: int) -> bytes:
    head = bytearray()
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(tag, content) of a protobuf message; the content is an int for varints, else bytes."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_varint(message, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            content, position = _read_varint(message, position)
            yield tag, content
            continue
        if wire_type == _BYTES:
            length, position = _read_varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"protobuf knows no wire type {wire_type}")
        if position + length > end:
            raise ValueError("a value ends before its time")
        yield tag, message[position : position + length]
        position += length


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, at most 64 bits, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("a number ends before its time")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ValueError("a number has more than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _signed32(value: int) -> int:
    low = value & 0xFFFF_FFFF
    return low - (1 << 32) if low >> 31 else low


def _double(content: bytes) -> float:
    return _DOUBLE.unpack(content)[0]


def _float(content: bytes) -> float:
    return _FLOAT.unpack(content)[0]


def _null(content: int) -> None:
    return None


def _packed_doubles(content: bytes) -> tuple[float, ...]:
    return tuple(np.frombuffer(content, "<f8").tolist())


def _packed_floats(content: bytes) -> tuple[float, ...]:
    return tuple(np.frombuffer(content, "<f4").tolist())


def _packed_varints(convert: Callable[[int], Any]) -> Callable[[bytes], tuple[Any, ...]]:
    def decode(content: bytes) -> tuple[Any, ...]:
        if content.isascii():  # each number is one byte
            return tuple(map(convert, content))
        values, position = [], 0
        while position < len(content):
            value, position = _read_varint(content, position)
            values.append(convert(value))
        return tuple(values)

    return decode


def _list(wire_type: int, decode_item: Callable, decode_packed: Callable | None = None) -> Callable:
    """A decoder of Feast's list messages: `repeated ... val = 1`, numbers one by one or packed."""

    def decode(message: bytes) -> tuple[Any, ...]:
        values: tuple[Any, ...] = ()
        for tag, content in _fields(message):
            if tag == 1 << 3 | wire_type:
                values += (decode_item(content),)
            elif tag == 1 << 3 | _BYTES and decode_packed is not None:
                values += decode_packed(content)
            else:
                raise ValueError(f"a list has no field of tag {tag}")
        return values

    return decode


_any_texts = _list(_BYTES, bytes.decode)


def _texts(message: bytes) -> tuple[str, ...]:
    """As `_any_texts`, without the generality for texts shorter than 128 bytes, as ids are."""
    values, position, end = [], 0, len(message)
    while position < end - 1:
        begin = position + 2
        position = begin + message[position + 1]
        if message[begin - 2] != _TEXT_TAG or message[begin - 1] > 0x7F or position > end:
            return _any_texts(message)
        values.append(message[begin:position].decode())
    return tuple(values) if position == end else _any_texts(message)


_bytes_list = _list(_BYTES, bytes)
_integers = _list(_VARINT, _signed, _packed_varints(_signed))
_integers32 = _list(_VARINT, _signed32, _packed_varints(_signed32))
_bools = _list(_VARINT, bool, _packed_varints(bool))
_doubles = _list(_FIXED64, _double, _packed_doubles)
_floats = _list(_FIXED32, _float, _packed_floats)

# Feast's Value, by field number and wire type.
_DOUBLE_TAG = 5 << 3 | _FIXED64
_VALUES: dict[int, Callable[[Any], Any]] = {
    1 << 3 | _BYTES: bytes,
    2 << 3 | _BYTES: bytes.decode,
    3 << 3 | _VARINT: _signed32,
    4 << 3 | _VARINT: _signed,
    _DOUBLE_TAG: _double,
    6 << 3 | _FIXED32: _float,
    7 << 3 | _VARINT: bool,
    8 << 3 | _VARINT: _signed,
    11 << 3 | _BYTES: _bytes_list,
    12 << 3 | _BYTES: _texts,
    13 << 3 | _BYTES: _integers32,
    14 << 3 | _BYTES: _integers,
    15 << 3 | _BYTES: _doubles,
    16 << 3 | _BYTES: _floats,
    17 << 3 | _BYTES: _bools,
    18 << 3 | _BYTES: _integers,
    19 << 3 | _VARINT: _null,
}
