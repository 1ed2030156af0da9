"""Columns of many rows that can lie in files: plain arrays, and rows of different lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RaggedColumn:
    """n rows of different lengths, in blocks that are only ever appended.

    A changed row is appended and pointed to anew, so that the blocks before it stay as they are, also on
    disk. `starts` int64 (n,) counts items over all blocks, `lengths` int32 (n,). Neighbouring blocks of
    like size are merged, so n rows that change one by one make O(log n) blocks.
    """

    blocks: tuple[np.ndarray, ...]
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def empty(cls, dtype) -> "RaggedColumn":
        return cls((np.zeros(0, dtype),), np.zeros(0, np.int64), np.zeros(0, np.int32))

    def row(self, position: int) -> np.ndarray:
        """The items of one row, without a copy."""
        return self._slice(int(self.starts[position]), int(self.lengths[position]))

    def texts(self, positions: np.ndarray) -> list[bytes]:
        """The rows at `positions` as bytes."""
        starts, lengths = self.starts[positions].tolist(), self.lengths[positions].tolist()
        return [self._slice(start, length).tobytes() for start, length in zip(starts, lengths, strict=True)]

    def _slice(self, start: int, length: int) -> np.ndarray:
        for block in self.blocks:
            if start < len(block):
                return block[start : start + length]
            start -= len(block)
        return self.blocks[-1][:0]

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All items of the rows at `positions`, and for each item the number of its row in `positions`."""
        lengths = self.lengths[positions]
        row_numbers = np.arange(len(positions)).repeat(lengths)
        ahead = self.starts[positions] + lengths - lengths.cumsum()  # of an item's place to its number here
        return self._items_at(ahead[row_numbers] + np.arange(len(row_numbers))), row_numbers

    def with_rows(self, positions: np.ndarray, rows: Sequence, row_count: int) -> "RaggedColumn":
        """The column grown to `row_count` rows, with these rows (sequences of items) at `positions`."""
        dtype = self.blocks[0].dtype
        arrays = [np.frombuffer(r, dtype) if isinstance(r, bytes) else np.asarray(r, dtype) for r in rows]
        lengths = np.array([len(array) for array in arrays], dtype=np.int32)
        if not len(arrays):
            return self
        starts = grown(self.starts, row_count, 0)
        starts[positions] = sum(map(len, self.blocks)) + np.cumsum(lengths) - lengths
        blocks = (*self.blocks, np.concatenate([np.zeros(0, dtype), *arrays]))
        return RaggedColumn(_merged(blocks), starts, updated(self.lengths, positions, lengths, row_count, 0))

    def _items_at(self, places: np.ndarray) -> np.ndarray:
        """The items with these numbers over all blocks, without a copy of the blocks, which may be large."""
        first, *others = self.blocks
        if not others:
            return first[places]
        items, start = np.empty(len(places), first.dtype), 0
        for block in self.blocks:
            is_here = (places >= start) & (places < start + len(block))
            items[is_here] = block[places[is_here] - start]
            start += len(block)
        return items


def _merged(blocks: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    while len(blocks) > 1 and len(blocks[-1]) * 2 > len(blocks[-2]):
        blocks = (*blocks[:-2], np.concatenate(blocks[-2:]))
    return blocks


def grown(column: np.ndarray, row_count: int, fill) -> np.ndarray:
    """A copy of the column with `row_count` rows; the new ones hold `fill`."""
    copy = np.full((row_count, *column.shape[1:]), fill, column.dtype)
    copy[: len(column)] = column
    return copy


def updated(column: np.ndarray, positions: np.ndarray, values, row_count: int, fill) -> np.ndarray:
    """The column with `row_count` rows and `values` at `positions`; itself where that changes nothing."""
    values = np.asarray(values, column.dtype)
    if row_count == len(column) and np.array_equal(
        column[positions], values, equal_nan=column.dtype.kind == "f"
    ):
        return column
    copy = grown(column, row_count, fill)
    copy[positions] = values
    return copy
