"""The feature tables in PostgreSQL: what the projector writes and what snapshots read."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from app.adapters.copying import copy_rows, text_array
from app.adapters.database import Database
from app.domain.types import EventType, RecordedEvent
from app.features.covisits import NeighbourRow, Neighbours
from app.features.fold import (
    BEGINNING,
    COUNTER_VIEWS,
    FOLDED_VIEWS,
    KEY_COLUMNS,
    Counters,
    FeatureRow,
    State,
    States,
    rows_by_view,
)
from app.features.recent import RECENT_FIELD, RECENT_VIEW, Recents
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName

REBUILD_SUFFIX = "_rebuild"
_PROJECTOR_LOCK = 0x50524F4A  # any number that nobody else uses for advisory locks in this database

NEIGHBOURS_TABLE = "proposition_neighbours"
_NEIGHBOUR_COLUMNS = ("neighbour_ids", "weights", "as_of_s")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the state of a view lies in the columns of its table."""

    columns: tuple[str, ...]
    to_values: Callable[[Any], Sequence]
    from_values: Callable[[Sequence], State]


_COUNTERS = _Layout(
    columns=(*COUNTER_FIELDS, AS_OF_FIELD),
    to_values=lambda counters: (*counters.counts.tolist(), repr(counters.as_of_s)),
    from_values=lambda values: Counters(np.array(values[:-1], dtype=np.float64), values[-1]),
)
_RECENTS = _Layout(
    columns=(RECENT_FIELD, "counted_at_s"),
    to_values=lambda recents: (text_array(recents.proposition_ids), recents.counted_at_s),
    from_values=lambda values: Recents(*map(tuple, values)),
)


def _layout(view: str) -> _Layout:
    return _RECENTS if view == RECENT_VIEW else _COUNTERS


# All that the projector fills, and a rebuild makes anew.
_FOLDED_TABLES = (*FOLDED_VIEWS, NEIGHBOURS_TABLE)


def _key_column(view: str) -> str:
    return KEY_COLUMNS[FOLDED_VIEWS[view]]


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

    def load_states(self, keys: Collection[tuple[str, str]]) -> States:
        """The newest state under those views and keys that have any."""
        by_view: dict[str, list[str]] = defaultdict(list)
        for view, key in keys:
            by_view[view].append(key)
        states: States = {}
        for view, view_keys in by_view.items():
            layout, column = _layout(view), _key_column(view)
            result = self._connection.execute(
                text(f"""
                    SELECT wanted.key, row.* FROM unnest(CAST(:keys AS text[])) AS wanted(key)
                    CROSS JOIN LATERAL (
                        SELECT {", ".join(layout.columns)} FROM {view}{self._suffix}
                        WHERE {column} = wanted.key ORDER BY event_timestamp DESC LIMIT 1
                    ) AS row"""),
                {"keys": view_keys},
            )
            states.update({(view, key): layout.from_values(values) for key, *values in result})
        return states

    def append(self, rows: Sequence[FeatureRow]) -> None:
        for view, view_rows in rows_by_view(rows).items():
            layout = _layout(view)
            copy_rows(
                self._connection,
                view + self._suffix,
                (_key_column(view), *layout.columns, "event_timestamp"),
                ((row.key, *layout.to_values(row.state), row.valid_from) for row in view_rows),
            )

    def load_neighbours(self, proposition_ids: Collection[str]) -> dict[str, Neighbours]:
        """The neighbours of those propositions that have any."""
        result = self._connection.execute(
            text(f"""
                SELECT proposition_id, {", ".join(_NEIGHBOUR_COLUMNS)} FROM {NEIGHBOURS_TABLE}{self._suffix}
                WHERE proposition_id = ANY(:ids)"""),
            {"ids": list(proposition_ids)},
        )
        return {
            key: Neighbours(dict(zip(ids, weights, strict=True)), as_of_s)
            for key, ids, weights, as_of_s in result
        }

    def replace_neighbours(self, rows: Sequence[NeighbourRow]) -> None:
        """Only the newest neighbours of a proposition are kept."""
        table = NEIGHBOURS_TABLE + self._suffix
        self._connection.execute(
            text(f"DELETE FROM {table} WHERE proposition_id = ANY(:ids)"),
            {"ids": [row.proposition_id for row in rows]},
        )
        copy_rows(
            self._connection,
            table,
            ("proposition_id", *_NEIGHBOUR_COLUMNS, "updated_at"),
            (
                (row.proposition_id, text_array(row.neighbour_ids), row.weights, row.as_of_s, row.updated_at)
                for row in rows
            ),
        )

    def set_folded_until(self, moment: datetime) -> None:
        self._connection.execute(
            text("UPDATE projection SET folded_until = :moment, positives_until = :moment"),
            {"moment": moment},
        )

    def swap_in_rebuild(self, folded_until: datetime) -> None:
        """Makes the rebuilt tables the live ones."""
        for table in _FOLDED_TABLES:
            self._connection.execute(text(f"DROP TABLE {table}"))
            self._connection.execute(text(f"ALTER TABLE {table}{REBUILD_SUFFIX} RENAME TO {table}"))
        self._connection.execute(
            text("""
                UPDATE projection
                SET folded_until = :moment, positives_until = :moment,
                    generation = gen_random_uuid(), needs_rebuild = false"""),
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
            for table in _FOLDED_TABLES:
                rebuilt = table + REBUILD_SUFFIX
                connection.execute(text(f"DROP TABLE IF EXISTS {rebuilt}"))
                connection.execute(text(f"CREATE TABLE {rebuilt} (LIKE {table} INCLUDING ALL)"))

    def latest(self, after: datetime | None) -> list[FeatureRow]:
        """The newest row of every entity that changed after a moment, or of every entity."""
        with self._database.snapshot() as connection:
            return [row for view in FOLDED_VIEWS for row in _latest_rows(connection, view, after)]


def latest_counters(
    connection: Connection, entity: EntityName, after: datetime | None
) -> Iterable[tuple[str, Counters, datetime]]:
    """(key, counters, since when) of the entities that changed after a moment, or of all."""
    for row in _latest_rows(connection, COUNTER_VIEWS[entity], after):
        yield row.key, row.state, row.valid_from


def _latest_rows(connection: Connection, view: str, after: datetime | None) -> Iterator[FeatureRow]:
    """The newest row of every entity that changed after a moment, or of every entity.

    The latter walks the keys through the index, so its cost grows with the entities, not with their history.
    """
    layout, column = _layout(view), _key_column(view)
    columns = ", ".join((*layout.columns, "event_timestamp"))
    if after is not None:
        query = f"""
            SELECT DISTINCT ON ({column}) {column}, {columns} FROM {view}
            WHERE event_timestamp > :after ORDER BY {column}, event_timestamp DESC"""
    else:
        query = f"""
            WITH RECURSIVE keys AS (
                SELECT min({column}) AS key FROM {view}
                UNION ALL
                SELECT (SELECT min({column}) FROM {view} WHERE {column} > keys.key)
                FROM keys WHERE keys.key IS NOT NULL
            )
            SELECT keys.key, row.* FROM keys CROSS JOIN LATERAL (
                SELECT {columns} FROM {view}
                WHERE {column} = keys.key ORDER BY event_timestamp DESC LIMIT 1
            ) AS row"""
    for key, *values, valid_from in connection.execute(text(query), {"after": after} if after else {}):
        yield FeatureRow(view, key, layout.from_values(values), valid_from)


def _progress(connection: Connection, lock: str = "") -> Progress:
    row = connection.execute(
        text(f"""
            SELECT nullif(folded_until, '-infinity'), generation::text,
                   needs_rebuild OR positives_until <> folded_until
            FROM projection {lock}""")
    ).one()
    return Progress(row[0] or BEGINNING, row[1], row[2])
