"""The event log in PostgreSQL: the only thing in this system that cannot be recomputed."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.domain.context import context_key
from app.domain.ports import Receipt
from app.domain.types import Event, StoredIn

# Holding the head until commit makes commits, and so `received_at`, one strictly ascending sequence.
ADVANCE_HEAD = text("""
    UPDATE log_heads SET last_at = greatest(clock_timestamp(), last_at + interval '1 microsecond')
    WHERE name = :name RETURNING last_at""")

# One statement, so one round trip: the head's row is locked before the first key is claimed, because the keys
# need its time. The category is kept as it was, so that a replay does not depend on later changes of the catalog.
_APPEND = text("""
    WITH head AS (
        UPDATE log_heads SET last_at = greatest(clock_timestamp(), last_at + interval '1 microsecond')
        WHERE name = 'events' RETURNING last_at
    ), sent AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:events AS json)) AS e(
            ordinal int, event_id text, event_type text, user_id text, proposition_id text, context jsonb,
            context_key text, request_id text, position int, value float8, occurred_at timestamptz)
    ), claimed AS (
        INSERT INTO event_keys (event_id, received_at)
        SELECT event_id, last_at FROM head, sent ON CONFLICT DO NOTHING RETURNING event_id, received_at
    ), stored AS (
        INSERT INTO events (event_id, event_type, user_id, proposition_id, category, context, context_key,
                            request_id, position, value, occurred_at, received_at)
        SELECT e.event_id, e.event_type, e.user_id, e.proposition_id, p.category, e.context, e.context_key,
               e.request_id, e.position, e.value, e.occurred_at, c.received_at
        FROM claimed c JOIN sent e USING (event_id) LEFT JOIN propositions p USING (proposition_id)
        ORDER BY e.ordinal
    )
    SELECT event_id FROM claimed""")


class PostgresEventLog:
    """Implements `EventLog`: events are committed when `append` returns."""

    def __init__(self, database: Database, context_fields: Sequence[str]) -> None:
        self._database = database
        self._context_fields = tuple(context_fields)

    def append(self, events: Sequence[Event]) -> Receipt:
        if not events:
            return Receipt((), (), StoredIn.POSTGRES)
        first_by_id: dict[str, Event] = {}
        for event in events:
            first_by_id.setdefault(event.event_id, event)
        records = [
            event_record(event, ordinal, self._context_fields)
            for ordinal, event in enumerate(first_by_id.values())
        ]
        with self._database.session() as connection:
            new_ids = set(connection.execute(_APPEND, {"events": orjson.dumps(records).decode()}).scalars())
        return Receipt(
            recorded_ids=tuple(i for i in first_by_id if i in new_ids),
            duplicate_ids=_all_but_first([e.event_id for e in events], new_ids),
            stored_in=StoredIn.POSTGRES,
        )


def advance_head(connection: Connection, name: str) -> datetime:
    """The time of this commit in the log `name`; other writers of that log wait for the commit."""
    return connection.execute(ADVANCE_HEAD, {"name": name}).scalar_one()


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
