"""The fold: events into exponentially decayed counters, and into what each user was shown lately.

A counter with half-life h at time t is the sum of 2 ** (-(t - t_i) / h) over its events i, in events.
It is kept as its value at the time of the newest event, so folding an event costs the same however
long the log is. The projector and the replay both fold with the functions here, in the same order.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter

import numpy as np

from app.domain.context import crossed_key
from app.domain.types import EventType, RecordedEvent
from app.features.history import HISTORY_VIEW, NO_HISTORY, HistoryDraft, UserHistory
from app.features.recent import RECENT_VIEW, Recents
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
# Every view that the projector fills, and its entity.
FOLDED_VIEWS: Mapping[str, EntityName] = {
    **{view: entity for entity, view in COUNTER_VIEWS.items()},
    HISTORY_VIEW: EntityName.USER,
    RECENT_VIEW: EntityName.USER,
}


@dataclass(frozen=True, slots=True)
class Counters:
    """Decayed counts: float64 array (event types, half-lives), as they were at `as_of_s`."""

    counts: np.ndarray
    as_of_s: float


State = Counters | UserHistory | Recents
# By feature view and key.
States = dict[tuple[str, str], State]


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """What a view says of one entity, valid from `valid_from` until its next row."""

    view: str
    key: str
    state: State
    valid_from: datetime


# Looked up for every event, and an enum hashes slower than its text.
_OF_USER = COUNTER_VIEWS[EntityName.USER]
_OF_PROPOSITION = COUNTER_VIEWS[EntityName.PROPOSITION]
_OF_CONTEXT = COUNTER_VIEWS[EntityName.CONTEXT]
_OF_USER_CATEGORY = COUNTER_VIEWS[EntityName.USER_CATEGORY]
_OF_CONTEXT_PROPOSITION = COUNTER_VIEWS[EntityName.CONTEXT_PROPOSITION]


def counter_keys(event: RecordedEvent) -> Iterator[tuple[str, str]]:
    """The view and key of the counters that an event touches."""
    yield _OF_PROPOSITION, event.proposition_id
    yield _OF_CONTEXT, event.context_key
    yield _OF_CONTEXT_PROPOSITION, crossed_key(event.context_key, event.proposition_id)
    if event.user_id is not None:
        yield _OF_USER, event.user_id
        if event.category is not None:
            yield _OF_USER_CATEGORY, crossed_key(event.user_id, event.category)


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
    # Most events are the newest of their counters: decayed by no time, they count as exactly one.
    counts[EVENT_ROW[event_type]] += 1.0 if at_s == as_of_s else np.exp2((at_s - as_of_s) / half_lives_s)
    return Counters(counts, as_of_s)


def decay_to(counts: np.ndarray, as_of_s: np.ndarray, at_s, half_lives_s: np.ndarray) -> np.ndarray:
    """Counts (n, event types, half-lives) at a later time `at_s` (scalar or (n,)), in events.

    Time before `as_of_s` (a clock that runs behind) counts as no time. Rows with NaN in `as_of_s`
    have no history and stay as they are.
    """
    age_s = np.fmax(at_s - as_of_s, 0.0)  # which is 0 for NaN, too
    return counts * np.exp2(-age_s[:, None] / half_lives_s)[:, None, :]


def fold_events(
    events: Sequence[RecordedEvent],
    states: States,
    half_lives_s: Sequence[float],
    is_wanted: Callable[[str, str], bool] | None = None,
) -> list[FeatureRow]:
    """Folds events, ordered by `received_at`, into the counters and histories in `states` (changed in place).

    Only those of the views and keys that are wanted, if that is said; no entity's depend on another's.
    Returns one row per entity and `received_at`: what a reader may see from then on. The rows of counters come
    first, then those of histories, each in the order of `received_at`.
    """
    rows = fold_counters(events, states, half_lives_s, is_wanted)
    return rows + fold_histories(events, states, is_wanted)


def fold_counters(
    events: Iterable[RecordedEvent],
    states: States,
    half_lives_s: Sequence[float],
    is_wanted: Callable[[str, str], bool] | None = None,
) -> list[FeatureRow]:
    """What `fold_events` does with counters."""
    half_lives = np.asarray(half_lives_s, dtype=np.float64)
    changed: dict[tuple[str, str, datetime], Counters] = {}
    for event in events:
        for view, key in counter_keys(event):
            if is_wanted is not None and not is_wanted(view, key):
                continue
            counters = add_event(states.get((view, key)), event.event_type, event.counted_at_s, half_lives)
            states[view, key] = changed[view, key, event.received_at] = counters
    return [FeatureRow(view, key, counters, moment) for (view, key, moment), counters in changed.items()]


def history_keys(
    events: Iterable[RecordedEvent], is_wanted: Callable[[str, str], bool] | None = None
) -> set[tuple[str, str]]:
    """The view and key of the histories that `events` touch, of those that are wanted."""
    users = {event.user_id for event in events} - {None}
    return {(HISTORY_VIEW, user) for user in users if is_wanted is None or is_wanted(HISTORY_VIEW, user)}


def fold_histories(
    events: Sequence[RecordedEvent], states: States, is_wanted: Callable[[str, str], bool] | None = None
) -> list[FeatureRow]:
    """What `fold_events` does with histories. One is frozen once per moment, however many events it has then."""
    drafts = {
        key: HistoryDraft(states.get((view, key), NO_HISTORY))
        for view, key in history_keys(events, is_wanted)
    }
    rows: list[FeatureRow] = []
    for moment, received in groupby(events, key=attrgetter("received_at")):
        touched: dict[str, HistoryDraft] = {}
        for event in received:
            if (draft := drafts.get(event.user_id)) is not None:
                draft.add(event.proposition_id, event.event_type)
                touched[event.user_id] = draft
        for key, draft in touched.items():
            states[HISTORY_VIEW, key] = history = draft.frozen()
            rows.append(FeatureRow(HISTORY_VIEW, key, history, moment))
    return rows


def latest_rows(rows: Iterable[FeatureRow]) -> dict[str, list[FeatureRow]]:
    """The last row of every entity key, grouped by view."""
    latest = {(row.view, row.key): row for row in rows}
    return rows_by_view(latest.values())


def rows_by_view(rows: Iterable[FeatureRow]) -> dict[str, list[FeatureRow]]:
    grouped: dict[str, list[FeatureRow]] = defaultdict(list)
    for row in rows:
        grouped[row.view].append(row)
    return dict(grouped)
