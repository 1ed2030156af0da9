"""Bulk loads users, propositions and events: first into staging tables, then merged in order.

Staging keeps memory flat for files of any size and lets PostgreSQL sort. Events are merged in the order
of their time, in chunks that hold the log's head only briefly, so a running service goes on recording.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, text

from app.adapters.copying import copy_rows, text_array
from app.adapters.database import Database
from app.adapters.event_log import advance_head
from app.adapters.feature_tables import FORGET_STATES, hold_projection
from app.domain.context import context_key
from app.domain.ports import Loaded
from app.domain.types import Event, Proposition, User

_FLUSH_ROWS = 5_000
_CHUNK_EVENTS = 20_000

_USER_COLUMNS = ("user_id", "age_years", "gender", "segment", "attributes", "created_at")
_PROPOSITION_COLUMNS = (
    "proposition_id",
    "title",
    "category",
    "tags",
    "value",
    "is_active",
    "starts_at",
    "ends_at",
    "attributes",
    "created_at",
)
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
        users = self._merge("users", "user_id", _USER_COLUMNS, _PROFILE, shift)
        propositions = self._merge("propositions", "proposition_id", _PROPOSITION_COLUMNS, _CATALOG, shift)
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

    def _merge(self, table: str, key: str, columns: Sequence[str], history: str, shift: str) -> int:
        """Inserts or changes entities, and notes a new version of those that differ; returns their number."""
        changed = ", ".join(f"{c} = excluded.{c}" for c in columns if c not in (key, "created_at"))
        compared = ", ".join(c for c in columns if c != "created_at")
        with _transaction(self._connection):
            at = advance_head(self._connection, "catalog")
            return self._connection.execute(
                text(f"""
                    WITH merged AS (
                        INSERT INTO {table} AS known ({", ".join(columns)}, updated_at)
                        SELECT DISTINCT ON ({key})
                            {", ".join(c for c in columns if c != "created_at")},
                            created_at + CAST(:shift AS interval), :at
                        FROM staged_{table} ORDER BY {key}, line DESC
                        ON CONFLICT ({key}) DO UPDATE SET {changed}, updated_at = excluded.updated_at
                        WHERE ({", ".join(f"known.{c}" for c in compared.split(", "))})
                            IS DISTINCT FROM ({", ".join(f"excluded.{c}" for c in compared.split(", "))})
                        RETURNING *
                    ), noted AS ({history})
                    SELECT count(*) FROM merged"""),
                {"shift": shift, "at": at},
            ).scalar_one()

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
            advance_head(self._connection, "events")
            recorded, oldest = self._connection.execute(
                _MERGE_CHUNK, {"after": after, "until": until, "shift": shift}
            ).one()
            if oldest is not None:
                self._connection.execute(_NOTE_OLDER_EVENTS, {"oldest": oldest})
                self._connection.execute(FORGET_STATES)  # a rebuild under way may have passed by
            return recorded

    def _note_known_before(self, first_event_at: datetime) -> None:
        """Lets the oldest version of every entity in these events hold from before the first of them.

        History tells what happened to an entity, rarely when it was entered; without this, training on
        imported events would not know any user or proposition.
        """
        for table, key, columns in (
            ("user_profile", "user_id", "age_years, gender, segment"),
            ("proposition_catalog", "proposition_id", "category, value, created_at_s"),
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


_NOTE_OLDER_EVENTS = text("""
    UPDATE projection SET needs_rebuild = true
    WHERE :oldest <= (SELECT max(folded_until) FROM projection_slots)""")

_PROFILE = """
    INSERT INTO user_profile (user_id, age_years, gender, segment, event_timestamp)
    SELECT user_id, age_years, gender, segment, updated_at FROM merged"""

_CATALOG = """
    INSERT INTO proposition_catalog (proposition_id, category, value, created_at_s, event_timestamp)
    SELECT proposition_id, category, value, extract(epoch FROM created_at)::float8, updated_at FROM merged"""

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
