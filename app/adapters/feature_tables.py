"""The feature tables in PostgreSQL: what the projector writes and what snapshots read."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from app.adapters.binary_copying import (
    Column,
    copy_columns,
    float8_arrays,
    float8_rows,
    float8s,
    text_arrays,
    texts,
    timestamps,
)
from app.adapters.database import Database
from app.adapters.slot_leases import SlotLeases, try_lock
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
from app.features.history import HISTORY_FIELDS, HISTORY_VIEW, UserHistory
from app.features.recent import RECENT_FIELD, RECENT_VIEW, Recents
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName
from app.features.slots import ALL_SLOTS, Progress

REBUILD_SUFFIX = "_rebuild"
# Any numbers that nobody else uses for advisory locks in this database.
PROJECTOR_LOCK, _REBUILD_LOCK = 0x50524F4A, 0x50524F4B

NEIGHBOURS_TABLE = "proposition_neighbours"
_NEIGHBOUR_COLUMNS = ("neighbour_ids", "weights", "as_of_s")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the state of a view lies in the columns of its table."""

    columns: tuple[str, ...]
    to_columns: Callable[[Sequence[Any]], list[Column]]
    from_values: Callable[[Sequence], State]


def _counter_columns(states: Sequence[Counters]) -> list[Column]:
    counts = np.stack([state.counts for state in states])  # (rows, event types, half-lives)
    arrays = [float8_rows(counts[:, position]) for position in range(len(COUNTER_FIELDS))]
    return [*arrays, float8s([state.as_of_s for state in states])]


def _recent_columns(states: Sequence[Recents]) -> list[Column]:
    return [
        text_arrays([state.proposition_ids for state in states]),
        float8_arrays([state.counted_at_s for state in states]),
    ]


def _history_columns(states: Sequence[UserHistory]) -> list[Column]:
    return [
        text_arrays([state.proposition_ids for state in states]),
        float8_arrays([state.impressions for state in states]),
        float8_arrays([state.clicks for state in states]),
    ]


_COUNTERS = _Layout(
    columns=(*COUNTER_FIELDS, AS_OF_FIELD),
    to_columns=_counter_columns,
    from_values=lambda values: Counters(np.array(values[:-1], dtype=np.float64), values[-1]),
)
_RECENTS = _Layout(
    columns=(RECENT_FIELD, "counted_at_s"),
    to_columns=_recent_columns,
    from_values=lambda values: Recents(*map(tuple, values)),
)
_HISTORIES = _Layout(
    columns=HISTORY_FIELDS,
    to_columns=_history_columns,
    from_values=lambda values: UserHistory(*map(tuple, values)),
)
_OTHER_LAYOUTS = {RECENT_VIEW: _RECENTS, HISTORY_VIEW: _HISTORIES}


def _layout(view: str) -> _Layout:
    return _OTHER_LAYOUTS.get(view, _COUNTERS)


# All that the projector fills, and a rebuild makes anew.
_FOLDED_TABLES = (*FOLDED_VIEWS, NEIGHBOURS_TABLE)


def _key_column(view: str) -> str:
    return KEY_COLUMNS[FOLDED_VIEWS[view]]


# All events of one commit are folded together, so a batch ends between two values of received_at.
_NEXT_EVENTS = text("""
    WITH ahead AS (
        SELECT received_at FROM events
        WHERE received_at > :after AND received_at <= coalesce(:until, timestamptz 'infinity')
        ORDER BY received_at, seq LIMIT :limit
    )
    SELECT event_type, proposition_id, user_id, category, context_key,
           extract(epoch FROM least(occurred_at, received_at))::float8, received_at
    FROM events
    WHERE received_at > :after AND received_at <= (SELECT max(received_at) FROM ahead)
    ORDER BY received_at, seq""")


class ProjectionBatch:
    """One transaction of the projector on the live tables, or on those of a rebuild."""

    def __init__(self, connection: Connection, suffix: str) -> None:
        self._connection = connection
        self._suffix = suffix

    def events_after(
        self, moment: datetime, limit: int, until: datetime | None = None
    ) -> list[RecordedEvent]:
        """About `limit` events in the order of their receipt, never half of one commit, none after `until`."""
        result = self._connection.execute(_NEXT_EVENTS, {"after": moment, "until": until, "limit": limit})
        return [RecordedEvent(EventType(event_type), *rest) for event_type, *rest in result.all()]

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
            states.update({(view, key): layout.from_values(values) for key, *values in result.all()})
        return states

    def append(self, rows: Sequence[FeatureRow]) -> None:
        for view, view_rows in rows_by_view(rows).items():
            layout = _layout(view)
            copy_columns(
                self._connection,
                view + self._suffix,
                (_key_column(view), *layout.columns, "event_timestamp"),
                [
                    texts([row.key for row in view_rows]),
                    *layout.to_columns([row.state for row in view_rows]),
                    timestamps([row.valid_from for row in view_rows]),
                ],
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
        if not rows:
            return
        table = NEIGHBOURS_TABLE + self._suffix
        self._connection.execute(
            text(f"DELETE FROM {table} WHERE proposition_id = ANY(:ids)"),
            {"ids": [row.proposition_id for row in rows]},
        )
        copy_columns(
            self._connection,
            table,
            ("proposition_id", *_NEIGHBOUR_COLUMNS, "updated_at"),
            [
                texts([row.proposition_id for row in rows]),
                text_arrays([row.neighbour_ids for row in rows]),
                float8_arrays([row.weights for row in rows]),
                float8s([row.as_of_s for row in rows]),
                timestamps([row.updated_at for row in rows]),
            ],
        )

    def set_folded_until(self, slots: Collection[int], moment: datetime) -> None:
        self._connection.execute(
            text("UPDATE projection_slots SET folded_until = :moment WHERE slot = ANY(:slots)"),
            {"moment": moment, "slots": list(slots)},
        )

    def swap_in_rebuild(self, folded_until: datetime, states_version: int) -> None:
        """Makes the rebuilt tables the live ones; `states_version` is that from before the rebuild.

        If it is another one by now, what was replayed may have been replayed too early: it is wanted again.
        """
        for table in _FOLDED_TABLES:
            self._connection.execute(text(f"DROP TABLE {table}"))
            self._connection.execute(text(f"ALTER TABLE {table}{REBUILD_SUFFIX} RENAME TO {table}"))
        self.set_folded_until(ALL_SLOTS, folded_until)
        self._connection.execute(
            text("""
                UPDATE projection
                SET generation = gen_random_uuid(), needs_rebuild = state_changes <> :states_version"""),
            {"states_version": states_version},
        )


class FeatureTables:
    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """True while this process is the only projector of the database, False if there are others."""
        with self._database.detached_session() as connection:
            yield try_lock(connection, PROJECTOR_LOCK)

    @contextmanager
    def rebuilding(self) -> Iterator[bool]:
        """True while no other process makes tables of a rebuild, False if one does."""
        with self._database.detached_session() as connection:
            yield try_lock(connection, _REBUILD_LOCK)

    @contextmanager
    def leases(self) -> Iterator[SlotLeases | None]:
        """The share of the slots that this process may fold; None while another one is the only projector."""
        with self._database.detached_session() as connection:
            yield SlotLeases(connection) if try_lock(connection, PROJECTOR_LOCK, "_shared") else None
            # PostgreSQL takes its time to notice that a connection has ended; who balances next need not wait for it.
            connection.execute(text("SELECT pg_advisory_unlock_all()"))

    def prepare(self) -> None:
        """Makes the partitions of the coming months."""
        with self._database.transaction() as connection:
            connection.execute(text("SELECT ensure_partitions_ahead()"))

    def progress(self) -> Progress:
        with self._database.transaction() as connection:
            return _progress(connection, ALL_SLOTS)

    @contextmanager
    def batch(self, slots: Collection[int]) -> Iterator[tuple[ProjectionBatch, Progress]]:
        """A transaction on the live tables that alone moves these slots, whoever else thinks to own them.

        Imports wait for it, and it for them, so the progress holds until its end.
        """
        with self._database.transaction() as connection:
            progress = _progress(connection, slots, "FOR SHARE", "FOR UPDATE")
            yield ProjectionBatch(connection, suffix=""), progress

    @contextmanager
    def rebuild_batch(self) -> Iterator[ProjectionBatch]:
        """A transaction on the tables of a rebuild, beside the live ones."""
        with self._database.transaction() as connection:
            yield ProjectionBatch(connection, REBUILD_SUFFIX)

    @contextmanager
    def final_rebuild_batch(self) -> Iterator[ProjectionBatch]:
        """Like `rebuild_batch`, while imports and all batches wait."""
        with self._database.transaction() as connection:
            hold_projection(connection)
            yield ProjectionBatch(connection, REBUILD_SUFFIX)

    def start_rebuild(self) -> int:
        """Makes empty tables beside the live ones; what an unfinished rebuild left is dropped.

        Returns the version of the states, for `swap_in_rebuild`.
        """
        with self._database.transaction() as connection:
            for table in _FOLDED_TABLES:
                rebuilt = table + REBUILD_SUFFIX
                connection.execute(text(f"DROP TABLE IF EXISTS {rebuilt}"))
                connection.execute(text(f"CREATE TABLE {rebuilt} (LIKE {table} INCLUDING ALL)"))
            return _progress(connection, ALL_SLOTS).states_version

    def facts_at(self) -> dict[str, datetime]:
        """The last change of what is entered and not folded, by view."""
        with self._database.transaction() as connection:
            heads = dict(map(tuple, connection.execute(_HEADS)))
        return {view: heads[head] or BEGINNING for view, head in _FACT_HEADS.items()}

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


def hold_projection(connection: Connection) -> None:
    """Until the transaction ends, no batch of a projector runs, and those under way are done.

    For whoever changes what was folded already. The lock of the table makes batches queue up behind it, which
    share the lock of the row with each other and could keep it for ever.
    """
    connection.execute(text("LOCK TABLE projection IN EXCLUSIVE MODE"))


# With the projection held: what processes remember of states, and an unfinished rebuild, no longer count.
FORGET_STATES = text("UPDATE projection SET state_changes = state_changes + 1")

# The views of what is entered and not folded, and the heads that tell of their changes.
_FACT_HEADS = {"user_profile": "users", "proposition_catalog": "catalog"}
_HEADS = text("SELECT name, nullif(last_at, '-infinity') FROM log_heads")


def _progress(
    connection: Connection, slots: Collection[int], lock: str = "", slots_lock: str = ""
) -> Progress:
    generation, needs_rebuild, states_version = connection.execute(
        text(f"SELECT generation::text, needs_rebuild, state_changes FROM projection {lock}")
    ).one()
    marks = connection.execute(
        text(f"""
            SELECT slot, nullif(folded_until, '-infinity') FROM projection_slots
            WHERE slot = ANY(:slots) ORDER BY slot {slots_lock}"""),
        {"slots": list(slots)},
    )
    return Progress(
        generation, needs_rebuild, states_version, {slot: moment or BEGINNING for slot, moment in marks}
    )
