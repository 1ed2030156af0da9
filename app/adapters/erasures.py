"""Removing a person from PostgreSQL, for good and beside live traffic."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

import orjson
from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.adapters.event_log import advance_head
from app.adapters.feature_tables import FORGET_STATES, REBUILD_SUFFIX, hold_projection
from app.adapters.forgotten_users import ForgottenUsers
from app.domain.context import KEY_SEPARATOR
from app.domain.ports import Erasure

_OF_USER = ("users", "user_profile", "user_activity", "user_recent", "events", "decisions")
_AFFINITY = "user_category_affinity"
_REBUILT = ("user_activity", "user_recent", _AFFINITY)

# Compared as bytes: in the order of a language control characters may count for nothing.
_DELETE_AFFINITY = """
    DELETE FROM {table} WHERE user_category_key ~>=~ :first AND user_category_key ~<~ :behind
    RETURNING user_category_key"""

# The keys of an erasure that was cut short are still to be removed elsewhere.
_NOTE_UNFINISHED = text("""
    INSERT INTO unfinished_erasures AS known VALUES (:user_id, CAST(:keys AS text[]), clock_timestamp())
    ON CONFLICT (user_id) DO UPDATE SET
        user_category_keys = ARRAY(
            SELECT unnest(known.user_category_keys) UNION SELECT unnest(excluded.user_category_keys)),
        erased_at = excluded.erased_at
    RETURNING user_category_keys, erased_at""")


class PostgresErasures:
    """Implements `Erasures`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._forgotten = ForgottenUsers()

    def erase(self, user_id: str, elsewhere: Mapping[str, int]) -> Erasure:
        # Most of it first, while everybody goes on; what is left then takes a moment.
        with self._database.transaction() as connection:
            counts = _delete(connection, user_id)[0]
        with self._database.transaction() as connection:
            at = _stop_writers(connection)
            more, keys, erased_at = _delete(connection, user_id)
            counts = {table: counts[table] + more[table] for table in counts}
            self._forgotten.add(connection, user_id, at)
            connection.execute(
                text("UPDATE log_heads SET has_forgotten = true WHERE name IN ('events', 'decisions')")
            )
            connection.execute(FORGET_STATES)
            connection.execute(
                text("INSERT INTO erasures (erased_at, counts) VALUES (:at, CAST(:counts AS jsonb))"),
                {"at": at, "counts": orjson.dumps({**counts, **elsewhere}).decode()},
            )
        return Erasure(user_id, tuple(keys), counts, erased_at)

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


def _stop_writers(connection: Connection) -> datetime:
    """Holds up, until the commit, the projector and whoever records; returns a moment after all they did."""
    hold_projection(connection)
    connection.execute(text("SELECT FROM log_heads ORDER BY name FOR UPDATE"))
    return advance_head(connection, "events")


def _delete(connection: Connection, user_id: str) -> tuple[Counter[str], list[str], datetime]:
    """(deleted rows by table, user x category keys, when) of what is there now."""
    counts = Counter(
        {
            table: connection.execute(
                text(f"DELETE FROM {table} WHERE user_id = :user_id"), {"user_id": user_id}
            ).rowcount
            for table in _OF_USER
        }
    )
    keys = _delete_affinity(connection, _AFFINITY, user_id)
    counts[_AFFINITY] = len(keys)
    _delete_rebuilt(connection, user_id)
    noted = connection.execute(_NOTE_UNFINISHED, {"user_id": user_id, "keys": sorted(set(keys))})
    return counts, *noted.one()


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
