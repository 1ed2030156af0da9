"""The maintenance of PostgreSQL's tables, in steps that nobody waits for long."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg2.errors
from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.domain.errors import StoreUnavailable
from app.features.fold import FOLDED_VIEWS, KEY_COLUMNS

_MAINTENANCE_LOCK = 0x4D41494E  # any number that nobody else uses for advisory locks in this database
# Who waits for a table lock holds up all who come after. So: a short time, and again.
LOCK_TIMEOUT_MS = 200
LOCK_ATTEMPTS = 20
LOCK_PAUSE_S = 0.5
_ROWS_AT_A_TIME = 20_000

TIME_COLUMNS = {"events": "received_at", "decisions": "decided_at"}
# Every feature table and its key.
FEATURE_KEYS = {
    "user_profile": "user_id",
    "proposition_catalog": "proposition_id",
    **{view: KEY_COLUMNS[entity] for view, entity in FOLDED_VIEWS.items()},
}

_PARTITIONS = text("""
    SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
    WHERE inhparent = to_regclass(:log) AND c.relname ~ '_[0-9]{4}_[0-9]{2}$' ORDER BY 1""")

_DELETE_KEYS = text("""
    DELETE FROM event_keys WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM event_keys WHERE received_at < :before LIMIT :rows))""")


class PostgresMaintenance:
    """Implements `Tables` of `app.life.maintain`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """True while this process is the only one that maintains the database, False if another one does."""
        with self._database.session() as connection:
            connection.detach()  # closing it, however this block ends, gives the lock back
            yield connection.execute(
                text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _MAINTENANCE_LOCK}
            ).scalar_one()

    def make_partitions_ahead(self) -> int:
        before = self._partition_count()
        self._briefly("SELECT ensure_partitions_ahead()")
        return self._partition_count() - before

    def keep_since(self, log: str, moment: datetime) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                text("UPDATE log_heads SET kept_since = greatest(kept_since, :moment) WHERE name = :log"),
                {"log": log, "moment": moment},
            )

    def drop_months(self, log: str, before: datetime) -> list[str]:
        first_kept = f"{log}_{before:%Y_%m}"
        dropped = [name for name in self._partitions(log) if name < first_kept]
        for name in dropped:
            self._briefly(f"DROP TABLE IF EXISTS {name}")
        return dropped

    def empty_default(self, log: str, kept_since: datetime | None) -> int:
        """Moves rows to the partitions of their months; those from before `kept_since` are deleted."""
        column = TIME_COLUMNS[log]
        with self._database.transaction() as connection:
            if kept_since is not None:
                _execute(connection, f"DELETE FROM {log}_default WHERE {column} < :since", since=kept_since)
            months = connection.execute(
                text(f"SELECT date_trunc('month', {column}), count(*) FROM {log}_default GROUP BY 1")
            ).all()
        for month, _ in months:
            self._briefly(
                "SELECT ensure_month_partition(:log, :column, :month)", log=log, column=column, month=month
            )
        return sum(count for _, count in months)

    def delete_event_keys(self, before: datetime) -> int:
        deleted = 0
        while True:
            with self._database.transaction() as connection:
                count = connection.execute(_DELETE_KEYS, {"before": before, "rows": _ROWS_AT_A_TIME}).rowcount
            deleted += count
            if count < _ROWS_AT_A_TIME:
                return deleted

    def delete_superseded_features(self, before: datetime) -> int:
        deleted = 0
        for table, key in FEATURE_KEYS.items():
            with self._database.transaction() as connection:
                deleted += _execute(
                    connection,
                    f"""
                    DELETE FROM {table} AS old WHERE event_timestamp < :before AND EXISTS (
                        SELECT FROM {table} AS newer
                        WHERE newer.{key} = old.{key} AND newer.event_timestamp > old.event_timestamp
                            AND newer.event_timestamp <= :before)""",
                    before=before,
                )
        return deleted

    def delete_forgotten(self, before: datetime) -> int:
        with self._database.transaction() as connection:
            # Whoever forgets a user at this moment waits, so that the mark tells the truth.
            _execute(connection, "SELECT FROM log_heads ORDER BY name FOR UPDATE")
            deleted = _execute(
                connection, "DELETE FROM forgotten_users WHERE forgotten_at < :before", before=before
            )
            _execute(
                connection,
                """
                UPDATE log_heads SET has_forgotten = false
                WHERE has_forgotten AND NOT EXISTS (SELECT FROM forgotten_users)""",
            )
        return deleted

    def _partitions(self, log: str) -> list[str]:
        with self._database.transaction() as connection:
            return list(connection.execute(_PARTITIONS, {"log": log}).scalars())

    def _partition_count(self) -> int:
        return sum(len(self._partitions(log)) for log in TIME_COLUMNS)

    def _briefly(self, statement: str, **parameters: Any) -> None:
        """Runs what needs a table for itself: never waits long for it, but again and again.

        Raises:
            StoreUnavailable: the table was in use at every attempt.
        """
        for attempts_left in reversed(range(LOCK_ATTEMPTS)):
            try:
                with self._database.transaction() as connection:
                    _execute(connection, f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                    _execute(connection, statement, **parameters)
                return
            except StoreUnavailable as error:
                if not _was_locked(error):
                    raise
                if not attempts_left:
                    raise StoreUnavailable(f"a table stays in use, so this waits: {statement}") from error
            time.sleep(LOCK_PAUSE_S)


def _execute(connection: Connection, statement: str, **parameters: Any) -> int:
    values: Mapping[str, Any] = parameters
    return connection.execute(text(statement), values).rowcount


def _was_locked(error: StoreUnavailable) -> bool:
    cause = getattr(error.__cause__, "orig", None)
    return isinstance(cause, (psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected))
