"""The event log in PostgreSQL: the only thing in this system that cannot be recomputed."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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

_CLAIM_KEYS = text("""
    INSERT INTO event_keys (event_id, received_at)
    SELECT event_id, :received_at FROM unnest(CAST(:event_ids AS text[])) AS event_id
    ON CONFLICT DO NOTHING RETURNING event_id""")

# The category is kept as it was, so that a replay does not depend on later changes of the catalog.
_INSERT_EVENTS = text("""
    INSERT INTO events (event_id, event_type, user_id, proposition_id, category, context, context_key,
                        request_id, position, value, occurred_at, received_at)
    SELECT e.event_id, e.event_type, e.user_id, e.proposition_id, p.category, e.context, e.context_key,
           e.request_id, e.position, e.value, e.occurred_at, :received_at
    FROM jsonb_to_recordset(CAST(:events AS jsonb)) AS e(
        ordinal int, event_id text, event_type text, user_id text, proposition_id text, context jsonb,
        context_key text, request_id text, position int, value float8, occurred_at timestamptz)
    LEFT JOIN propositions p USING (proposition_id)
    ORDER BY e.ordinal""")


class PostgresEventLog:
    """Implements `EventLog`: events are committed when `append` returns."""

    def __init__(self, database: Database, context_fields: Sequence[str]) -> None:
        self._database = database
        self._context_fields = tuple(context_fields)
        self._forgotten = ForgottenUsers()

    def append(self, events: Sequence[Event]) -> Receipt:
        if not events:
            return Receipt((), (), StoredIn.POSTGRES)
        first_by_id: dict[str, Event] = {}
        for event in events:
            first_by_id.setdefault(event.event_id, event)
        with self._database.transaction() as connection:
            head = hold_head(connection, "events")
            dropped_ids = self._dropped_ids(connection, head, first_by_id.values())
            for event_id in dropped_ids:
                del first_by_id[event_id]
            claimed = connection.execute(
                _CLAIM_KEYS, {"received_at": head.last_at, "event_ids": list(first_by_id)}
            )
            new_ids = set(claimed.scalars())
            records = [
                event_record(event, ordinal, self._context_fields)
                for ordinal, event in enumerate(first_by_id.values())
                if event.event_id in new_ids
            ]
            if records:
                connection.execute(
                    _INSERT_EVENTS, {"events": json.dumps(records), "received_at": head.last_at}
                )
        return Receipt(
            recorded_ids=tuple(i for i in first_by_id if i in new_ids),
            duplicate_ids=_all_but_first([e.event_id for e in events if e.event_id in first_by_id], new_ids),
            stored_in=StoredIn.POSTGRES,
            dropped_ids=dropped_ids,
        )

    def _dropped_ids(
        self, connection: Connection, head: "LogHead", events: Iterable[Event]
    ) -> tuple[str, ...]:
        """Events from before their user was forgotten, or from before events are kept."""
        if not head.is_selective:
            return ()
        user_ids = {event.user_id for event in events if event.user_id is not None}
        forgotten = self._forgotten.since(connection, user_ids) if head.has_forgotten else {}
        return tuple(
            event.event_id
            for event in events
            if event.occurred_at < (head.kept_since or event.occurred_at)
            or (event.user_id in forgotten and event.occurred_at <= forgotten[event.user_id])
        )


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
