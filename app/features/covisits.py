"""Co-visitation: which propositions the same users click or convert on near each other.

A positive event (a click or a conversion) adds 1 to the weight between its proposition and each of up
to `MAX_PARTNERS` others that came just before it in the user's own time, within a window. Weights decay as
counters do. A late event lands at its own place: it also adds to what came just after it, so the order
of receipt does not decide what is a neighbour of what.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from math import floor

from app.domain.types import RecordedEvent
from app.features.fold import FeatureRow, States
from app.features.recent import (
    NO_RECENTS,
    Recents,
    add_positive,
    is_positive,
    place_of,
    recent_key,
)

MAX_PARTNERS = 10
# A proposition with more than the maximum is cut back to its strongest ones. The room between the two lets
# a newcomer gather weight before it is compared with those that had years for it.
MAX_NEIGHBOURS, KEPT_NEIGHBOURS = 64, 48


@dataclass(frozen=True, slots=True)
class CovisitRules:
    """How far apart two positive events of a user may lie, and the half-life of their pair's weight."""

    window_s: float
    half_life_s: float


@dataclass(slots=True)
class Neighbours:
    """The neighbours of one proposition: their weights in pairs of events, as they were at `as_of_s`.

    At a time t a weight is w * 2 ** (-(t - as_of_s) / half-life). `as_of_s` is the last multiple of the
    half-life before the newest pair. So adding a pair is one addition, and bringing the weights forward
    multiplies them by a power of two, which rounds nothing. Changed in place.
    """

    weights: dict[str, float]
    as_of_s: float

    def add(self, other_id: str, at_s: float, half_life_s: float) -> None:
        """Counts one pair at `at_s`; an older one than the rest arrives already decayed."""
        if at_s - self.as_of_s >= half_life_s:
            self._bring_to(_landmark(at_s, half_life_s), half_life_s)
        weights = self.weights
        weights[other_id] = weights.get(other_id, 0.0) + 2.0 ** ((at_s - self.as_of_s) / half_life_s)
        if len(weights) > MAX_NEIGHBOURS:
            self.weights = {kept: self.weights[kept] for kept in self.by_weight()[:KEPT_NEIGHBOURS]}

    def by_weight(self) -> list[str]:
        """The ids of the neighbours, the heaviest first; equally heavy ones in the order of their ids."""
        return sorted(sorted(self.weights), key=self.weights.__getitem__, reverse=True)

    def _bring_to(self, as_of_s: float, half_life_s: float) -> None:
        decay = 2.0 ** ((self.as_of_s - as_of_s) / half_life_s)
        self.weights = {other_id: weight * decay for other_id, weight in self.weights.items()}
        self.as_of_s = as_of_s


@dataclass(frozen=True, slots=True)
class NeighbourRow:
    """The neighbours of one proposition, the heaviest first, since `updated_at`."""

    proposition_id: str
    neighbour_ids: tuple[str, ...]
    weights: tuple[float, ...]
    as_of_s: float
    updated_at: datetime


def partners(recents: Recents, proposition_id: str, at_s: float, window_s: float) -> list[tuple[str, float]]:
    """Which other propositions a positive event forms a pair with, and when each pair counts.

    A pair counts at the later of its two events. `recents` is the list before the event.
    """
    others = recents.without(proposition_id)
    place = place_of(others.counted_at_s, at_s)
    near = slice(max(place - MAX_PARTNERS, 0), place + MAX_PARTNERS)
    return [
        (other_id, max(time, at_s))
        for other_id, time in zip(others.proposition_ids[near], others.counted_at_s[near], strict=True)
        if abs(time - at_s) <= window_s
    ]


def touched_neighbours(events: Iterable[RecordedEvent], states: States, window_s: float) -> set[str]:
    """The propositions whose neighbours a fold of `events` may change, seen from `states` before it."""
    touched = set()
    for event in filter(is_positive, events):
        recents = states.get(recent_key(event), NO_RECENTS)
        touched.add(event.proposition_id)
        touched.update(
            other_id
            for other_id, time in zip(recents.proposition_ids, recents.counted_at_s, strict=True)
            if abs(time - event.counted_at_s) <= window_s
        )
    return touched


def fold_positives(
    events: Iterable[RecordedEvent], states: States, neighbours: dict[str, Neighbours], rules: CovisitRules
) -> tuple[list[FeatureRow], list[NeighbourRow]]:
    """Folds the positive ones of `events`, ordered by `received_at`, into both mappings (changed in place).

    `neighbours` must hold those of all `touched_neighbours` that have any. Returns one row per user and
    `received_at`, and the neighbours of every proposition where they changed as they are after all events.
    """
    rows: dict[tuple[datetime, str], FeatureRow] = {}
    updated_at: dict[str, datetime] = {}
    for event in filter(is_positive, events):
        key, proposition_id, at_s = recent_key(event), event.proposition_id, event.counted_at_s
        before = states.get(key, NO_RECENTS)
        for other_id, pair_at_s in partners(before, proposition_id, at_s, rules.window_s):
            _add_pair(neighbours, proposition_id, other_id, pair_at_s, rules.half_life_s)
            updated_at[proposition_id] = updated_at[other_id] = event.received_at
        after = add_positive(before, proposition_id, at_s)
        if after is not before:
            states[key] = after
            rows[event.received_at, event.user_id] = FeatureRow(*key, after, event.received_at)
    return list(rows.values()), [_row(key, neighbours[key], moment) for key, moment in updated_at.items()]


def _add_pair(
    neighbours: dict[str, Neighbours], one: str, other: str, at_s: float, half_life_s: float
) -> None:
    for proposition_id, other_id in ((one, other), (other, one)):
        known = neighbours.get(proposition_id)
        if known is None:
            known = neighbours[proposition_id] = Neighbours({}, _landmark(at_s, half_life_s))
        known.add(other_id, at_s, half_life_s)


def _landmark(at_s: float, half_life_s: float) -> float:
    return floor(at_s / half_life_s) * half_life_s


def _row(proposition_id: str, neighbours: Neighbours, updated_at: datetime) -> NeighbourRow:
    ids = tuple(neighbours.by_weight())
    weights = tuple(map(neighbours.weights.__getitem__, ids))
    return NeighbourRow(proposition_id, ids, weights, neighbours.as_of_s, updated_at)
