"""The feature tables in PostgreSQL: what the projector writes and what snapshots read."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlalchemy import Connection, text

from app.adapters.copying import copy_rows
from app.adapters.database import Database
from app.domain.types import EventType, RecordedEvent
from app.features.fold import BEGINNING, COUNTER_VIEWS, KEY_COLUMNS, Counters, FeatureRow, States
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName

REBUILD_SUFFIX = "_rebuild"
_PROJECTOR_LOCK = 0x50524F4A  # any number that nobody else uses for advisory locks in this database

_COUNTER_COLUMNS = ", ".join((*COUNTER_FIELDS, AS_OF_FIELD, "event_timestamp"))

# All events of one commit are folded together, so a batch ends between two values of received_at.
_NEXT_EVENTS = text("""
    WITH ahead AS (
        SELECT received_at FROM events WHERE received_at > :after ORDER BY received_at, seq LIMIT :limit
    )
    SELECT event_type, proposition_id, user_id, category, context_key,
           extract(epoch FROM least(occurred_at, received_at))::float8, received_at
    FROM events
    WHERE received_at > :after AND received_at <= (SELECT max(received_at) FROM ahead)
    ORDER BY received_at, seq""")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the event log is folded into the feature tables."""

    folded_until: datetime
    generation: str
    needs_rebuild: bool


class ProjectionBatch:
    """One transaction of the projector on the live tables, or on those of a rebuild."""

    def __init__(self, connection: Connection, suffix: str) -> None:
        self._connection = connection
        self._suffix = suffix

    def events_after(self, moment: datetime, limit: int) -> list[RecordedEvent]:
        """About `limit` events in the order of their receipt, never half of one commit."""
        result = self._connection.execute(_NEXT_EVENTS, {"after": moment, "limit": limit})
        return [RecordedEvent(EventType(row[0]), *row[1:]) for row in result]

    def load_states(self, keys: Collection[tuple[EntityName, str]]) -> States:
        """The newest counters of those entities that have any."""
        by_entity: dict[EntityName, list[str]] = defaultdict(list)
        for entity, key in keys:
            by_entity[entity].append(key)
        states: States = {}
        for entity, entity_keys in by_entity.items():
            table, column = COUNTER_VIEWS[entity] + self._suffix, KEY_COLUMNS[entity]
            result = self._connection.execute(
                text(f"""
                    SELECT wanted.key, row.* FROM unnest(CAST(:keys AS text[])) AS wanted(key)
                    CROSS JOIN LATERAL (
                        SELECT {_COUNTER_COLUMNS} FROM {table}
                        WHERE {column} = wanted.key ORDER BY event_timestamp DESC LIMIT 1
                    ) AS row"""),
                {"keys": entity_keys},
            )
            states.update({(entity, key): _counters(row) for key, *row in result})
        return states

    def append(self, rows: Sequence[FeatureRow]) -> None:
        by_entity: dict[EntityName, list[FeatureRow]] = defaultdict(list)
        for row in rows:
            by_entity[row.entity].append(row)
        for entity, entity_rows in by_entity.items():
            copy_rows(
                self._connection,
                COUNTER_VIEWS[entity] + self._suffix,
                (KEY_COLUMNS[entity], *COUNTER_FIELDS, AS_OF_FIELD, "event_timestamp"),
                (
                    (row.key, *row.counters.counts.tolist(), repr(row.counters.as_of_s), row.valid_from)
                    for row in entity_rows
                ),
            )

    def set_folded_until(self, moment: datetime) -> None:
        self._connection.execute(text("UPDATE projection SET folded_until = :moment"), {"moment": moment})

    def swap_in_rebuild(self, folded_until: datetime) -> None:
        """Makes the rebuilt tables the live ones."""
        for table in COUNTER_VIEWS.values():
            self._connection.execute(text(f"DROP TABLE {table}"))
            self._connection.execute(text(f"ALTER TABLE {table}{REBUILD_SUFFIX} RENAME TO {table}"))
        self._connection.execute(
            text("""
                UPDATE projection
                SET folded_until = :moment, generation = gen_random_uuid(), needs_rebuild = false"""),
            {"moment": folded_until},
        )


class FeatureTables:
    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """True while this process is the only projector of the database, False if another one is."""
        with self._database.session() as connection:
            connection.detach()  # closing it, however this block ends, gives the lock back
            yield connection.execute(
                text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _PROJECTOR_LOCK}
            ).scalar_one()

    def prepare(self) -> None:
        """Makes the partitions of the coming months."""
        with self._database.transaction() as connection:
            connection.execute(text("SELECT ensure_partitions_ahead()"))

    def progress(self) -> Progress:
        with self._database.transaction() as connection:
            return _progress(connection)

    @contextmanager
    def batch(self) -> Iterator[tuple[ProjectionBatch, Progress]]:
        """A transaction on the live tables. Imports wait for it, so the progress holds until its end."""
        with self._database.transaction() as connection:
            yield ProjectionBatch(connection, suffix=""), _progress(connection, "FOR UPDATE")

    @contextmanager
    def rebuild_batch(self) -> Iterator[ProjectionBatch]:
        """A transaction on the tables of a rebuild, beside the live ones."""
        with self._database.transaction() as connection:
            yield ProjectionBatch(connection, REBUILD_SUFFIX)

    @contextmanager
    def final_rebuild_batch(self) -> Iterator[ProjectionBatch]:
        """Like `rebuild_batch`, while imports wait."""
        with self._database.transaction() as connection:
            _progress(connection, "FOR UPDATE")
            yield ProjectionBatch(connection, REBUILD_SUFFIX)

    def start_rebuild(self) -> None:
        """Makes empty tables beside the live ones; what an unfinished rebuild left is dropped."""
        with self._database.transaction() as connection:
            for table in COUNTER_VIEWS.values():
                rebuilt = table + REBUILD_SUFFIX
                connection.execute(text(f"DROP TABLE IF EXISTS {rebuilt}"))
                connection.execute(text(f"CREATE TABLE {rebuilt} (LIKE {table} INCLUDING ALL)"))

    def latest(self, after: datetime | None) -> list[FeatureRow]:
        """The newest row of every entity that changed after a moment, or of every entity."""
        with self._database.snapshot() as connection:
            return [
                FeatureRow(entity, key, counters, valid_from)
                for entity in COUNTER_VIEWS
                for key, counters, valid_from in latest_counters(connection, entity, after)
            ]


def latest_counters(
    connection: Connection, entity: EntityName, after: datetime | None
) -> Iterable[tuple[str, Counters, datetime]]:
    """(key, counters, since when) of the entities that changed after a moment, or of all.

    "All" walks the keys through the index, so its cost grows with the entities, not with their history.
    """
    table, column = COUNTER_VIEWS[entity], KEY_COLUMNS[entity]
    if after is not None:
        query = f"""
            SELECT DISTINCT ON ({column}) {column}, {_COUNTER_COLUMNS} FROM {table}
            WHERE event_timestamp > :after ORDER BY {column}, event_timestamp DESC"""
    else:
        query = f"""
            WITH RECURSIVE keys AS (
                SELECT min({column}) AS key FROM {table}
                UNION ALL
                SELECT (SELECT min({column}) FROM {table} WHERE {column} > keys.key)
                FROM keys WHERE keys.key IS NOT NULL
            )
            SELECT keys.key, row.* FROM keys CROSS JOIN LATERAL (
                SELECT {_COUNTER_COLUMNS} FROM {table}
                WHERE {column} = keys.key ORDER BY event_timestamp DESC LIMIT 1
            ) AS row"""
    for key, *row in connection.execute(text(query), {"after": after} if after else {}):
        yield key, _counters(row), row[-1]


def _counters(row: Sequence) -> Counters:
    *counts, as_of_s, _ = row
    return Counters(np.array(counts, dtype=np.float64), as_of_s)


def _progress(connection: Connection, lock: str = "") -> Progress:
    row = connection.execute(
        text(f"""
            SELECT nullif(folded_until, '-infinity'), generation::text, needs_rebuild FROM projection {lock}""")
    ).one()
    return Progress(row[0] or BEGINNING, row[1], row[2])
