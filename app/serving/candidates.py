"""Which propositions are worth scoring: all of a small catalog, the union of several sources of a large one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache

import numpy as np

from app.domain.errors import PropositionsError
from app.domain.types import SuggestRequest
from app.features import kernels
from app.features.snapshot import Snapshot


class Source(StrEnum):
    """Why a proposition is a candidate."""

    REQUEST = "request"  # the request names its candidates
    CATALOG = "catalog"  # the catalog is small enough to be scored whole
    COVISITED = "covisited"  # near to what the user last interacted with
    FAVOURITE = "favourite"  # best in a category that the user likes
    TRENDING = "trending"  # works in this context now
    NEW = "new"  # few impressions yet
    POPULAR = "popular"  # works everywhere
    DEFAULT = "default"  # on the static list


_BITS = {source: 1 << number for number, source in enumerate(Source)}

# Parts of the budget that a source may fill before the others had their turn.
_SHARES = {
    Source.COVISITED: 0.2,
    Source.FAVOURITE: 0.25,
    Source.NEW: 0.1,
    Source.TRENDING: 0.45,
    Source.POPULAR: 1.0,
}


class NothingToRank(PropositionsError):
    """No eligible candidates are known."""


@dataclass(frozen=True, slots=True)
class Taste:
    """What is known of a user: positions of what they last interacted with, newest first, and numbers
    of the categories that they like, best first."""

    recent: Sequence[int] = ()
    categories: Sequence[int] = ()


NO_TASTE = Taste()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Positions of eligible propositions, int64 (n,), and for each the set of its sources as bits."""

    positions: np.ndarray
    source_bits: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, positions: np.ndarray, source: Source) -> "Candidates":
        return cls(positions, np.full(len(positions), _BITS[source], np.uint8))

    def __len__(self) -> int:
        return len(self.positions)


@lru_cache(maxsize=256)
def sources_in(bits: int) -> tuple[str, ...]:
    """Names of the sources in a set of bits."""
    return tuple(str(source) for source, bit in _BITS.items() if bits & bit)


class CandidateGenerator:
    """Finds at most `budget` candidates, at a cost that does not grow with the catalog.

    Only filters that leave less than a slate of all that the sources propose make it look through the
    whole catalog.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._numbers_by_position = np.empty(0, np.intp)

    def find(
        self, snapshot: Snapshot, request: SuggestRequest, now: datetime, taste: Taste = NO_TASTE
    ) -> Candidates:
        """Raises NothingToRank when no proposition is eligible."""
        catalog = snapshot.catalog
        if request.candidate_ids is not None:
            return self._cut(snapshot, request, catalog.eligible(request, now), now, Source.REQUEST)
        if len(catalog) <= self._budget:
            return self._cut(snapshot, request, catalog.eligible(request, now), now, Source.CATALOG)
        found = self._from_sources(snapshot, request, now, taste)
        if len(found) < request.limit:
            return self._cut(snapshot, request, catalog.eligible(request, now), now, Source.POPULAR)
        return found

    def _cut(
        self,
        snapshot: Snapshot,
        request: SuggestRequest,
        positions: np.ndarray,
        now: datetime,
        source: Source,
    ) -> Candidates:
        """All of these, or those with the highest click rates."""
        if not len(positions):
            raise NothingToRank("no eligible proposition is known")
        if len(positions) > self._budget:
            _, rates = snapshot.click_rates(request.context_key, positions, now.timestamp())
            positions = np.sort(positions[np.argpartition(-rates, self._budget)[: self._budget]])
        return Candidates.of(positions, source)

    def _from_sources(
        self, snapshot: Snapshot, request: SuggestRequest, now: datetime, taste: Taste
    ) -> Candidates:
        sources, lists = zip(*_proposals(snapshot, request, taste, self._budget), strict=True)
        bits = np.array([_BITS[source] for source in sources], np.uint8)
        places = self._scratch(len(snapshot.catalog))
        distinct, bits = (_union if kernels.compiled is None else _compiled_union)(lists, bits, places)
        kept = snapshot.catalog.eligible(request, now, distinct)[: self._budget]
        return Candidates(kept, bits[places[kept]])

    def _scratch(self, size: int) -> np.ndarray:
        """An array to write positions' numbers into. What it holds means nothing in the next request."""
        if len(self._numbers_by_position) < size:
            self._numbers_by_position = np.empty(size, np.intp)
        return self._numbers_by_position


def _proposals(
    snapshot: Snapshot, request: SuggestRequest, taste: Taste, budget: int
) -> Iterator[tuple[Source, np.ndarray]]:
    lists = snapshot.lists

    def share(source: Source, parts: int = 1) -> int:
        return max(1, int(budget * _SHARES[source]) // max(1, parts))

    if len(taste.recent):
        yield Source.COVISITED, snapshot.neighbours.of(taste.recent)[: share(Source.COVISITED)]
    wanted = _wanted_categories(snapshot, request) or taste.categories
    for category in wanted:
        yield Source.FAVOURITE, lists.by_category.of(category)[: share(Source.FAVOURITE, len(wanted))]
    yield Source.NEW, lists.new[: share(Source.NEW)]
    context = snapshot.contexts.numbers.get(request.context_key, -1)
    yield Source.TRENDING, lists.trending.of(context)[: share(Source.TRENDING)]
    yield Source.POPULAR, lists.popular[: share(Source.POPULAR)]


def _wanted_categories(snapshot: Snapshot, request: SuggestRequest) -> list[int]:
    names = request.filters.categories
    return [n for n, name in enumerate(snapshot.catalog.category_names) if name in names] if names else []


def _union(
    lists: Sequence[np.ndarray], bits: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each position once, int64 (n,), where the first list that has it put it, and joined the bits of all that have it.

    Where it is among them is written into `places`, intp, at the position.
    """
    positions = np.concatenate(lists).astype(np.int64)
    numbers = np.arange(len(positions))
    places[positions[::-1]] = numbers[::-1]
    distinct = positions[places[positions] == numbers]
    places[distinct] = numbers[: len(distinct)]
    joined = np.zeros(len(distinct), np.uint8)
    np.bitwise_or.at(joined, places[positions], bits.repeat([len(some) for some in lists]))
    return distinct, joined


def _compiled_union(
    lists: Sequence[np.ndarray], bits: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    room = sum(map(len, lists))
    positions, joined = np.empty(room, np.int64), np.empty(room, np.uint8)
    count = kernels.compiled.union(list(lists), bits, places, positions, joined)
    return positions[:count], joined[:count]
