"""The quick ways through Feast's lists give what the general one gives, whatever the bytes."""

from hypothesis import given
from hypothesis import strategies as st

from app.adapters import feast_layout


def outcome(decode, message: bytes):
    try:
        return decode(message)
    except ValueError:
        return ValueError


def list_of(texts: list[bytes]) -> bytes:
    return b"".join(feast_layout._length_delimited(1, len(text)) + text for text in texts)


@given(st.lists(st.binary(max_size=150), max_size=6), st.binary(max_size=3))
def test_texts_of_any_length_and_garbage_behind_them_read_as_in_the_general_way(texts, garbage):
    message = list_of(texts) + garbage

    assert outcome(feast_layout._texts, message) == outcome(feast_layout._any_texts, message)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 200), max_size=8))
def test_packed_numbers_read_as_they_were_written_whatever_their_size(numbers):
    packed = b"".join(map(feast_layout._varint, numbers))

    assert feast_layout._packed_varints(int)(packed) == tuple(numbers)
