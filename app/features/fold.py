"""The fold: events into exponentially decayed counters.

A counter with half-life h at time t is the sum of 2 ** (-(t - t_i) / h) over its events i, in events.
It is kept as its value at the time of the newest event, so folding an event costs the same however
long the history is. The projector and the replay both call `fold_events`, in the same order.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from app.domain.context import crossed_key
from app.domain.types import EventType, RecordedEvent
from app.features.schema import EntityName

# Before any event.
BEGINNING = datetime.min.replace(tzinfo=UTC)

EVENT_ROW = {event_type: row for row, event_type in enumerate(EventType)}

# Where each entity's counters live: the feature view, its table in Postgres, and its key column.
COUNTER_VIEWS: Mapping[EntityName, str] = {
    EntityName.USER: "user_activity",
    EntityName.PROPOSITION: "proposition_performance",
    EntityName.CONTEXT: "context_activity",
    EntityName.USER_CATEGORY: "user_category_affinity",
    EntityName.CONTEXT_PROPOSITION: "context_proposition_performance",
}
KEY_COLUMNS: Mapping[EntityName, str] = {
    EntityName.USER: "user_id",
    EntityName.PROPOSITION: "proposition_id",
    EntityName.CONTEXT: "context_key",
    EntityName.USER_CATEGORY: "user_category_key",
    EntityName.CONTEXT_PROPOSITION: "context_proposition_key",
}


@dataclass(frozen=True, slots=True)
class Counters:
    """Decayed counts: float64 array (event types, half-lives), as they were at `as_of_s`."""

    counts: np.ndarray
    as_of_s: float


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """The counters of one entity, valid from `valid_from` until its next row."""

    entity: EntityName
    key: str
    counters: Counters
    valid_from: datetime


States = dict[tuple[EntityName, str], Counters]


def entity_keys(event: RecordedEvent) -> Iterator[tuple[EntityName, str]]:
    """The entities whose counters an event touches."""
    yield EntityName.PROPOSITION, event.proposition_id
    yield EntityName.CONTEXT, event.context_key
    yield EntityName.CONTEXT_PROPOSITION, crossed_key(event.context_key, event.proposition_id)
    if event.user_id is not None:
        yield EntityName.USER, event.user_id
        if event.category is not None:
            yield EntityName.USER_CATEGORY, crossed_key(event.user_id, event.category)


def add_event(
    counters: Counters | None, event_type: EventType, at_s: float, half_lives_s: np.ndarray
) -> Counters:
    """The counters after one more event. An event older than the counters arrives already decayed."""
    if counters is None:
        counts, as_of_s = np.zeros((len(EVENT_ROW), len(half_lives_s))), at_s
    elif at_s > counters.as_of_s:
        counts = counters.counts * np.exp2((counters.as_of_s - at_s) / half_lives_s)
        as_of_s = at_s
    else:
        counts, as_of_s = counters.counts.copy(), counters.as_of_s
    counts[EVENT_ROW[event_type]] += np.exp2((at_s - as_of_s) / half_lives_s)
    return Counters(counts, as_of_s)


def decay_to(counts: np.ndarray, as_of_s: np.ndarray, at_s, half_lives_s: np.ndarray) -> np.ndarray:
    """Counts (n, event types, half-lives) at a later time `at_s` (scalar or (n,)), in events.

    Time before `as_of_s` (a clock that runs behind) counts as no time. Rows with NaN in `as_of_s`
    have no history and stay as they are.
    """
    age_s = np.nan_to_num(np.maximum(at_s - as_of_s, 0.0), nan=0.0)
    return counts * np.exp2(-age_s[:, None] / half_lives_s)[:, None, :]


def fold_events(
    events: Iterable[RecordedEvent], states: States, half_lives_s: Sequence[float]
) -> list[FeatureRow]:
    """Folds events, ordered by `received_at`, into `states` (changed in place).

    Returns one row per entity and `received_at`, in that order: what a reader may see from then on.
    """
    half_lives = np.asarray(half_lives_s, dtype=np.float64)
    rows: dict[tuple[datetime, EntityName, str], FeatureRow] = {}
    for event in events:
        for entity, key in entity_keys(event):
            counters = add_event(states.get((entity, key)), event.event_type, event.counted_at_s, half_lives)
            states[entity, key] = counters
            rows[event.received_at, entity, key] = FeatureRow(entity, key, counters, event.received_at)
    return list(rows.values())


def latest_rows(rows: Iterable[FeatureRow]) -> dict[EntityName, list[FeatureRow]]:
    """The last row of every entity key, grouped by entity."""
    latest = {(row.entity, row.key): row for row in rows}
    grouped: dict[EntityName, list[FeatureRow]] = defaultdict(list)
    for row in latest.values():
        grouped[row.entity].append(row)
    return dict(grouped)
