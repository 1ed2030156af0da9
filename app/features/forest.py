"""Gradient-boosted trees as bit masks, for matrices whose columns belong to different things.

QuickScorer (Lucchese et al., SIGIR 2015): every tree has a bit per leaf, numbered from left to right. A node
whose test fails clears the leaves of its left subtree, and a row falls into the leaf of the lowest bit that
remains. The order of the tests does not matter, so the masks of a user's columns, of a context's and of a
candidate's are computed apart, kept as long as their values hold, and joined by AND.

Tests are looked up instead of run: the thresholds of a column cut the line of float32 into intervals, and a table
holds, for each interval, what all failed tests of that column leave of every tree. Looking up rows and scoring them takes
one compiled call each; without these, about ten and seven numpy calls whatever the number of columns and rows.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from app.domain.errors import UnsupportedForest
from app.features import kernels
from app.features.xgboost_trees import Nodes, cuts_of, link_of, ordered, table_of

MAX_TABLE_BYTES = 256 * 2**20

# Masks per step: its buffers (17 bytes each) stay within a core's cache of 1 MB.
_STEP = 32_768


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees that score rows by their masks: (n, tree_count) of `dtype`, one bit for each leaf.

    `cuts`: int64, ascending, where the intervals of the columns begin (see `xgboost_trees.key_of`), without the first.
    `table`: (intervals, tree_count) of `dtype`, the masks of each interval.
    `leaves`: float32 (tree_count * bits of `dtype`,), the values of the leaves, tree after tree.
    `link` turns sums of leaves, float64 (n,), into scores.
    """

    column_count: int
    tree_count: int
    split_columns: np.ndarray = field(repr=False)
    cuts: np.ndarray = field(repr=False)
    table: np.ndarray = field(repr=False)
    leaves: np.ndarray = field(repr=False)
    link: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    _idle: "deque[_Workspace]" = field(repr=False, default_factory=deque)

    @classmethod
    def from_xgboost(cls, model: Mapping[str, Any], max_table_bytes: int = MAX_TABLE_BYTES) -> Self:
        """All trees of the parsed JSON of `Booster.save_raw("json")`.

        Raises:
            UnsupportedForest: no single-output gbtree with a supported objective, a tree with more than 64
                leaves, or a table larger than `max_table_bytes`.
        """
        try:
            learner = model["learner"]
            link = link_of(learner)
            column_count = int(learner["learner_model_param"]["num_feature"])
            nodes = Nodes.read(learner["gradient_booster"]["model"]["trees"])
            nodes.check()
        except (LookupError, TypeError, ValueError) as error:
            raise UnsupportedForest(f"not the JSON of an XGBoost model: {error!r}") from error
        cuts = cuts_of(nodes)
        table_bytes = len(cuts) * nodes.tree_count * nodes.mask_dtype.itemsize
        if table_bytes > max_table_bytes:
            raise UnsupportedForest(f"the table needs {table_bytes} bytes, allowed are {max_table_bytes}")
        return cls(
            column_count=column_count,
            tree_count=nodes.tree_count,
            split_columns=np.unique(nodes.column[nodes.splits]),
            cuts=cuts[1:],  # every value is past the first: how many of the others it is past is its interval
            table=table_of(nodes, cuts),
            leaves=nodes.leaf_values(),
            link=link,
        )

    @property
    def dtype(self) -> np.dtype:
        """Of the masks: the smallest unsigned integer with a bit for every leaf of a tree."""
        return self.table.dtype

    @property
    def nbytes(self) -> int:
        """Memory of the tables, in bytes."""
        return self.cuts.nbytes + self.table.nbytes + self.leaves.nbytes

    def part(self, columns: slice | Sequence[int]) -> "ForestPart":
        """What computes the masks of these columns alone."""
        columns = np.arange(self.column_count)[columns]
        positions = np.flatnonzero(np.isin(columns, self.split_columns))
        return ForestPart(self, len(columns), positions, columns[positions, None] << 32)

    def neutral(self, row_count: int) -> np.ndarray:
        """Masks that leave every leaf: those of columns that no tree tests."""
        return np.full((row_count, self.tree_count), np.iinfo(self.dtype).max, self.dtype)

    def scores(self, masks: np.ndarray) -> np.ndarray:
        """Scores, float32 (n,), of rows whose masks (n, tree_count) are joined over all columns."""
        workspace = self._workspace()
        sums = np.empty(len(masks))
        for rows in _steps(len(masks), workspace.size // max(self.tree_count, 1)):
            self._sum_leaves(masks[rows], workspace, sums[rows])
        self._idle.append(workspace)
        return self.link(sums).astype(np.float32)

    def gathered_scores(
        self, shared: np.ndarray, pools: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        """Scores, float32 (n,), of n rows that are put together from masks of their parts.

        `shared` (tree_count,) belongs to all rows. Each of the one or more `pools` is a pair of masks
        (m, tree_count) and of intp (n,): which of them belongs to which row (that it exists is checked only where it is compiled). The same as joining
        by AND and `scores`, but in cache and without temporaries, whose page faults cost more than the arithmetic.
        """
        row_count = len(pools[0][1])
        sums = np.empty(row_count)
        if kernels.compiled is not None:
            self._compiled.gathered_sums(shared, list(pools), self.leaves, sums)
            return self.link(sums).astype(np.float32)
        workspace = self._workspace()
        for rows in _steps(row_count, workspace.size // max(self.tree_count, 1)):
            shape = rows.stop - rows.start, self.tree_count
            joined, more = workspace.first(self.dtype, shape), workspace.second(self.dtype, shape)
            (masks, slots), *others = pools
            masks.take(slots[rows], axis=0, out=joined, mode="wrap")
            for masks, slots in others:
                joined &= masks.take(slots[rows], axis=0, out=more, mode="wrap")
            joined &= shared
            self._sum_leaves(joined, workspace, sums[rows])
        self._idle.append(workspace)
        return self.link(sums).astype(np.float32)

    def _sum_leaves(self, masks: np.ndarray, workspace: "_Workspace", sums: np.ndarray) -> None:
        """Writes the sum of each row's leaves. `masks` may lie in the workspace's first buffer."""
        # m ^ (m - 1) has the lowest bit of m and all below it: as many as the leaf's number plus one.
        lowest = np.subtract(masks, self.dtype.type(1), out=workspace.second(self.dtype, masks.shape))
        lowest ^= masks
        numbers = np.bitwise_count(lowest, out=workspace.numbers(masks.shape))
        places = np.add(numbers, self._offsets, out=workspace.first(np.intp, masks.shape))
        values = workspace.second(np.float32, masks.shape)
        # "wrap" because "raise" would write through a copy, and "clip" is slower; no place is out of range.
        self.leaves.take(places, out=values, mode="wrap")
        values.sum(axis=1, dtype=np.float64, out=sums)

    @cached_property
    def _compiled(self) -> "_Compiled":
        """The compiled functions for masks of this type."""
        mask_type = f"{self.dtype.name}_t"
        return _Compiled(kernels.compiled.joined_masks[mask_type], kernels.compiled.gathered_sums[mask_type])

    @cached_property
    def _beginnings(self) -> np.ndarray:
        """Int64: where each interval begins, the first one included, and one more behind the last."""
        ends = np.iinfo(np.int64)
        return np.concatenate([[ends.min], self.cuts, [ends.max]])

    @cached_property
    def _offsets(self) -> np.ndarray:
        """Intp (tree_count,): what a leaf's number plus one needs to become its place in `leaves`."""
        return np.arange(self.tree_count) * (8 * self.dtype.itemsize) - 1

    def _workspace(self) -> "_Workspace":
        """Idle buffers, or new ones: each thread that scores at the same time has its own."""
        try:
            return self._idle.pop()
        except IndexError:
            return _Workspace(max(_STEP, self.tree_count * len(self.split_columns)))


@dataclass(frozen=True, eq=False)
class ForestPart:
    """The masks of some columns. `positions` and `_offsets` are of those that any tree tests."""

    forest: Forest
    column_count: int
    positions: np.ndarray = field(repr=False)
    _offsets: np.ndarray = field(repr=False)

    @cached_property
    def _firsts(self) -> np.ndarray:
        """`_offsets` as the compiled functions take them, int64 (k,)."""
        return self._offsets.ravel()

    @cached_property
    def _ranges(self) -> np.ndarray:
        """Where the cuts of each tested column begin and end, intp (k, 2)."""
        return self.forest.cuts.searchsorted(self._firsts[:, None] + [-(1 << 31), 1 << 31])

    @property
    def is_tested(self) -> bool:
        """True if any tree tests one of these columns."""
        return len(self.positions) > 0

    def masks(self, block: np.ndarray) -> np.ndarray:
        """Masks (n, tree_count) of rows of these columns, float32 (n, column_count); NaN is missing.

        Raises:
            ValueError: the block has another number of columns.
        """
        return self.masks_in(self.intervals(block))

    def masks_in(self, intervals: np.ndarray) -> np.ndarray:
        """Masks (n, tree_count) of rows whose values lie in these `intervals`."""
        forest, (tested_count, row_count) = self.forest, intervals.shape
        if tested_count == 0:
            return forest.neutral(row_count)
        masks = np.empty((row_count, forest.tree_count), forest.dtype)
        if kernels.compiled is not None:
            forest._compiled.joined_masks(forest.table, intervals, masks)
            return masks
        workspace = forest._workspace()
        for rows in _steps(row_count, workspace.size // (tested_count * forest.tree_count)):
            shape = tested_count, rows.stop - rows.start, forest.tree_count
            tested = workspace.first(forest.dtype, shape)
            forest.table.take(intervals[:, rows], axis=0, out=tested, mode="wrap")
            np.bitwise_and.reduce(tested, axis=0, out=masks[rows])
        forest._idle.append(workspace)
        return masks

    def pools(self, block: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """One pool per tested column, for `Forest.gathered_scores`: cheaper than `masks` for rows that are scored once.

        Raises:
            ValueError: the block has another number of columns.
        """
        return [(self.forest.table, of_column) for of_column in self.intervals(block)]

    def intervals(self, block: np.ndarray) -> np.ndarray:
        """Which row of the table holds the masks of each value, intp (tested columns, n).

        Raises:
            ValueError: the block has another number of columns.
        """
        if kernels.compiled is None:
            return self.forest.cuts.searchsorted(self._keys(block), side="right")
        self._check(block)
        found = np.empty((len(self.positions), len(block)), np.intp)
        block = np.ascontiguousarray(block, np.float32)
        kernels.compiled.intervals(block, self.positions, self._firsts, self._ranges, self.forest.cuts, found)
        return found

    def lies_in(self, block: np.ndarray, intervals: np.ndarray) -> np.ndarray:
        """Whether all values of a row lie in these intervals, bool (n,), which costs a fraction of finding them."""
        keys, beginnings = self._keys(block), self.forest._beginnings
        return ((beginnings.take(intervals) <= keys) & (keys < beginnings.take(intervals + 1))).all(axis=0)

    def _check(self, block: np.ndarray) -> None:
        if block.shape[1] != self.column_count:
            raise ValueError(f"expected {self.column_count} columns, got {block.shape[1]}")

    def _keys(self, block: np.ndarray) -> np.ndarray:
        self._check(block)
        return ordered(np.asarray(block, np.float32).T.take(self.positions, axis=0)) + self._offsets


class _Compiled(NamedTuple):
    joined_masks: Callable
    gathered_sums: Callable


class _Workspace:
    """Two buffers of `size` elements of up to 8 bytes and one of `size` bytes, seen as what is needed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._first, self._second = np.empty(8 * size, np.uint8), np.empty(8 * size, np.uint8)
        self._numbers = np.empty(size, np.uint8)

    def first(self, dtype, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, dtype, self._first)

    def second(self, dtype, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, dtype, self._second)

    def numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, np.uint8, self._numbers)


def _steps(row_count: int, rows_per_step: int) -> Iterator[slice]:
    for start in range(0, row_count, rows_per_step):
        yield slice(start, min(start + rows_per_step, row_count))
