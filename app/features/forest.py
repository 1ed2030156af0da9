"""Gradient-boosted trees as bit masks, for matrices whose columns belong to different things.

QuickScorer (Lucchese et al., SIGIR 2015): every tree has a bit per leaf, numbered from left to right. A node
whose test fails clears the leaves of its left subtree, and a row falls into the leaf of the lowest bit that
remains. The order of the tests does not matter, so the masks of a user's columns, of a context's and of a
candidate's are computed apart, kept as long as their values hold, and joined by AND.

Tests are looked up instead of run: the thresholds of a column cut the line of float32 into intervals, and a table
holds, for each interval, what all failed tests of that column leave of every tree. Looking up a row takes
about ten numpy calls whatever the number of columns, and scoring n rows about seven.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np

from app.domain.errors import UnsupportedForest

MAX_LEAVES = 64
MAX_TABLE_BYTES = 256 * 2**20

# Masks per step: its buffers (17 bytes each) stay within a core's cache of 1 MB.
_STEP = 32_768

# Their scores are the sums themselves.
_IDENTITY_OBJECTIVES = ("rank:pairwise", "rank:ndcg", "rank:map", "reg:squarederror")
# From here on float32 knows only 0 and 1.
_MAX_LOGIT = 88.7

_INT32_MAX = 2**31 - 1
# As `_ordered` puts them: the least NaN with a sign, minus infinity, the least NaN without a sign.
_SIGNED_NAN, _MINUS_INFINITY, _NAN = -(2**31), -(2**31) + 0x7FFFFF, 0x7F80_0001


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees that score rows by their masks: (n, tree_count) of `dtype`, one bit for each leaf.

    `cuts`: int64, ascending, where the intervals of the columns begin (see `_key`), without the first.
    `table`: (intervals, tree_count) of `dtype`, the masks of each interval.
    `leaves`: float64 (tree_count * bits of `dtype`,), the values of the leaves, tree after tree.
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
            link = _link(learner)
            column_count = int(learner["learner_model_param"]["num_feature"])
            nodes = _Nodes.read(learner["gradient_booster"]["model"]["trees"])
            nodes.check()
        except (LookupError, TypeError, ValueError) as error:
            raise UnsupportedForest(f"not the JSON of an XGBoost model: {error!r}") from error
        cuts = _cuts(nodes)
        table_bytes = len(cuts) * nodes.tree_count * nodes.mask_dtype.itemsize
        if table_bytes > max_table_bytes:
            raise UnsupportedForest(f"the table needs {table_bytes} bytes, allowed are {max_table_bytes}")
        return cls(
            column_count=column_count,
            tree_count=nodes.tree_count,
            split_columns=np.unique(nodes.column[nodes.splits]),
            cuts=cuts[1:],  # every value is past the first: how many of the others it is past is its interval
            table=_table(nodes, cuts),
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
        (m, tree_count) and of intp (n,): which of them belongs to which row (not checked to exist). The same as joining
        by AND and `scores`, but in cache and without temporaries, whose page faults cost more than the arithmetic.
        """
        row_count = len(pools[0][1])
        workspace = self._workspace()
        sums = np.empty(row_count)
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
        values = workspace.second(np.float64, masks.shape)
        # "wrap" because "raise" would write through a copy, and "clip" is slower; no place is out of range.
        self.leaves.take(places, out=values, mode="wrap")
        np.einsum("ij->i", values, out=sums)

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

    @property
    def is_tested(self) -> bool:
        """True if any tree tests one of these columns."""
        return len(self.positions) > 0

    def masks(self, block: np.ndarray) -> np.ndarray:
        """Masks (n, tree_count) of rows of these columns, float32 (n, column_count); NaN is missing.

        Raises:
            ValueError: the block has another number of columns.
        """
        forest, tested_count = self.forest, len(self.positions)
        intervals = self._intervals(block)
        if tested_count == 0:
            return forest.neutral(len(block))
        masks = np.empty((len(block), forest.tree_count), forest.dtype)
        workspace = forest._workspace()
        for rows in _steps(len(block), workspace.size // (tested_count * forest.tree_count)):
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
        return [(self.forest.table, of_column) for of_column in self._intervals(block)]

    def _intervals(self, block: np.ndarray) -> np.ndarray:
        """Which row of the table holds the masks of each value, intp (tested columns, n)."""
        if block.shape[1] != self.column_count:
            raise ValueError(f"expected {self.column_count} columns, got {block.shape[1]}")
        values = np.asarray(block, np.float32).T.take(self.positions, axis=0)
        return self.forest.cuts.searchsorted(_ordered(values) + self._offsets, side="right")


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


def _link(learner: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """What XGBoost does to the sums of leaves, if it is one of the supported objectives.

    Raises LookupError or ValueError for what is no model, UnsupportedForest for one of another kind.
    """
    booster, parameters = learner["gradient_booster"], learner["learner_model_param"]
    objective = learner["objective"]["name"]
    output_count = max(int(parameters["num_class"]), int(parameters.get("num_target", 1)))
    if booster["name"] != "gbtree":
        raise UnsupportedForest(f"the booster is {booster['name']}, supported is gbtree")
    if output_count > 1:
        raise UnsupportedForest("the model has several outputs, supported is one")
    base_score = float(parameters["base_score"].strip("[]"))
    if objective in _IDENTITY_OBJECTIVES:
        return lambda sums: sums + base_score
    if objective == "binary:logistic":
        margin = np.log(base_score / (1.0 - base_score))  # it is kept as a probability
        return lambda sums: 1.0 / (1.0 + np.exp(-np.clip(sums + margin, -_MAX_LOGIT, _MAX_LOGIT)))
    raise UnsupportedForest(
        f"the objective is {objective}, supported are binary:logistic and {_IDENTITY_OBJECTIVES}"
    )


@dataclass(frozen=True, eq=False)
class _Nodes:
    """All nodes of all trees, numbered through. `left` and `right` are -1 at leaves.

    `roots`: the first node of each tree. `condition`: float32, the threshold of a split, the value of a leaf.
    `categories`: the codes that fail a test (go right), each with its node in `category_nodes`.
    """

    tree_count: int
    roots: np.ndarray
    tree: np.ndarray
    left: np.ndarray
    right: np.ndarray
    column: np.ndarray
    condition: np.ndarray
    is_default_left: np.ndarray
    is_categorical: np.ndarray
    category_nodes: np.ndarray
    categories: np.ndarray

    @classmethod
    def read(cls, trees: Sequence[Mapping[str, Any]]) -> Self:
        """Raises LookupError, TypeError or ValueError if these are not XGBoost's trees."""

        def joined(name: str, dtype) -> np.ndarray:
            return np.fromiter(chain.from_iterable(tree[name] for tree in trees), dtype)

        sizes = np.array([len(tree["left_children"]) for tree in trees], dtype=np.int64)
        tree = np.repeat(np.arange(len(trees)), sizes)
        roots = np.cumsum(sizes) - sizes
        left, right = joined("left_children", np.int64), joined("right_children", np.int64)
        set_trees = np.repeat(np.arange(len(trees)), [len(tree["categories_nodes"]) for tree in trees])
        set_nodes = joined("categories_nodes", np.int64) + roots[set_trees]
        return cls(
            tree_count=len(trees),
            roots=roots,
            tree=tree,
            left=np.where(left < 0, -1, left + roots[tree]),
            right=np.where(right < 0, -1, right + roots[tree]),
            column=joined("split_indices", np.int64),
            condition=joined("split_conditions", np.float64).astype(np.float32),
            is_default_left=joined("default_left", np.int8) != 0,
            is_categorical=joined("split_type", np.int8) != 0,
            category_nodes=np.repeat(set_nodes, joined("categories_sizes", np.int64)),
            categories=joined("categories", np.int64),
        )

    def check(self) -> None:
        """Raises UnsupportedForest for tests that intervals cannot hold."""
        if np.isnan(self.condition).any():
            raise UnsupportedForest("a threshold or a leaf is NaN")
        if np.intersect1d(self.column[self.category_nodes], self.column[self.numeric_splits]).size:
            raise UnsupportedForest("a column is split as a number by one node, as a category by another")

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """The nodes that can be reached, by their distance from the root."""
        levels = [self.roots]
        while (inner := self.inner(levels[-1])).size:
            if len(levels) == MAX_LEAVES:
                raise UnsupportedForest(
                    f"a tree has more than {MAX_LEAVES} leaves, and a mask no bits for them"
                )
            levels.append(np.concatenate([self.left[inner], self.right[inner]]))
        return levels

    def inner(self, some: np.ndarray) -> np.ndarray:
        return some[self.left[some] >= 0]

    @cached_property
    def leaf_counts(self) -> np.ndarray:
        """Uint64 per node: leaves below it; 1 at a leaf, 0 at nodes that training has cut off."""
        counts = np.zeros(len(self.tree), np.uint64)
        for level in reversed(self.levels):
            inner = self.inner(level)
            counts[level] = 1
            counts[inner] = counts[self.left[inner]] + counts[self.right[inner]]
        return counts

    @cached_property
    def first_leaves(self) -> np.ndarray:
        """Uint64 per node: the number of its leftmost leaf within its tree."""
        first = np.zeros(len(self.tree), np.uint64)
        for level in self.levels:
            inner = self.inner(level)
            left, right = self.left[inner], self.right[inner]
            first[left] = first[inner]
            first[right] = first[inner] + self.leaf_counts[left]
        return first

    @cached_property
    def mask_dtype(self) -> np.dtype:
        most = int(self.leaf_counts[self.roots].max(initial=1))
        if most > MAX_LEAVES:
            raise UnsupportedForest(f"a tree has {most} leaves, and a mask bits for {MAX_LEAVES}")
        return np.min_scalar_type(2**most - 1)

    @cached_property
    def splits(self) -> np.ndarray:
        return np.flatnonzero(self.leaf_counts > 1)

    @cached_property
    def numeric_splits(self) -> np.ndarray:
        return self.splits[~self.is_categorical[self.splits]]

    @cached_property
    def failed_masks(self) -> np.ndarray:
        """Per node what remains of its tree when its test fails: all but the leaves on its left."""
        masks = np.full(len(self.tree), np.iinfo(self.mask_dtype).max, self.mask_dtype)
        left = self.left[self.splits]
        lost = ((np.uint64(1) << self.leaf_counts[left]) - np.uint64(1)) << self.first_leaves[left]
        masks[self.splits] = (~lost).astype(self.mask_dtype)
        return masks

    def leaf_values(self) -> np.ndarray:
        """Float64 (tree_count * bits of a mask,)."""
        leaves = np.flatnonzero(self.leaf_counts == 1)
        values = np.zeros((self.tree_count, 8 * self.mask_dtype.itemsize))
        values[self.tree[leaves], self.first_leaves[leaves].astype(np.intp)] = self.condition[leaves]
        return values.ravel()


def _cuts(nodes: _Nodes) -> np.ndarray:
    """Int64, ascending: the beginnings of the intervals in which no test changes its outcome.

    A column has one for NaN with a sign, for numbers below all thresholds, from each threshold to the next
    (for categories: of each code, and after it), and for other NaN.
    """
    columns = np.unique(nodes.column[nodes.splits])
    numeric_columns, thresholds = nodes.column[nodes.numeric_splits], nodes.condition[nodes.numeric_splits]
    category_columns = nodes.column[nodes.category_nodes]
    return np.unique(
        np.concatenate(
            [
                _key(columns, _SIGNED_NAN),
                _key(columns, _MINUS_INFINITY),
                _key(numeric_columns, _beginning(thresholds)),
                _key(category_columns, _beginning(nodes.categories)),
                _key(category_columns, _beginning(nodes.categories + 1)),
                _key(columns, _NAN),
            ]
        )
    )


def _table(nodes: _Nodes, cuts: np.ndarray) -> np.ndarray:
    """Masks (intervals, tree_count) after all tests that fail in an interval."""
    table = np.full((len(cuts), nodes.tree_count), np.iinfo(nodes.mask_dtype).max, nodes.mask_dtype)

    def fail(some: np.ndarray, beginnings: np.ndarray | int) -> None:
        intervals = cuts.searchsorted(_key(nodes.column[some], beginnings))
        places = intervals * nodes.tree_count + nodes.tree[some]
        np.bitwise_and.at(table.reshape(-1), places, nodes.failed_masks[some])

    fail(nodes.numeric_splits, _beginning(nodes.condition[nodes.numeric_splits]))
    for column in np.unique(nodes.column[nodes.numeric_splits]):
        numbers = slice(*cuts.searchsorted(_key(int(column), np.array([_MINUS_INFINITY, _NAN]))))
        # A test that fails at its threshold fails for all greater numbers.
        np.bitwise_and.accumulate(table[numbers], axis=0, out=table[numbers])
    fail(nodes.category_nodes, _beginning(nodes.categories))
    missing_fails = nodes.splits[~nodes.is_default_left[nodes.splits]]
    fail(missing_fails, _SIGNED_NAN)
    fail(missing_fails, _NAN)
    return table


def _ordered(values: np.ndarray) -> np.ndarray:
    """Int32 in the order of float32 values: NaN with a sign, -inf, ..., -0.0, 0.0, ..., inf, other NaN."""
    bits = values.view(np.int32)
    return bits ^ ((bits >> 31) & _INT32_MAX)


def _beginning(values: np.ndarray) -> np.ndarray:
    """The first of `_ordered` that equals a value: -0.0 equals 0.0, but is ordered before it."""
    return _ordered(np.where(values == 0, -0.0, values).astype(np.float32))


def _key(columns: np.ndarray, ordered: np.ndarray | int) -> np.ndarray:
    """Int64: `_ordered` values of columns on one line, on which column follows column."""
    return (columns << 32) + ordered
