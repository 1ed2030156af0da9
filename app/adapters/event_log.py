"""The event log in PostgreSQL: the only thing in this system that cannot be recomputed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.adapters.forgotten_users import ForgottenUsers
from app.domain.context import context_key
from app.domain.ports import Receipt
from app.domain.types import Event, StoredIn

# Holding the head until commit makes commits, and so `received_at`, one strictly ascending sequence.
ADVANCE_HEAD = text("""
    UPDATE log_heads SET last_at = greatest(clock_timestamp(), last_at + interval '1 microsecond')
    WHERE name = :name RETURNING last_at, nullif(kept_since, '-infinity') AS kept_since, has_forgotten""")

# One statement, so one round trip: the head's row is locked before the first key is claimed, because the keys
# need its time. The category is kept as it was, so that a replay does not depend on later changes of the catalog.
# Nothing is stored while there are people to leave out, unless the caller has done so.
_APPEND = text("""
    WITH head AS (
        UPDATE log_heads SET last_at = greatest(clock_timestamp(), last_at + interval '1 microsecond')
        WHERE name = 'events' RETURNING last_at, kept_since, has_forgotten
    ), sent AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:events AS json)) AS e(
            ordinal int, event_id text, event_type text, user_id text, proposition_id text, context jsonb,
            context_key text, request_id text, position int, value float8, occurred_at timestamptz)
    ), claimed AS (
        INSERT INTO event_keys (event_id, received_at)
        SELECT event_id, last_at FROM head, sent
        WHERE occurred_at >= kept_since AND (:is_without_forgotten OR NOT has_forgotten)
        ON CONFLICT DO NOTHING RETURNING event_id, received_at
    ), stored AS (
        INSERT INTO events (event_id, event_type, user_id, proposition_id, category, context, context_key,
                            request_id, position, value, occurred_at, received_at)
        SELECT e.event_id, e.event_type, e.user_id, e.proposition_id, p.category, e.context, e.context_key,
               e.request_id, e.position, e.value, e.occurred_at, c.received_at
        FROM claimed c JOIN sent e USING (event_id) LEFT JOIN propositions p USING (proposition_id)
        ORDER BY e.ordinal
    )
    SELECT last_at, nullif(kept_since, '-infinity'), has_forgotten,
           ARRAY(SELECT event_id FROM claimed) FROM head""")


class PostgresEventLog:
    """Implements `EventLog`: events are committed when `append` returns."""

    def __init__(self, database: Database, context_fields: Sequence[str]) -> None:
        self._database = database
        self._context_fields = tuple(context_fields)
        self._forgotten = ForgottenUsers()
        self._has_forgotten = False  # as of the last append

    def append(self, events: Sequence[Event]) -> Receipt:
        if not events:
            return Receipt((), (), StoredIn.POSTGRES)
        first_by_id: dict[str, Event] = {}
        for event in events:
            first_by_id.setdefault(event.event_id, event)
        new_ids, dropped_ids = self._stored(first_by_id)
        kept = [event.event_id for event in events if event.event_id not in dropped_ids]
        return Receipt(
            recorded_ids=tuple(i for i in first_by_id if i in new_ids),
            duplicate_ids=_all_but_first(kept, new_ids),
            stored_in=StoredIn.POSTGRES,
            dropped_ids=tuple(dropped_ids),
        )

    def _stored(self, events: Mapping[str, Event]) -> tuple[set[str], dict[str, None]]:
        """The ids that are new, and those of events that are not taken in any more."""
        if not self._has_forgotten:
            with self._database.session() as connection:
                head, new_ids = self._insert(connection, events.values(), is_without_forgotten=False)
            if not head.has_forgotten:
                return new_ids, _too_old(events.values(), head)
        with self._database.transaction() as connection:
            head = hold_head(connection, "events")
            self._has_forgotten = head.has_forgotten
            dropped = {**_too_old(events.values(), head), **self._of_forgotten(connection, events.values())}
            others = [event for event in events.values() if event.event_id not in dropped]
            return self._insert(connection, others, is_without_forgotten=True)[1], dropped

    def _insert(
        self, connection: Connection, events: Iterable[Event], is_without_forgotten: bool
    ) -> tuple["LogHead", set[str]]:
        records = [event_record(event, ordinal, self._context_fields) for ordinal, event in enumerate(events)]
        sent = {"events": orjson.dumps(records).decode(), "is_without_forgotten": is_without_forgotten}
        *head, new_ids = connection.execute(_APPEND, sent).one()
        return LogHead(*head), set(new_ids)

    def _of_forgotten(self, connection: Connection, events: Iterable[Event]) -> dict[str, None]:
        """Events from before their user was forgotten."""
        user_ids = {event.user_id for event in events if event.user_id is not None}
        forgotten_at = self._forgotten.since(connection, user_ids)
        return {
            event.event_id: None
            for event in events
            if event.user_id in forgotten_at and event.occurred_at <= forgotten_at[event.user_id]
        }


def _too_old(events: Iterable[Event], head: "LogHead") -> dict[str, None]:
    """Events from before events are kept."""
    if head.kept_since is None:
        return {}
    return {event.event_id: None for event in events if event.occurred_at < head.kept_since}


@dataclass(frozen=True, slots=True)
class LogHead:
    """A log while its writer holds it: the time of this commit, since when it keeps rows (None: from the
    first on), and whether there are people whose rows from before they were forgotten are left out."""

    last_at: datetime
    kept_since: datetime | None
    has_forgotten: bool

    @property
    def is_selective(self) -> bool:
        return self.has_forgotten or self.kept_since is not None


def hold_head(connection: Connection, name: str) -> LogHead:
    """The next state of the log `name`; its other writers wait for the commit."""
    return LogHead(*connection.execute(ADVANCE_HEAD, {"name": name}).one())


def advance_head(connection: Connection, name: str) -> datetime:
    """The time of this commit in the log `name`; its other writers wait for the commit."""
    return hold_head(connection, name).last_at


def event_record(event: Event, ordinal: int, context_fields: Sequence[str]) -> dict[str, Any]:
    return {
        "ordinal": ordinal,
        "event_id": event.event_id,
        "event_type": event.event_type,
        "user_id": event.user_id,
        "proposition_id": event.proposition_id,
        "context": dict(event.context),
        "context_key": context_key(event.context, context_fields),
        "request_id": event.request_id,
        "position": event.position,
        "value": event.value,
        "occurred_at": event.occurred_at.isoformat(),
    }


def _all_but_first(event_ids: Sequence[str], new_ids: set[str]) -> tuple[str, ...]:
    """Ids that were sent again: known before this call, or repeated within it. Each once, in order."""
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for event_id in event_ids:
        if event_id in seen or event_id not in new_ids:
            repeated[event_id] = None
        seen.add(event_id)
    return tuple(repeated)
