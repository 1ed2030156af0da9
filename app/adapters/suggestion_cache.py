"""Kept slates in Redis: per user a hash with a field per request, and one that counts the user's events."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import hiredis
import orjson

from app.adapters.redis_wire import CommandRefused, Wire
from app.domain.errors import StoreUnavailable
from app.domain.ports import Kept
from app.domain.types import DegradationLevel, FeatureState, RankedProposition, Slate, Strategy

_KEY_PREFIX = b"propositions:suggestions:"
_EPOCH = b"epoch"
# Longer than a slate is kept, so that an epoch outlives the slates and the rankings that it outdates.
_GRACE = timedelta(minutes=1)
MOST_WAITING = 5_000


class RedisSlateStore:
    """Implements `SlateStore`. The slates of users without an id share a hash, which no event outdates."""

    def __init__(self, wire: Wire, ttl: timedelta) -> None:
        self._wire = wire
        self._expiry_ms = b"%d" % int((ttl + _GRACE).total_seconds() * 1_000)
        self._waiting: list[bytes] = []

    def find(self, user_id: str | None, key: str, timeout_s: float) -> Kept:
        packed = hiredis.pack_command((b"HMGET", slates_key(user_id), _EPOCH, key.encode()))
        (reply,) = self._wire.ask(packed, 1, timeout_s)
        try:
            epoch, kept = reply
            now_epoch = int(epoch or 0)
            if kept is None:
                return Kept(now_epoch, None)
            ranked_epoch, content = orjson.loads(kept)
            return Kept(now_epoch, _slate(content), is_outdated=ranked_epoch != now_epoch)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreUnavailable(f"Redis holds something else than slates: {error}") from error

    def keep(self, user_id: str | None, key: str, epoch: int, slate: Slate) -> None:
        if len(self._waiting) < MOST_WAITING:
            redis_key = slates_key(user_id)
            content = orjson.dumps([epoch, _record(slate)])
            packed = hiredis.pack_command((b"HSET", redis_key, key.encode(), content))
            self._waiting.append(packed + self._expire(redis_key))

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._wire.ask(b"".join(waiting), 2 * len(waiting))

    def forget(self, user_ids: Collection[str]) -> None:
        packed = b"".join(
            hiredis.pack_command((b"HINCRBY", slates_key(user_id), _EPOCH, b"1"))
            + self._expire(slates_key(user_id))
            for user_id in user_ids
        )
        if not packed:
            return
        try:
            self._wire.ask(packed, 2 * len(user_ids))
        except CommandRefused:
            # Somebody else's, or garbage. Without the hash no kept slate is found, which is as good.
            keys = (hiredis.pack_command((b"DEL", slates_key(user_id))) for user_id in user_ids)
            self._wire.ask(b"".join(keys), len(user_ids))

    def _expire(self, redis_key: bytes) -> bytes:
        return hiredis.pack_command((b"PEXPIRE", redis_key, self._expiry_ms))


def slates_key(user_id: str | None) -> bytes:
    """Where the slates of a user are kept."""
    # Ids are never empty.
    return _KEY_PREFIX + (user_id or "").encode()


def _record(slate: Slate) -> dict[str, Any]:
    return {
        "request_id": slate.request_id,
        "decided_at": slate.decided_at.isoformat(),
        "strategy": slate.strategy,
        "model_version": slate.model_version,
        "degradation_level": int(slate.degradation_level),
        "feature_states": slate.feature_states,
        "candidate_count": slate.candidate_count,
        "propositions": [(r.proposition_id, r.score, r.sources) for r in slate.propositions],
    }


def _slate(record: dict[str, Any]) -> Slate:
    """The slate; what is shown of its propositions comes from the catalog."""
    return Slate(
        request_id=record["request_id"],
        decided_at=datetime.fromisoformat(record["decided_at"]),
        propositions=tuple(
            RankedProposition(proposition_id, rank, score, tuple(sources), b"{}")
            for rank, (proposition_id, score, sources) in enumerate(record["propositions"], start=1)
        ),
        strategy=Strategy(record["strategy"]),
        model_version=record["model_version"],
        degradation_level=DegradationLevel(record["degradation_level"]),
        feature_states={name: FeatureState(state) for name, state in record["feature_states"].items()},
        candidate_count=record["candidate_count"],
        is_cached=True,
    )
