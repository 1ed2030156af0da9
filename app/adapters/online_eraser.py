"""Removing a person from Redis: rows of features in Feast's layout, and kept slates."""

import struct
from collections.abc import Iterable, Sequence

import hiredis
import redis

from app.adapters.feast_layout import entity_key_opening
from app.adapters.redis_client import ClusterClient
from app.adapters.redis_wire import open_wire
from app.adapters.suggestion_cache import slates_key
from app.features.fold import KEY_COLUMNS
from app.features.schema import EntityName

_KEYS_AT_A_TIME = 1_000


class RedisEraser:
    """Implements `OnlineEraser`, on one Redis or a cluster."""

    def __init__(self, client: redis.Redis | ClusterClient, project: str) -> None:
        self._wire = open_wire(client)
        self._project = project.encode()

    def erase(self, user_id: str, user_category_keys: Sequence[str]) -> int:
        keys = [
            slates_key(user_id),
            *self._feast_keys(EntityName.USER, [user_id]),
            *self._feast_keys(EntityName.USER_CATEGORY, user_category_keys),
        ]
        return sum(
            self._delete(keys[first : first + _KEYS_AT_A_TIME])
            for first in range(0, len(keys), _KEYS_AT_A_TIME)
        )

    def _feast_keys(self, entity: EntityName, values: Iterable[str]) -> list[bytes]:
        """The hashes in which Feast keeps all rows of these entities."""
        opening = entity_key_opening(KEY_COLUMNS[entity])
        encoded = [value.encode() for value in values]
        return [b"".join((opening, struct.pack("<I", len(v)), v, self._project)) for v in encoded]

    def _delete(self, keys: Sequence[bytes]) -> int:
        packed = b"".join(hiredis.pack_command((b"DEL", key)) for key in keys)
        return sum(self._wire.ask(packed, len(keys)))
