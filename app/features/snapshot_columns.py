"""The columns of a snapshot: texts, counters, counters by context, and neighbours, by position in the catalog."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.domain.context import KEY_SEPARATOR
from app.features.catalog import Catalog
from app.features.columns import grown
from app.features.fold import EVENT_ROW, Counters
from app.features.rows import Rows

MAX_NEIGHBOURS = 20


@dataclass(frozen=True, slots=True)
class TextColumn:
    """Texts of n rows as positions `codes` int32 (n,) in distinct `names` (str array)."""

    names: np.ndarray
    codes: np.ndarray

    def take(self, positions: np.ndarray) -> np.ndarray:
        return self.names[self.codes[positions]]


@dataclass(frozen=True, slots=True)
class CounterColumn:
    """Counters of n entities: float32 (n, event types, half-lives) as of float64 (n,), NaN: none yet."""

    counts: np.ndarray
    as_of_s: np.ndarray

    @classmethod
    def empty(cls, row_count: int, half_life_count: int) -> "CounterColumn":
        counts = np.zeros((row_count, len(EVENT_ROW), half_life_count), np.float32)
        return cls(counts, np.full(row_count, np.nan))

    def __len__(self) -> int:
        return len(self.as_of_s)

    @property
    def half_life_count(self) -> int:
        return self.counts.shape[2]

    def take(self, positions: np.ndarray) -> Rows:
        return Rows(self.counts[positions].astype(np.float64), self.as_of_s[positions], {})

    def with_rows(
        self, positions: Sequence[int], changes: Sequence[Counters], row_count: int
    ) -> "CounterColumn":
        """Grown to `row_count`, with the changed counters written in."""
        if not len(positions) and row_count == len(self):
            return self
        counts = grown(self.counts, row_count, 0.0)
        as_of_s = grown(self.as_of_s, row_count, np.nan)
        if len(positions):
            counts[positions] = [c.counts for c in changes]
            as_of_s[positions] = [c.as_of_s for c in changes]
        return CounterColumn(counts, as_of_s)


@dataclass(frozen=True)
class ContextCounters:
    """Counters of pairs of a context and a proposition: of those pairs that have any.

    `keys` uint64 ascending: the number of the context in `contexts` times 2**32, plus the position of
    the proposition.
    """

    contexts: tuple[str, ...]
    keys: np.ndarray
    counters: CounterColumn

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        return {context_key: number for number, context_key in enumerate(self.contexts)}

    def range_of(self, context_key: str | None) -> slice:
        """Where the pairs of a context lie."""
        number = self.numbers.get(context_key)
        if number is None:
            return slice(0, 0)
        return slice(*np.searchsorted(self.keys, np.array([number, number + 1], np.uint64) << np.uint64(32)))

    def find(self, context_key: str | None, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the pairs of a context and the propositions at `positions` that have counters, int64
        (k,), and which of the propositions those are, bool (n,)."""
        here = self.range_of(context_key)
        keys = self.keys[here]
        if not len(keys):
            return np.zeros(0, np.int64), np.zeros(len(positions), bool)
        wanted = (keys[0] >> np.uint64(32) << np.uint64(32)) + positions.astype(np.uint64)
        found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        is_known = keys[found] == wanted
        return here.start + found[is_known], is_known

    def take(self, context_key: str | None, positions: np.ndarray) -> Rows:
        """Counters of the propositions at `positions` in one context: zeros where there are none."""
        pairs, is_known = self.find(context_key, positions)
        rows = CounterColumn.empty(len(positions), self.counters.half_life_count).take(slice(None))
        rows.counts[is_known] = self.counters.counts[pairs]
        rows.as_of_s[is_known] = self.counters.as_of_s[pairs]
        return rows

    def with_changes(self, changes: Mapping[str, Counters], catalog: Catalog) -> "ContextCounters":
        """`changes` by crossed key; those of unknown propositions or of other half-lives are left out."""
        pairs = [key.rpartition(KEY_SEPARATOR)[::2] for key in changes]
        positions = catalog.positions_of([proposition_id for _, proposition_id in pairs])
        numbers = dict(self.numbers)
        changed: dict[int, Counters] = {}
        for (context_key, _), position, counters in zip(pairs, positions, changes.values(), strict=True):
            if position >= 0 and counters.counts.shape[1] == self.counters.half_life_count:
                number = numbers.setdefault(context_key, len(numbers))
                changed[(number << 32) + int(position)] = counters
        if not changed:
            return self
        keys = np.union1d(self.keys, np.fromiter(changed, np.uint64, len(changed)))
        kept = np.searchsorted(keys, self.keys)
        counters = CounterColumn.empty(len(keys), self.counters.half_life_count)
        counters.counts[kept] = self.counters.counts
        counters.as_of_s[kept] = self.counters.as_of_s
        at = np.searchsorted(keys, np.fromiter(changed, np.uint64, len(changed)))
        return ContextCounters(
            tuple(numbers), keys, counters.with_rows(at, list(changed.values()), len(keys))
        )


@dataclass(frozen=True, slots=True)
class Neighbours:
    """For some propositions, those most often visited together with them.

    `anchors` int32 (m,) ascending positions; `positions` int32 (m, MAX_NEIGHBOURS), nearest first, -1
    where there are fewer.
    """

    anchors: np.ndarray
    positions: np.ndarray

    @classmethod
    def empty(cls) -> "Neighbours":
        return cls(np.zeros(0, np.int32), np.zeros((0, MAX_NEIGHBOURS), np.int32))

    def of(self, anchors: Sequence[int]) -> np.ndarray:
        """The neighbours of these positions, anchor after anchor."""
        if not len(self.anchors):
            return self.anchors
        # Of another type, all anchors would be converted for every search.
        wanted = np.asarray(anchors, self.anchors.dtype)
        found = np.minimum(self.anchors.searchsorted(wanted), len(self.anchors) - 1)
        rows = self.positions[found[self.anchors[found] == wanted]].ravel()
        return rows[rows >= 0]

    def with_changes(self, changes: Mapping[str, Sequence[str]], catalog: Catalog) -> "Neighbours":
        anchors = catalog.positions_of(changes)
        rows = {
            int(anchor): _padded(catalog.positions_of(neighbours))
            for anchor, neighbours in zip(anchors, changes.values(), strict=True)
            if anchor >= 0
        }
        if not rows:
            return self
        changed = np.fromiter(rows, np.int32, len(rows))
        united = np.union1d(self.anchors, changed).astype(np.int32)
        positions = np.full((len(united), MAX_NEIGHBOURS), -1, np.int32)
        positions[np.searchsorted(united, self.anchors)] = self.positions
        positions[np.searchsorted(united, changed)] = list(rows.values())
        return Neighbours(united, positions)


def _padded(positions: np.ndarray) -> np.ndarray:
    row = np.full(MAX_NEIGHBOURS, -1, np.int32)
    known = positions[positions >= 0][:MAX_NEIGHBOURS]
    row[: len(known)] = known
    return row
