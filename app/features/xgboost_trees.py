"""The trees of an XGBoost model, and the tables that a forest of bit masks is made of; see `forest`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np

from app.domain.errors import UnsupportedForest

MAX_LEAVES = 64

# Their scores are the sums themselves.
_IDENTITY_OBJECTIVES = ("rank:pairwise", "rank:ndcg", "rank:map", "reg:squarederror")
# From here on float32 knows only 0 and 1.
_MAX_LOGIT = 88.7

_INT32_MAX = 2**31 - 1
# As `ordered` puts them: the least NaN with a sign, minus infinity, the least NaN without a sign.
_SIGNED_NAN, _MINUS_INFINITY, _NAN = -(2**31), -(2**31) + 0x7FFFFF, 0x7F80_0001


def link_of(learner: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
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
class Nodes:
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
        """Float32 (tree_count * bits of a mask,)."""
        leaves = np.flatnonzero(self.leaf_counts == 1)
        values = np.zeros((self.tree_count, 8 * self.mask_dtype.itemsize), np.float32)
        values[self.tree[leaves], self.first_leaves[leaves].astype(np.intp)] = self.condition[leaves]
        return values.ravel()


def cuts_of(nodes: Nodes) -> np.ndarray:
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
                key_of(columns, _SIGNED_NAN),
                key_of(columns, _MINUS_INFINITY),
                key_of(numeric_columns, _beginning(thresholds)),
                key_of(category_columns, _beginning(nodes.categories)),
                key_of(category_columns, _beginning(nodes.categories + 1)),
                key_of(columns, _NAN),
            ]
        )
    )


def table_of(nodes: Nodes, cuts: np.ndarray) -> np.ndarray:
    """Masks (intervals, tree_count) after all tests that fail in an interval."""
    table = np.full((len(cuts), nodes.tree_count), np.iinfo(nodes.mask_dtype).max, nodes.mask_dtype)

    def fail(some: np.ndarray, beginnings: np.ndarray | int) -> None:
        intervals = cuts.searchsorted(key_of(nodes.column[some], beginnings))
        places = intervals * nodes.tree_count + nodes.tree[some]
        np.bitwise_and.at(table.reshape(-1), places, nodes.failed_masks[some])

    fail(nodes.numeric_splits, _beginning(nodes.condition[nodes.numeric_splits]))
    for column in np.unique(nodes.column[nodes.numeric_splits]):
        numbers = slice(*cuts.searchsorted(key_of(int(column), np.array([_MINUS_INFINITY, _NAN]))))
        # A test that fails at its threshold fails for all greater numbers.
        np.bitwise_and.accumulate(table[numbers], axis=0, out=table[numbers])
    fail(nodes.category_nodes, _beginning(nodes.categories))
    missing_fails = nodes.splits[~nodes.is_default_left[nodes.splits]]
    fail(missing_fails, _SIGNED_NAN)
    fail(missing_fails, _NAN)
    return table


def ordered(values: np.ndarray) -> np.ndarray:
    """Int32 in the order of float32 values: NaN with a sign, -inf, ..., -0.0, 0.0, ..., inf, other NaN."""
    bits = values.view(np.int32)
    return bits ^ ((bits >> 31) & _INT32_MAX)


def _beginning(values: np.ndarray) -> np.ndarray:
    """The first of `ordered` that equals a value: -0.0 equals 0.0, but is ordered before it."""
    return ordered(np.where(values == 0, -0.0, values).astype(np.float32))


def key_of(columns: np.ndarray, places: np.ndarray | int) -> np.ndarray:
    """Int64: `ordered` values of columns on one line, on which column follows column."""
    return (columns << 32) + places
