"""API keys in PostgreSQL, where they are made, rotated and revoked."""

from collections.abc import Callable
from dataclasses import fields
from datetime import datetime

from sqlalchemy import Connection, RowMapping, text

from app.adapters.database import Database
from app.domain.access import ApiKey, Scope
from app.domain.errors import KeyRefused

_COLUMNS = tuple(column.name for column in fields(ApiKey))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM api_keys"
_ALL = text(f"{_SELECT} ORDER BY created_at, key_id")
_VALID = text(
    f"{_SELECT} WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > :now) ORDER BY key_id"
)
_ONE = text(f"{_SELECT} WHERE key_id = :key_id FOR UPDATE")
_INSERT = text(
    f"INSERT INTO api_keys ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
)
_UPDATE = text(
    f"UPDATE api_keys SET {', '.join(f'{name} = :{name}' for name in _COLUMNS)} WHERE key_id = :key_id"
)


class KeyStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: ApiKey) -> None:
        with self._database.transaction() as connection:
            connection.execute(_INSERT, _values(key))

    def all(self) -> list[ApiKey]:
        """Every key there ever was, in the order in which they were made."""
        with self._database.transaction() as connection:
            return _keys(connection, _ALL)

    def valid(self, now: datetime) -> list[ApiKey]:
        """The keys that are neither revoked nor expired."""
        with self._database.transaction() as connection:
            return _keys(connection, _VALID, now=now)

    def change(self, key_id: str, changed: Callable[[ApiKey], ApiKey]) -> ApiKey:
        """Makes `changed` of a key while nobody else changes it, and returns that.

        Raises:
            KeyRefused: there is no such key.
        """
        with self._database.transaction() as connection:
            known = _keys(connection, _ONE, key_id=key_id)
            if not known:
                raise KeyRefused(f"there is no key {key_id!r}: `propositions keys list` shows all of them")
            key = changed(known[0])
            connection.execute(_UPDATE, _values(key))
        return key


def _keys(connection: Connection, statement, **parameters: object) -> list[ApiKey]:
    return [_key(row) for row in connection.execute(statement, parameters).mappings()]


def _key(row: RowMapping) -> ApiKey:
    # A scope that this version does not know opens nothing here, and must not keep the other keys from being read.
    scopes = frozenset(Scope(name) for name in row["scopes"] if name in set(Scope))
    digests = {name: row[name] and bytes(row[name]) for name in ("digest", "previous_digest")}
    return ApiKey(**{**row, **digests, "scopes": scopes})


def _values(key: ApiKey) -> dict[str, object]:
    return {**{name: getattr(key, name) for name in _COLUMNS}, "scopes": sorted(key.scopes)}
