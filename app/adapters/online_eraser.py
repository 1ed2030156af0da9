"""Removing a person from Redis: rows of features in Feast's layout, and kept slates."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import redis
from redis.client import Pipeline

from app.adapters.feast_layout import decode_timestamp, entity_key_opening, timestamp_field, value_field
from app.adapters.redis_client import REDIS_ERRORS, ClusterClient
from app.adapters.suggestion_cache import slates_key
from app.domain.errors import StoreUnavailable
from app.features.fold import COUNTER_VIEWS, KEY_COLUMNS
from app.features.history import HISTORY_FIELDS, HISTORY_VIEW
from app.features.recent import RECENT_FIELD, RECENT_VIEW
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The name of a value does not tell its view. Those of folded views are known; all others are of what is
# entered (profiles), whatever the feature repo declares of it.
_FOLDED = {
    **dict.fromkeys(COUNTER_VIEWS.values(), (*COUNTER_FIELDS, AS_OF_FIELD)),
    HISTORY_VIEW: HISTORY_FIELDS,
    RECENT_VIEW: (RECENT_FIELD,),
}
_FOLDED_ROWS = {timestamp_field(view) for view in _FOLDED}
_ROW_OF_VALUE = {
    value_field(view, feature): timestamp_field(view)
    for view, features in _FOLDED.items()
    for feature in features
}
_ENTERED = b"entered"


class RedisEraser:
    """Implements `OnlineEraser`, on one Redis or a cluster."""

    def __init__(self, client: redis.Redis | ClusterClient, project: str) -> None:
        self._client = client
        self._project = project.encode()

    def erase(self, user_id: str, user_category_keys: Sequence[str], until: datetime) -> int:
        keys = [
            *self._feast_keys(EntityName.USER, [user_id]),
            *self._feast_keys(EntityName.USER_CATEGORY, user_category_keys),
        ]
        until_ns = (until - _EPOCH) // timedelta(microseconds=1) * 1_000
        try:
            return self._client.delete(slates_key(user_id)) + sum(
                self._delete_rows(key, until_ns) for key in keys
            )
        except REDIS_ERRORS as error:
            raise StoreUnavailable(f"Redis did not remove a user: {error}") from error

    def _feast_keys(self, entity: EntityName, values: Iterable[str]) -> list[bytes]:
        """The hashes in which Feast keeps all rows of these entities."""
        opening = entity_key_opening(KEY_COLUMNS[entity])
        encoded = [value.encode() for value in values]
        return [b"".join((opening, struct.pack("<I", len(v)), v, self._project)) for v in encoded]

    def _delete_rows(self, key: bytes, until_ns: int) -> bool:
        """False if the hash has no rows from so early. One that is left without any fields is gone."""

        def delete(pipeline: Pipeline) -> bool:
            fields = fields_until(pipeline.hgetall(key), until_ns)
            pipeline.multi()
            if fields:
                pipeline.hdel(key, *fields)
            return bool(fields)

        # Begins anew when somebody writes to the hash in between.
        return self._client.transaction(delete, key, value_from_callable=True)


def fields_until(stored: Mapping[bytes, bytes], until_ns: int) -> list[bytes]:
    """The fields of a hash that are of rows from up to a moment, or of no row at all.

    Entered rows cannot be told apart: if one of them is from so early, all are taken for it.
    """
    rows = {field for field in stored if field.startswith(timestamp_field(""))}
    later = {row for row in rows if _is_later(stored[row], until_ns)}
    entered = rows - _FOLDED_ROWS
    if entered and entered <= later:
        later.add(_ENTERED)
    else:
        later -= entered
    row_of = {row: row for row in rows} | _ROW_OF_VALUE
    return [field for field in stored if row_of.get(field, _ENTERED) not in later]


def _is_later(timestamp: bytes, until_ns: int) -> bool:
    try:
        return decode_timestamp(timestamp) > until_ns
    except ValueError:
        return False  # nobody can read this row
