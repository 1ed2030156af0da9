"""What is in the stores in the end, against what was promised and what a replay gives."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlalchemy import text

from app.adapters.database import Database, batch_database
from app.adapters.feature_tables import FeatureTables
from app.domain.types import RecordedEvent
from app.features.covisits import CovisitRules, Neighbours, fold_positives
from app.features.fold import BEGINNING, Counters, State, States, fold_events
from app.features.slots import ALL_SLOTS
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Accounts:
    """`lost` events were acknowledged and are not stored; `duplicated` are stored more than once."""

    acknowledged: int
    lost: int
    duplicated: int
    counters_equal_replay: bool

    @property
    def are_right(self) -> bool:
        return self.acknowledged > 0 and not self.lost and not self.duplicated and self.counters_equal_replay


def balance(settings: Settings, acknowledged: Collection[str]) -> Accounts:
    """Call it when everything that was sent has been stored and folded."""
    database = batch_database(settings)
    try:
        stored = stored_counts(database)
        return Accounts(
            acknowledged=len(acknowledged),
            lost=sum(event_id not in stored for event_id in acknowledged),
            duplicated=sum(count > 1 for count in stored.values()),
            counters_equal_replay=_equals_replay(database, settings),
        )
    finally:
        database.close()


def stored_counts(database: Database) -> dict[str, int]:
    """How often each event is in the log."""
    with database.transaction() as connection:
        return dict(map(tuple, connection.execute(text("SELECT event_id, count(*) FROM events GROUP BY 1"))))


def last_received_at(database: Database, event_ids: Collection[str]) -> datetime | None:
    """When the last of these events got into the log; None if none of them is there."""
    query = text("SELECT max(received_at) FROM event_keys WHERE event_id = ANY(:ids)")
    with database.transaction() as connection:
        return connection.execute(query, {"ids": list(event_ids)}).scalar_one()


def _equals_replay(database: Database, settings: Settings) -> bool:
    tables = FeatureTables(database)
    events = _all_events(tables)
    states: States = {}
    neighbours: dict[str, Neighbours] = {}
    rules = CovisitRules(settings.covisit_window_s, settings.covisit_half_life_s)
    fold_events(events, states, settings.half_lives_s)
    fold_positives(events, states, neighbours, rules)
    kept = {(row.view, row.key): row.state for row in tables.latest(None)}
    return (
        kept.keys() == states.keys()
        and all(_is_same(kept[key], states[key]) for key in states)
        and _kept_neighbours(tables, database) == neighbours
    )


def _kept_neighbours(tables: FeatureTables, database: Database) -> dict[str, Neighbours]:
    with database.transaction() as connection:
        ids = connection.execute(text("SELECT proposition_id FROM proposition_neighbours")).scalars().all()
    with tables.batch(ALL_SLOTS) as (batch, _):
        return batch.load_neighbours(ids)


def _all_events(tables: FeatureTables) -> list[RecordedEvent]:
    with tables.rebuild_batch() as batch:
        return batch.events_after(BEGINNING, limit=100_000_000)


def _is_same(one: State, other: State) -> bool:
    if isinstance(one, Counters) and isinstance(other, Counters):
        return one.as_of_s == other.as_of_s and np.array_equal(one.counts, other.counts)
    return one == other
