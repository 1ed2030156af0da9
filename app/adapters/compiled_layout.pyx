# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What is decoded most often of Feast's Redis layout, compiled; see `feast_layout` and `online_reader`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport NAN
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    SECONDS = 0x08  # the tags of a timestamp's fields, both varints
    NANOS = 0x10
    TEXT = 0x0A  # of an item of a list
    DOUBLE = 0x29  # of a value that is one


def decode_timestamp(bytes serialized not None):
    """As `feast_layout.decode_timestamp`."""
    cdef const unsigned char* message = <const unsigned char*> PyBytes_AS_STRING(serialized)
    cdef Py_ssize_t position = 0, end = PyBytes_GET_SIZE(serialized)
    cdef uint64_t content, seconds = 0, nanos = 0
    cdef unsigned char tag
    while position < end:
        tag = message[position]
        position = _varint(message, position + 1, end, &content)
        if position < 0:
            raise ValueError("a number ends before its time, or has more than 64 bits")
        if tag == SECONDS:
            seconds = content
        elif tag == NANOS:
            nanos = content
        else:
            raise ValueError(f"a timestamp has no field of tag {tag}")
    if nanos >= 1_000_000_000:
        raise ValueError(f"{nanos} nanoseconds are no part of a second")
    return <object> <int64_t> seconds * 1_000_000_000 + nanos


def texts(bytes message not None):
    """A tuple of the texts in a list message; None where one is longer than 127 bytes, or something else is in it."""
    cdef const unsigned char* start = <const unsigned char*> PyBytes_AS_STRING(message)
    cdef Py_ssize_t position = 0, end = PyBytes_GET_SIZE(message), count = 0
    while position < end:
        if position + 2 > end or start[position] != TEXT or start[position + 1] > 0x7F:
            return None
        position += 2 + start[position + 1]
        count += 1
    if position != end:
        return None
    cdef tuple found = PyTuple_New(count)
    position = 0
    for number in range(count):
        text = PyUnicode_DecodeUTF8(<const char*> start + position + 2, start[position + 1], NULL)
        Py_INCREF(text)
        PyTuple_SET_ITEM(found, number, text)
        position += 2 + start[position + 1]
    return found


def counters(
    replies, list fresh, list places, as_of, bytes opening not None, double[:, :, ::1] counts, double[::1] as_of_s
):
    """Writes counts (n, event types, half-lives) and their times (n,) of the `fresh` of n replies, and of no row of the others.

    `places` are the values of a reply that hold the counts of each event type, `as_of` the one with their time; `opening` stands before
    the numbers of a counter. Returns False, and has not written all, if a value looks otherwise. Raises IndexError for a reply with fewer values.
    """
    cdef Py_ssize_t size = counts.shape[2] * sizeof(double), opening_size = PyBytes_GET_SIZE(opening)
    cdef Py_ssize_t row, number
    cdef const char* content
    if not counts.shape[0] == as_of_s.shape[0] == len(replies) or counts.shape[1] != len(places) or not counts.shape[2]:
        raise ValueError("the arrays do not fit together")
    for row in range(counts.shape[0]):
        as_of_s[row] = NAN
        memset(&counts[row, 0, 0], 0, counts.shape[1] * size)
    for row in fresh:
        if not 0 <= row < counts.shape[0]:
            raise IndexError(f"row {row} of {len(replies)}")
        reply = replies[row]
        for number in range(counts.shape[1]):
            value = reply[places[number]]
            if type(value) is not bytes or PyBytes_GET_SIZE(value) != opening_size + size:
                return False
            content = PyBytes_AS_STRING(value)
            if memcmp(content, PyBytes_AS_STRING(opening), opening_size):
                return False
            memcpy(&counts[row, number, 0], content + opening_size, size)
        value = reply[as_of]
        if type(value) is not bytes or PyBytes_GET_SIZE(value) != 9 or PyBytes_AS_STRING(value)[0] != DOUBLE:
            return False
        memcpy(&as_of_s[row], PyBytes_AS_STRING(value) + 1, sizeof(double))
    return True


cdef Py_ssize_t _varint(const unsigned char* message, Py_ssize_t position, Py_ssize_t end, uint64_t* value) noexcept:
    # The position behind the number at `position`, or -1 if it does not end or has more than 64 bits.
    cdef int shift
    value[0] = 0
    for shift in range(0, 70, 7):
        if position >= end:
            return -1
        value[0] |= <uint64_t> (message[position] & 0x7F) << shift
        position += 1
        if message[position - 1] < 0x80:
            return position
    return -1
