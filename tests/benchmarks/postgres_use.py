"""What PostgreSQL wrote: its log, pages of tables and indexes, and how large tables have grown."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg2

from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes of the write-ahead log and of tables with their indexes, and operations that wrote pages of these."""

    wal_bytes: int
    table_bytes: int
    page_writes: int

    def __sub__(self, earlier: "Written") -> "Written":
        return Written(
            self.wal_bytes - earlier.wal_bytes,
            self.table_bytes - earlier.table_bytes,
            self.page_writes - earlier.page_writes,
        )


class PostgresUse:
    """Reads counters of one server, over a connection of its own."""

    def __init__(self, connection) -> None:
        self._connection = connection

    def written(self, tables: Iterable[str]) -> Written:
        """As of now, after a checkpoint: until then pages are changed in memory only. Partitions belong to their table."""
        self._ask("CHECKPOINT")
        self._ask("CHECKPOINT")  # done when the first one's writes are counted
        # A page's first change after a checkpoint puts the whole page into the log.
        wal_bytes = self._ask("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        table_bytes = self._ask(
            """
            WITH named AS (SELECT name::regclass AS relid FROM unnest(%s::text[]) AS name)
            SELECT sum(pg_total_relation_size(relid))::bigint FROM (
                SELECT relid FROM named UNION
                SELECT part.relid FROM named, pg_partition_tree(named.relid) AS part) AS parts""",
            list(tables),
        )
        page_writes = self._ask("SELECT sum(writes)::bigint FROM pg_stat_io WHERE object = 'relation'")
        return Written(wal_bytes, table_bytes, page_writes)

    def _ask(self, statement: str, *values: object) -> int | None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchone()[0] if cursor.description else None


@contextmanager
def postgres_use(settings: Settings) -> Iterator[PostgresUse]:
    connection = psycopg2.connect(settings.postgres_url)
    try:
        connection.autocommit = True
        yield PostgresUse(connection)
    finally:
        connection.close()
