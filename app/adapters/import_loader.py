"""Bulk loads users, propositions and events: first into staging tables, then merged in order.

Staging keeps memory flat for files of any size and lets PostgreSQL sort. Events are merged in the order
of their time, in chunks that hold the log's head only briefly, so a running service goes on recording.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, text

from app.adapters.catalog_store import PROPOSITIONS, USERS, EntityTable, merge
from app.adapters.copying import copy_rows, text_array
from app.adapters.database import Database
from app.adapters.event_log import LogHead, hold_head
from app.adapters.feature_tables import FORGET_STATES, hold_projection
from app.adapters.forgotten_users import ForgottenUsers
from app.domain.context import context_key
from app.domain.ports import Loaded
from app.domain.types import Event, Proposition, User
from app.features.fold import BEGINNING

_FLUSH_ROWS = 5_000
_CHUNK_EVENTS = 20_000

_USER_COLUMNS, _PROPOSITION_COLUMNS = tuple(USERS.columns), tuple(PROPOSITIONS.columns)
_EVENT_COLUMNS = (
    "event_id",
    "event_type",
    "user_id",
    "proposition_id",
    "context",
    "context_key",
    "request_id",
    "position",
    "value",
    "occurred_at",
)


@contextmanager
def open_import(database: Database, context_fields: Sequence[str]) -> Iterator["ImportLoader"]:
    """A loader over one connection. What it staged is gone at the end of the block."""
    with database.session() as connection:
        for table, columns in (
            ("users", _USER_COLUMNS),
            ("propositions", _PROPOSITION_COLUMNS),
            ("events", _EVENT_COLUMNS),
        ):
            connection.execute(text(f"DROP TABLE IF EXISTS staged_{table}"))
            connection.execute(
                text(f"CREATE TEMP TABLE staged_{table} AS SELECT {', '.join(columns)} FROM {table} LIMIT 0")
            )
            connection.execute(text(f"ALTER TABLE staged_{table} ADD COLUMN line bigserial"))
        try:
            yield ImportLoader(connection, context_fields)
        finally:
            for table in ("users", "propositions", "events"):
                connection.execute(text(f"DROP TABLE IF EXISTS staged_{table}"))


class ImportLoader:
    """Implements `Loader`."""

    def __init__(self, connection: Connection, context_fields: Sequence[str]) -> None:
        self._connection = connection
        self._context_fields = tuple(context_fields)
        self._forgotten = ForgottenUsers()
        self._users: list[tuple] = []
        self._propositions: list[tuple] = []
        self._events: list[tuple] = []

    def add(self, record: User | Proposition | Event) -> None:
        match record:
            case User():
                rows, row = self._users, _user_row(record)
            case Proposition():
                rows, row = self._propositions, _proposition_row(record)
            case Event():
                rows, row = self._events, self._event_row(record)
        rows.append(row)
        if len(rows) >= _FLUSH_ROWS:
            self._flush()

    def finish(self, shift_to_now: bool) -> Loaded:
        """Merges what was added. All times move by the same span with `shift_to_now`."""
        self._flush()
        shift = self._shift_to_now() if shift_to_now else "0 seconds"
        users = self._merge(USERS, shift)
        propositions = self._merge(PROPOSITIONS, shift)
        events, duplicates = self._merge_events(shift)
        return Loaded(users, propositions, events, duplicates)

    def _flush(self) -> None:
        for table, columns, rows in (
            ("staged_users", _USER_COLUMNS, self._users),
            ("staged_propositions", _PROPOSITION_COLUMNS, self._propositions),
            ("staged_events", _EVENT_COLUMNS, self._events),
        ):
            if rows:
                copy_rows(self._connection, table, columns, rows)
                rows.clear()

    def _event_row(self, event: Event) -> tuple:
        return (
            event.event_id,
            str(event.event_type),
            event.user_id,
            event.proposition_id,
            json.dumps(dict(event.context)),
            context_key(event.context, self._context_fields),
            event.request_id,
            event.position,
            event.value,
            event.occurred_at.isoformat(),
        )

    def _shift_to_now(self) -> str:
        return self._connection.execute(
            text("SELECT coalesce(now() - max(occurred_at), interval '0')::text FROM staged_events")
        ).scalar_one()

    def _merge(self, table: EntityTable, shift: str) -> int:
        """Merges what was staged for a table; returns how many entities are new or differ."""
        columns = [c for c in table.columns if c != "created_at"]
        source = f"""(
            SELECT {", ".join(columns)}, created_at + CAST(:shift AS interval) AS created_at, line
            FROM staged_{table.name}) AS staged"""
        with _transaction(self._connection):
            (changed,) = merge(self._connection, table, source, {"shift": shift})
            return changed

    def _merge_events(self, shift: str) -> tuple[int, int]:
        self._connection.execute(text("CREATE INDEX ON staged_events (occurred_at, line)"))
        self._connection.execute(text("ANALYZE staged_events"))
        staged = self._connection.execute(text("SELECT count(*) FROM staged_events")).scalar_one()
        if staged == 0:
            return 0, 0
        self._connection.execute(
            text("""
                SELECT ensure_month_partition('events', 'received_at', month) FROM (
                    SELECT DISTINCT date_trunc('month', occurred_at + CAST(:shift AS interval)) AS month
                    FROM staged_events
                ) AS months"""),
            {"shift": shift},
        )
        first = self._connection.execute(
            text("SELECT min(occurred_at) + CAST(:shift AS interval) FROM staged_events"), {"shift": shift}
        ).scalar_one()
        recorded, after = 0, None
        while (until := self._chunk_end(after)) is not None:
            recorded += self._merge_chunk(after, until, shift)
            after = until
        self._note_known_before(first)
        return recorded, staged - recorded

    def _chunk_end(self, after: datetime | None) -> datetime | None:
        """The time of about the 20,000th event after a moment: a chunk never splits one instant."""
        return self._connection.execute(
            text("""
                SELECT max(occurred_at) FROM (
                    SELECT occurred_at FROM staged_events
                    WHERE CAST(:after AS timestamptz) IS NULL OR occurred_at > :after
                    ORDER BY occurred_at LIMIT :chunk) AS chunk"""),
            {"after": after, "chunk": _CHUNK_EVENTS},
        ).scalar_one()

    def _merge_chunk(self, after: datetime | None, until: datetime, shift: str) -> int:
        with _transaction(self._connection):
            # No projector must pass by while older events come in.
            hold_projection(self._connection)
            head = hold_head(self._connection, "events")
            if head.is_selective:
                self._leave_out(head, after, until, shift)
            recorded, oldest = self._connection.execute(
                _MERGE_CHUNK, {"after": after, "until": until, "shift": shift}
            ).one()
            if oldest is not None:
                self._connection.execute(_NOTE_OLDER_EVENTS, {"oldest": oldest})
                self._connection.execute(FORGET_STATES)  # a rebuild under way may have passed by
            return recorded

    def _leave_out(self, head: LogHead, after: datetime | None, until: datetime, shift: str) -> None:
        """Takes events out of a chunk that are from before events are kept, or before their user was forgotten."""
        chunk = {"after": after, "until": until, "shift": shift}
        users = self._connection.execute(text(f"SELECT DISTINCT user_id {_CHUNK} AND user_id <> ''"), chunk)
        forgotten = (
            self._forgotten.since(self._connection, set(users.scalars())) if head.has_forgotten else {}
        )
        self._connection.execute(
            text(f"DELETE {_CHUNK} AND occurred_at + CAST(:shift AS interval) < :kept_since"),
            {**chunk, "kept_since": head.kept_since or BEGINNING},
        )
        for user_id, forgotten_at in forgotten.items():
            self._connection.execute(
                text(f"""
                    DELETE {_CHUNK} AND user_id = :user_id
                        AND occurred_at + CAST(:shift AS interval) <= :forgotten_at"""),
                {**chunk, "user_id": user_id, "forgotten_at": forgotten_at},
            )

    def _note_known_before(self, first_event_at: datetime) -> None:
        """Lets the oldest version of every entity in these events hold from before the first of them.

        History tells what happened to an entity, rarely when it was entered; without this, training on
        imported events would not know any user or proposition.
        """
        with _transaction(self._connection):
            # Whoever forgets a user waits, so that no version is copied which they delete.
            self._connection.execute(text("SELECT FROM log_heads WHERE name = 'users' FOR UPDATE"))
            for table, key, columns in (
                ("user_profile", "user_id", "age_years, gender, segment"),
                (
                    "proposition_catalog",
                    "proposition_id",
                    "category, value, created_at_s, traits, number_names, number_values",
                ),
            ):
                self._connection.execute(
                    text(f"""
                        INSERT INTO {table} ({key}, {columns}, event_timestamp)
                        SELECT {key}, {columns}, :first - interval '1 second'
                        FROM (SELECT DISTINCT {key} FROM staged_events WHERE {key} IS NOT NULL) AS seen
                        CROSS JOIN LATERAL (
                            SELECT {columns}, event_timestamp FROM {table} AS version
                            WHERE version.{key} = seen.{key} ORDER BY event_timestamp LIMIT 1
                        ) AS oldest
                        WHERE oldest.event_timestamp >= :first
                        ON CONFLICT DO NOTHING"""),
                    {"first": first_event_at},
                )


_CHUNK = """
    FROM staged_events
    WHERE (CAST(:after AS timestamptz) IS NULL OR occurred_at > :after) AND occurred_at <= :until"""

_NOTE_OLDER_EVENTS = text("""
    UPDATE projection SET needs_rebuild = true
    WHERE :oldest <= (SELECT max(folded_until) FROM projection_slots)""")

# An imported event was received when it happened: what came before it was known by then.
_MERGE_CHUNK = text("""
    WITH chunk AS (
        SELECT DISTINCT ON (event_id) *, occurred_at + CAST(:shift AS interval) AS moment FROM staged_events
        WHERE (CAST(:after AS timestamptz) IS NULL OR occurred_at > :after) AND occurred_at <= :until
        ORDER BY event_id, line
    ), claimed AS (
        INSERT INTO event_keys (event_id, received_at) SELECT event_id, least(moment, now()) FROM chunk
        ON CONFLICT DO NOTHING RETURNING event_id
    ), recorded AS (
        INSERT INTO events (event_id, event_type, user_id, proposition_id, category, context, context_key,
                            request_id, position, value, occurred_at, received_at)
        SELECT c.event_id, c.event_type, c.user_id, c.proposition_id, p.category, c.context, c.context_key,
               c.request_id, c.position, c.value, c.moment, least(c.moment, now())
        FROM chunk c JOIN claimed USING (event_id) LEFT JOIN propositions p USING (proposition_id)
        ORDER BY c.occurred_at, c.line
        RETURNING received_at
    )
    SELECT count(*), min(received_at) FROM recorded""")


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """A transaction on a connection that otherwise commits every statement."""
    connection.execute(text("BEGIN"))
    try:
        yield
    except BaseException:
        connection.execute(text("ROLLBACK"))
        raise
    connection.execute(text("COMMIT"))


def _user_row(user: User) -> tuple:
    return (
        user.user_id,
        user.age_years,
        user.gender,
        user.segment,
        json.dumps(user.attributes),
        _iso(user.created_at),
    )


def _proposition_row(proposition: Proposition) -> tuple:
    return (
        proposition.proposition_id,
        proposition.title,
        proposition.category,
        text_array(proposition.tags),
        proposition.value,
        proposition.is_active,
        _iso(proposition.starts_at),
        _iso(proposition.ends_at),
        json.dumps(proposition.attributes),
        _iso(proposition.created_at),
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
