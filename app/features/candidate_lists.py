"""Short lists of promising propositions, made when a snapshot is taken: what large catalogs are cut down to."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class GroupedList:
    """Positions per group, best first: group g has `positions[starts[g] : starts[g + 1]]`, int32."""

    starts: np.ndarray
    positions: np.ndarray

    @classmethod
    def empty(cls) -> "GroupedList":
        return cls(np.zeros(1, np.int64), np.zeros(0, np.int32))

    def of(self, group: int) -> np.ndarray:
        if not 0 <= group < len(self.starts) - 1:
            return self.positions[:0]
        return self.positions[self.starts[group] : self.starts[group + 1]]


@dataclass(frozen=True, slots=True)
class CandidateLists:
    """Positions of eligible propositions, int32, best first by the rules.

    `popular` everywhere, `new` the youngest with few impressions, `by_category` per category and
    `trending` per context of the snapshot. `categories` are the categories, the largest first.
    """

    popular: np.ndarray
    new: np.ndarray
    by_category: GroupedList
    trending: GroupedList
    categories: np.ndarray

    @classmethod
    def empty(cls) -> "CandidateLists":
        nobody = np.zeros(0, np.int32)
        return cls(nobody, nobody, GroupedList.empty(), GroupedList.empty(), nobody)


def best_of(positions: np.ndarray, scores: np.ndarray, length: int) -> np.ndarray:
    """The `length` positions with the highest scores, best first; equal scores keep their order."""
    if len(positions) > 2 * length:
        threshold = np.partition(scores, len(scores) - length)[len(scores) - length]
        kept = scores >= threshold
        positions, scores = positions[kept], scores[kept]
    return positions[np.argsort(-scores, kind="stable")[:length]].astype(np.int32)


def best_per_group(
    groups: np.ndarray, positions: np.ndarray, scores: np.ndarray, group_count: int, length: int
) -> GroupedList:
    """At most `length` positions per group. `groups`, `positions` and `scores` belong together, row by row."""
    order = np.lexsort((-scores, groups))
    groups = groups[order]
    starts = np.searchsorted(groups, np.arange(group_count + 1))
    is_kept = np.arange(len(groups)) - starts[groups] < length
    counts = np.bincount(groups[is_kept], minlength=group_count)
    return GroupedList(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), positions[order][is_kept].astype(np.int32)
    )
