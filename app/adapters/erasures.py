"""Removing a person from PostgreSQL, for good and beside live traffic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.adapters.event_log import advance_head
from app.adapters.feature_tables import FORGET_STATES, REBUILD_SUFFIX, hold_projection
from app.adapters.forgotten_users import ForgottenUsers
from app.domain.context import KEY_SEPARATOR
from app.domain.ports import Erasure

_FOLDED = ("user_activity", "user_history", "user_recent")
_OF_USER = ("users", "user_profile", *_FOLDED, "decisions")
_AFFINITY = "user_category_affinity"
_REBUILT = (*_FOLDED, _AFFINITY)

# Later than any event.
_END = datetime.max.replace(tzinfo=UTC)

# The ids go, too, for whoever sends an event may put anything into its id. Copies are known by their user then.
# An array, so that the keys are looked up in their index, however many the planner expects.
_DELETE_EVENTS = text("""
    WITH deleted AS (
        DELETE FROM events WHERE user_id = :user_id AND occurred_at <= :until RETURNING event_id, occurred_at
    ), unclaimed AS (
        DELETE FROM event_keys WHERE event_id = ANY(ARRAY(SELECT event_id FROM deleted))
    )
    SELECT count(*), max(occurred_at) FROM deleted""")

# Compared as bytes: in the order of a language control characters may count for nothing.
_DELETE_AFFINITY = """
    DELETE FROM {table} WHERE user_category_key ~>=~ :first AND user_category_key ~<~ :behind
    RETURNING user_category_key"""

# The keys of an erasure that was cut short are still to be removed elsewhere.
_NOTE_UNFINISHED = text("""
    INSERT INTO unfinished_erasures AS known VALUES (
        :user_id, CAST(:keys AS text[]), coalesce(CAST(:at AS timestamptz), clock_timestamp()))
    ON CONFLICT (user_id) DO UPDATE SET
        user_category_keys = ARRAY(
            SELECT unnest(known.user_category_keys) UNION SELECT unnest(excluded.user_category_keys)),
        erased_at = excluded.erased_at
    RETURNING user_category_keys""")


class PostgresErasures:
    """Implements `Erasures`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._forgotten = ForgottenUsers()

    def erase(self, user_id: str, elsewhere: Mapping[str, int]) -> Erasure:
        with self._database.transaction() as connection:
            # First of all nothing older may come in any more: what is deleted is no longer known by its id.
            since = _hold_heads(connection)
            self._leave_out(connection, user_id, since)
        # Most of it next, while everybody goes on; what is left then takes a moment.
        with self._database.transaction() as connection:
            most = _delete(connection, user_id, since)
            _note_unfinished(connection, user_id, most.user_category_keys)
        with self._database.transaction() as connection:
            hold_projection(connection)
            at = _hold_heads(connection)
            rest = _delete(connection, user_id, _END)
            keys = _note_unfinished(connection, user_id, rest.user_category_keys, at)
            # A sender's clock may be ahead: copies of what was deleted just now are from before, too.
            self._leave_out(connection, user_id, max(at, rest.newest_event_at or at))
            connection.execute(FORGET_STATES)
            counts = {table: most.counts[table] + rest.counts[table] for table in most.counts}
            connection.execute(
                text("INSERT INTO erasures (erased_at, counts) VALUES (:at, CAST(:counts AS jsonb))"),
                {"at": at, "counts": orjson.dumps({**counts, **elsewhere}).decode()},
            )
        return Erasure(user_id, tuple(keys), counts, at)

    def _leave_out(self, connection: Connection, user_id: str, until: datetime) -> None:
        """What comes from now on of a user from up to a moment is not recorded. Hold the heads."""
        self._forgotten.add(connection, user_id, until)
        connection.execute(
            text("UPDATE log_heads SET has_forgotten = true WHERE name IN ('events', 'decisions')")
        )

    def unfinished(self, until: datetime) -> list[Erasure]:
        with self._database.transaction() as connection:
            rows = connection.execute(
                text("""
                    SELECT user_id, user_category_keys, erased_at FROM unfinished_erasures
                    WHERE erased_at <= :until"""),
                {"until": until},
            ).all()
        return [Erasure(user_id, tuple(keys), {}, erased_at) for user_id, keys, erased_at in rows]

    def finish(self, erasure: Erasure) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                text("DELETE FROM unfinished_erasures WHERE user_id = :user_id AND erased_at = :erased_at"),
                {"user_id": erasure.user_id, "erased_at": erasure.erased_at},
            )


@dataclass(frozen=True, slots=True)
class _Deleted:
    """Rows by table, the keys of user x category among them, and when the newest of the events happened."""

    counts: Mapping[str, int]
    user_category_keys: Sequence[str]
    newest_event_at: datetime | None


def _hold_heads(connection: Connection) -> datetime:
    """Holds up, until the commit, whoever records; returns a moment after all they did."""
    connection.execute(text("SELECT FROM log_heads ORDER BY name FOR UPDATE"))
    return advance_head(connection, "events")


def _delete(connection: Connection, user_id: str, events_until: datetime) -> _Deleted:
    """Deletes what is there now; of the events those that happened up to a moment."""
    counts = {
        table: connection.execute(
            text(f"DELETE FROM {table} WHERE user_id = :user_id"), {"user_id": user_id}
        ).rowcount
        for table in _OF_USER
    }
    of_user = {"user_id": user_id, "until": events_until}
    counts["events"], newest_event_at = connection.execute(_DELETE_EVENTS, of_user).one()
    keys = _delete_affinity(connection, _AFFINITY, user_id)
    counts[_AFFINITY] = len(keys)
    _delete_rebuilt(connection, user_id)
    return _Deleted(counts, keys, newest_event_at)


def _note_unfinished(
    connection: Connection, user_id: str, user_category_keys: Sequence[str], at: datetime | None = None
) -> list[str]:
    """All keys whose rows from up to a moment, or up to now, are to be removed elsewhere."""
    noted = {"user_id": user_id, "keys": sorted(set(user_category_keys)), "at": at}
    return connection.execute(_NOTE_UNFINISHED, noted).scalar_one()


def _delete_rebuilt(connection: Connection, user_id: str) -> None:
    """What a rebuild that runs just now has made again."""
    for table in _REBUILT:
        rebuilt = table + REBUILD_SUFFIX
        if connection.execute(text("SELECT to_regclass(:name)"), {"name": rebuilt}).scalar_one() is None:
            continue
        connection.execute(text(f"LOCK TABLE {rebuilt} IN SHARE ROW EXCLUSIVE MODE"))
        if table == _AFFINITY:
            _delete_affinity(connection, rebuilt, user_id)
        else:
            connection.execute(text(f"DELETE FROM {rebuilt} WHERE user_id = :user_id"), {"user_id": user_id})


def _delete_affinity(connection: Connection, table: str, user_id: str) -> list[str]:
    bounds = {"first": user_id + KEY_SEPARATOR, "behind": user_id + chr(ord(KEY_SEPARATOR) + 1)}
    return list(connection.execute(text(_DELETE_AFFINITY.format(table=table)), bounds).scalars())
