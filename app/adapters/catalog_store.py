"""Users and propositions in PostgreSQL: how records are merged into them, and single ones by id.

Imports and the HTTP service merge alike: an unchanged record changes nothing, not even the time of its
last change, and every version of what models read stays for point-in-time joins.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.adapters.event_log import advance_head
from app.domain.ports import Stored, Upserted
from app.domain.types import Proposition, User


@dataclass(frozen=True, slots=True)
class EntityTable:
    """A table of entities, its history as features, and the head that orders its commits.

    `reset` are columns that a record sets to NULL because it does not have them.
    """

    name: str
    key: str
    columns: Mapping[str, str]
    reset: tuple[str, ...]
    history: str
    head: str
    to_entity: Callable[..., Any]


USERS = EntityTable(
    name="users",
    key="user_id",
    columns={
        "user_id": "text",
        "age_years": "float8",
        "gender": "text",
        "segment": "text",
        "attributes": "jsonb",
        "created_at": "timestamptz",
    },
    reset=(),
    history="""
        INSERT INTO user_profile (user_id, age_years, gender, segment, event_timestamp)
        SELECT user_id, age_years, gender, segment, updated_at FROM merged""",
    head="users",
    to_entity=User,
)
PROPOSITIONS = EntityTable(
    name="propositions",
    key="proposition_id",
    columns={
        "proposition_id": "text",
        "title": "text",
        "category": "text",
        "tags": "text[]",
        "value": "float8",
        "is_active": "boolean",
        "starts_at": "timestamptz",
        "ends_at": "timestamptz",
        "attributes": "jsonb",
        "created_at": "timestamptz",
    },
    reset=("deleted_at",),
    history="""
        INSERT INTO proposition_catalog (
            proposition_id, category, value, created_at_s, traits, number_names, number_values, event_timestamp)
        SELECT proposition_id, category, value, extract(epoch FROM created_at)::float8,
               proposition_traits(tags, attributes), proposition_number_names(attributes),
               proposition_number_values(attributes), updated_at
        FROM merged""",
    head="catalog",
    to_entity=lambda tags, **fields: Proposition(tags=tuple(tags), **fields),
)


def merge(
    connection: Connection,
    table: EntityTable,
    source: str,
    parameters: Mapping[str, Any],
    outcome: str = "count(*)",
) -> list[Any]:
    """Inserts or changes entities and notes a new version of those that differ.

    `source` is what stands behind FROM: it has the table's columns and `line`, and of several rows with
    one key the one with the highest line counts. `created_at` stays as it was first. Returns the values
    of `outcome` over the new and changed rows. Needs a transaction; when nothing changed, the head of the
    log stays where it was, so that nobody looks for news.
    """
    taken = [*table.columns, *table.reset]
    changing = [column for column in taken if column not in (table.key, "created_at")]
    connection.execute(text("SAVEPOINT unchanged"))
    at = advance_head(connection, table.head)
    result = connection.execute(
        text(f"""
            WITH merged AS (
                INSERT INTO {table.name} AS known ({", ".join(taken)}, updated_at)
                SELECT DISTINCT ON ({table.key})
                    {", ".join(table.columns)}, {"".join("NULL::timestamptz, " for _ in table.reset)}:at
                FROM {source} ORDER BY {table.key}, line DESC
                ON CONFLICT ({table.key}) DO UPDATE
                SET {", ".join(f"{c} = excluded.{c}" for c in changing)}, updated_at = excluded.updated_at
                WHERE ({", ".join(f"known.{c}" for c in changing)})
                    IS DISTINCT FROM ({", ".join(f"excluded.{c}" for c in changing)})
                RETURNING *
            ), noted AS ({table.history})
            SELECT {outcome} FROM merged"""),
        {"at": at, **parameters},
    )
    changes = list(result.scalars())
    if not any(changes):
        connection.execute(text("ROLLBACK TO SAVEPOINT unchanged"))
    return changes


_HOLD_HEAD = text("SELECT FROM log_heads WHERE name = :name FOR UPDATE")


class EntityStore:
    """Implements `EntityStore` of the ports for one table."""

    def __init__(self, database: Database, table: EntityTable) -> None:
        self._database = database
        self._table = table
        typed = ", ".join(f"{column} {kind}" for column, kind in table.columns.items())
        self._given = f"jsonb_to_recordset(CAST(:records AS jsonb)) AS given (line int, {typed})"
        self._living = " AND ".join([f"{table.key} = ANY(:ids)", *(f"{c} IS NULL" for c in table.reset)])

    def upsert(self, entities: Sequence[Any]) -> Upserted:
        table = self._table
        ids = tuple(dict.fromkeys(getattr(entity, table.key) for entity in entities))
        records = [self._record(line, entity) for line, entity in enumerate(entities)]
        with self._database.transaction() as connection:
            # Who holds the head is the only one who changes this table.
            connection.execute(_HOLD_HEAD, {"name": table.head})
            known = set(
                connection.execute(
                    text(f"SELECT {table.key} FROM {table.name} WHERE {self._living}"), {"ids": list(ids)}
                ).scalars()
            )
            given = {"records": json.dumps(records)}
            changed = set(merge(connection, table, self._given, given, outcome=table.key))
        return Upserted(
            created_ids=tuple(i for i in ids if i not in known),
            changed_ids=tuple(i for i in ids if i in known and i in changed),
            unchanged_ids=tuple(i for i in ids if i in known and i not in changed),
        )

    def _record(self, line: int, entity: Any) -> dict[str, Any]:
        values = {column: getattr(entity, column) for column in self._table.columns}
        times = {name: value.isoformat() for name, value in values.items() if isinstance(value, datetime)}
        return {**values, **times, "line": line}

    def find(self, entity_id: str) -> Stored | None:
        table = self._table
        with self._database.transaction() as connection:
            row = (
                connection.execute(
                    text(
                        f"SELECT {', '.join(table.columns)}, updated_at FROM {table.name} WHERE {self._living}"
                    ),
                    {"ids": [entity_id]},
                )
                .mappings()
                .one_or_none()
            )
        if row is None:
            return None
        return Stored(table.to_entity(**{c: row[c] for c in table.columns}), row["updated_at"])


class PropositionStore(EntityStore):
    """Implements `PropositionStore`. A deleted proposition leaves its row as a mark for snapshots."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, PROPOSITIONS)

    def delete(self, proposition_id: str) -> bool:
        with self._database.transaction() as connection:
            deleted = connection.execute(
                text("""
                    UPDATE propositions SET deleted_at = :at, updated_at = :at
                    WHERE proposition_id = :id AND deleted_at IS NULL"""),
                {"at": advance_head(connection, PROPOSITIONS.head), "id": proposition_id},
            )
            if not deleted.rowcount:
                connection.rollback()
            return bool(deleted.rowcount)
