"""Arrow arrays of byte strings, put together without a Python object per row."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BYTES = pa.large_binary()
EMPTY = pa.scalar(b"", BYTES)


def join(*parts: bytes | pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """The parts of each row, one after the other; `bytes` are the same in every row."""
    arrays = [pa.scalar(part, BYTES) if isinstance(part, bytes) else part for part in parts]
    return pc.binary_join_element_wise(*arrays, EMPTY)


def unless(is_empty: np.ndarray, values: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    return pc.if_else(pa.array(is_empty), EMPTY, values) if is_empty.any() else values


def spread(values: pa.LargeBinaryArray, is_empty: pa.BooleanArray) -> pa.LargeBinaryArray:
    """`values` in the places that are not to be empty."""
    return pc.replace_with_mask(pa.repeat(EMPTY, len(is_empty)), pc.invert(is_empty), values)


def of_lengths(data: np.ndarray | pa.Buffer, lengths: np.ndarray) -> pa.LargeBinaryArray:
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return pa.Array.from_buffers(BYTES, len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def of_equal_width(values: np.ndarray) -> pa.LargeBinaryArray:
    """The memory of each number."""
    return of_lengths(np.ascontiguousarray(values), np.full(len(values), values.itemsize))


def regrouped(elements: pa.LargeBinaryArray, sizes: np.ndarray) -> pa.LargeBinaryArray:
    """Each `sizes[i]` of the elements in a row become one byte string."""
    _, offsets, data = elements.buffers()
    ends = np.frombuffer(offsets, np.int64)[elements.offset :]
    rows = ends[np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))]
    return pa.Array.from_buffers(BYTES, len(sizes), [None, pa.py_buffer(rows), data])


def content(values: pa.LargeBinaryArray, start: int, stop: int) -> memoryview:
    """The bytes of some rows, one after the other, without a copy."""
    _, offsets, data = values.buffers()
    ends = memoryview(offsets).cast("q")
    return memoryview(data)[ends[values.offset + start] : ends[values.offset + stop]]
