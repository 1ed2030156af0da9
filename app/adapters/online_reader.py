"""Reads Feast's online rows straight from Redis: all views of a request in one round trip.

The layout is Feast's (docs/specs/online_store_format.md): a hash per entity key, under it a field per
feature, named by a murmur3 hash of "view:feature" and holding a serialized Value, and per view a
timestamp `_ts:view`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import redis
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from app.domain.errors import FeaturesUnavailable
from app.domain.types import FeatureState
from app.features.ports import OnlineRows
from app.features.rows import rows_from_records
from app.features.schema import ViewSchema


class RedisOnlineReader:
    """Implements `OnlineReader`.

    Feast neither enforces a TTL online nor tells a missing entity from one with nulls; this does both,
    by the row's own timestamp.
    """

    def __init__(self, client: redis.Redis, project: str) -> None:
        self._client = client
        self._project = project

    def read(
        self, keys: Mapping[ViewSchema, Sequence[str]], half_life_count: int, now: datetime
    ) -> Mapping[str, OnlineRows]:
        pipeline = self._client.pipeline(transaction=False)
        for view, entity_keys in keys.items():
            fields = _redis_fields(view)
            for key in entity_keys:
                pipeline.hmget(self._redis_key(view.join_key, key), fields)
        try:
            replies = iter(pipeline.execute())
        except redis.RedisError as error:
            raise FeaturesUnavailable(f"Redis did not answer: {error}") from error
        try:
            return {
                view.name: _decode(view, [next(replies) for _ in entity_keys], half_life_count, now)
                for view, entity_keys in keys.items()
            }
        except (DecodeError, ValueError, TypeError) as error:
            raise FeaturesUnavailable(f"Redis holds something else than features: {error}") from error

    def _redis_key(self, join_key: str, key: str) -> bytes:
        entity_key = EntityKey(join_keys=[join_key], entity_values=[Value(string_val=key)])
        return _redis_key(self._project, entity_key, entity_key_serialization_version=3)


@lru_cache(maxsize=256)
def _redis_fields(view: ViewSchema) -> tuple[bytes, ...]:
    return (f"_ts:{view.name}".encode(), *(_mmh3(f"{view.name}:{name}") for name in view.field_names))


def _decode(
    view: ViewSchema, replies: Sequence[Sequence[bytes | None]], half_life_count: int, now: datetime
) -> OnlineRows:
    records: list[dict[str, Any] | None] = []
    states: list[FeatureState] = []
    for timestamp, *values in replies:
        if timestamp is None:
            state = FeatureState.MISSING
        else:
            age_s = now.timestamp() - _seconds(timestamp)
            state = FeatureState.FRESH if age_s <= view.ttl_s else FeatureState.STALE
        states.append(state)
        records.append(
            dict(zip(view.field_names, map(_value, values), strict=True))
            if state is FeatureState.FRESH
            else None
        )
    return OnlineRows(rows_from_records(view, records, half_life_count), states)


def _seconds(serialized: bytes) -> float:
    timestamp = Timestamp()
    timestamp.ParseFromString(serialized)
    return timestamp.seconds + timestamp.nanos / 1e9


def _value(serialized: bytes | None) -> Any:
    """A number, a text, a sequence of numbers, or None for null."""
    if serialized is None:
        return None
    value = Value()
    value.ParseFromString(serialized)
    name = value.WhichOneof("val")
    if name is None or name == "null_val":
        return None
    content = getattr(value, name)
    return content.val if name.endswith("_list_val") else content
