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
        if at_s >= self.as_of_s + half_life_s:
            self._bring_to(_landmark(at_s, half_life_s), half_life_s)
        weight = 2.0 ** ((at_s - self.as_of_s) / half_life_s)
        self.weights[other_id] = self.weights.get(other_id, 0.0) + weight
        if len(self.weights) > MAX_NEIGHBOURS:
            self.weights = dict(self.strongest()[:KEPT_NEIGHBOURS])

    def strongest(self) -> list[tuple[str, float]]:
        """(proposition id, weight), the heaviest first."""
        return sorted(self.weights.items(), key=lambda pair: (-pair[1], pair[0]))

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
    others = [
        (other_id, time)
        for other_id, time in zip(recents.proposition_ids, recents.counted_at_s, strict=True)
        if other_id != proposition_id
    ]
    place = place_of(tuple(time for _, time in others), at_s)
    return [
        (other_id, max(time, at_s))
        for other_id, time in others[max(place - MAX_PARTNERS, 0) : place + MAX_PARTNERS]
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
            for one, other in ((proposition_id, other_id), (other_id, proposition_id)):
                _neighbours_of(one, neighbours, pair_at_s, rules).add(other, pair_at_s, rules.half_life_s)
                updated_at[one] = event.received_at
        after = add_positive(before, proposition_id, at_s)
        if after is not before:
            states[key] = after
            rows[event.received_at, event.user_id] = FeatureRow(*key, after, event.received_at)
    return list(rows.values()), [_row(key, neighbours[key], moment) for key, moment in updated_at.items()]


def _neighbours_of(
    proposition_id: str, neighbours: dict[str, Neighbours], at_s: float, rules: CovisitRules
) -> Neighbours:
    known = neighbours.get(proposition_id)
    if known is None:
        known = neighbours[proposition_id] = Neighbours({}, _landmark(at_s, rules.half_life_s))
    return known


def _landmark(at_s: float, half_life_s: float) -> float:
    return floor(at_s / half_life_s) * half_life_s


def _row(proposition_id: str, neighbours: Neighbours, updated_at: datetime) -> NeighbourRow:
    ids, weights = zip(*neighbours.strongest(), strict=True)
    return NeighbourRow(proposition_id, ids, weights, neighbours.as_of_s, updated_at)
