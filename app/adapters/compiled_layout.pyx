# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What is decoded most often of Feast's Redis layout, compiled; see `feast_layout` and `online_reader`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_FromDouble
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport NAN
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    SECONDS = 0x08  # the tags of a timestamp's fields, both varints
    NANOS = 0x10
    DOUBLE = 0x29  # of values: eight bytes follow this one, a length and so many bytes the next three
    TEXT_VALUE = 0x12
    TEXTS_VALUE = 0x62
    DOUBLES_VALUE = 0x7A
    ITEM = 0x0A  # of a list of texts, or all numbers of one of doubles


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


def freshness(replies, place, oldest_ns, missing, fresh, stale):
    """As `online_reader._freshness`, with what to call each state. Raises IndexError for a reply without a value at `place`."""
    cdef list states = [], of_fresh = []
    cdef Py_ssize_t number = 0
    newest_ns = None
    for reply in replies:
        serialized = reply[place]
        if serialized is None:
            states.append(missing)
        else:
            at_ns = decode_timestamp(serialized)
            if at_ns and (newest_ns is None or at_ns > newest_ns):
                newest_ns = at_ns
            if at_ns >= oldest_ns:
                states.append(fresh)
                of_fresh.append(number)
            else:
                states.append(stale)
        number += 1
    return states, of_fresh, newest_ns


def decode_value(bytes serialized not None):
    """As `feast_layout.decode_value` of a double, a text, and lists of these; None if it is something else, or unusual: a list
    of doubles in several parts or of a text with more than 127 bytes, or bytes of the wrong length. Raises ValueError for
    a text that is not UTF-8."""
    cdef const unsigned char* message = <const unsigned char*> PyBytes_AS_STRING(serialized)
    cdef Py_ssize_t position, end = PyBytes_GET_SIZE(serialized)
    cdef uint64_t length
    cdef double number
    if not end:
        return None
    if message[0] == DOUBLE:
        if end != 9:
            return None
        memcpy(&number, message + 1, sizeof(double))
        return number
    position = _varint(message, 1, end, &length)
    if position < 0 or length != <uint64_t> (end - position):
        return None
    if message[0] == TEXT_VALUE:
        return PyUnicode_DecodeUTF8(<const char*> message + position, end - position, NULL)
    if message[0] == TEXTS_VALUE:
        return _texts(message + position, end - position)
    if message[0] == DOUBLES_VALUE:
        return _doubles(message + position, end - position)
    return None


cdef tuple _texts(const unsigned char* start, Py_ssize_t end):
    cdef Py_ssize_t position = 0, count = 0
    while position < end:
        if position + 2 > end or start[position] != ITEM or start[position + 1] > 0x7F:
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


cdef tuple _doubles(const unsigned char* start, Py_ssize_t end):
    cdef Py_ssize_t position, count, place
    cdef uint64_t length
    cdef double number
    if not end:
        return ()
    position = _varint(start, 1, end, &length)
    if start[0] != ITEM or position < 0 or length != <uint64_t> (end - position) or length % sizeof(double):
        return None
    count = (end - position) // <Py_ssize_t> sizeof(double)
    cdef tuple found = PyTuple_New(count)
    for place in range(count):
        memcpy(&number, start + position + place * sizeof(double), sizeof(double))
        item = PyFloat_FromDouble(number)
        Py_INCREF(item)
        PyTuple_SET_ITEM(found, place, item)
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
