"""What a slate takes up once it is answered: as a decision in PostgreSQL, and as one that is kept in Redis."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np

from app.adapters.database import batch_database
from app.adapters.decision_log import PostgresDecisionLog
from app.adapters.redis_client import open_redis
from app.adapters.redis_wire import open_wire
from app.adapters.suggestion_cache import RedisSlateStore
from app.domain.context import complete_context, context_key
from app.domain.types import (
    DegradationLevel,
    FeatureState,
    RankedProposition,
    Slate,
    SlateFeatures,
    Strategy,
    SuggestRequest,
)
from app.settings import Settings
from tests.benchmarks.data import DEVICES, PAGES, Size, proposition_ids, user_ids
from tests.benchmarks.postgres_use import postgres_use
from tests.benchmarks.stores import Stores

DECISIONS_PER_COMMIT = 500
SLATE_LENGTH, CANDIDATES = 10, 200
# As wide as the matrix of the service's own features, with names of their usual length.
COLUMNS = tuple(f"feature_of_the_slate_{number}" for number in range(61))
SOURCES = (("popular",), ("favourite", "trending"), ("covisited",))
DAY = timedelta(days=1)
TIMEOUT_MS = 10_000
_FRESH = {"user": FeatureState.FRESH, "context": FeatureState.FRESH}


@dataclass(frozen=True, slots=True)
class Slates:
    """Of `count` slates: bytes in PostgreSQL's tables and log, page writes, bytes of Redis' memory."""

    count: int
    table_bytes: int
    wal_bytes: int
    page_writes: int
    kept_bytes: int


def measure_slates(stores: Stores, size: Size, count: int, seed: int = 19) -> Slates:
    settings = stores.settings
    decisions = list(_decisions(settings, size, count, np.random.default_rng(seed)))
    log = PostgresDecisionLog(batch_database(settings))
    with postgres_use(settings) as use:
        before = use.written(["decisions"])
        for first in range(0, count, DECISIONS_PER_COMMIT):
            log.append(decisions[first : first + DECISIONS_PER_COMMIT])
        written = use.written(["decisions"]) - before
    kept_bytes = _kept_bytes(settings, decisions)
    return Slates(count, written.table_bytes, written.wal_bytes, written.page_writes, kept_bytes)


def summarize_slates(measured: Slates) -> Mapping[str, float]:
    return {
        "postgres_bytes_per_decision": measured.table_bytes / measured.count,
        "postgres_wal_bytes_per_decision": measured.wal_bytes / measured.count,
        "postgres_page_writes_per_decision": measured.page_writes / measured.count,
        "redis_bytes_per_kept_slate": measured.kept_bytes / measured.count,
    }


def _kept_bytes(settings: Settings, decisions: Sequence[tuple[SuggestRequest, Slate]]) -> int:
    with closing(open_redis(settings, TIMEOUT_MS)) as client:
        kept = RedisSlateStore(open_wire(client), DAY)
        before = client.info("memory")["used_memory"]
        for first in range(0, len(decisions), DECISIONS_PER_COMMIT):
            for request, slate in decisions[first : first + DECISIONS_PER_COMMIT]:
                # The names of fields are digests of the request.
                kept.keep(request.user_id, slate.request_id, 0, slate)
            kept.flush()
        return client.info("memory")["used_memory"] - before


def _decisions(
    settings: Settings, size: Size, count: int, rng: np.random.Generator
) -> Iterator[tuple[SuggestRequest, Slate]]:
    now = datetime.now(UTC)
    for number in range(count):
        page, device = str(rng.choice(PAGES)), str(rng.choice(DEVICES))
        context = complete_context({"page": page, "device": device}, now, UTC)
        key = context_key(context, settings.context_fields)
        user_id = user_ids(rng.integers(0, size.users, 1))[0].decode()
        shown = proposition_ids(rng.integers(0, size.propositions, SLATE_LENGTH)).tolist()
        scores = -np.sort(-rng.normal(size=SLATE_LENGTH))
        propositions = tuple(
            RankedProposition(id_.decode(), rank, score, SOURCES[rank % len(SOURCES)], b"{}")
            for rank, (id_, score) in enumerate(zip(shown, scores.tolist(), strict=True), start=1)
        )
        is_audited = rng.random() < settings.decision_features_share
        rows = rng.normal(size=(SLATE_LENGTH, len(COLUMNS))).astype(np.float32) if is_audited else None
        yield (
            SuggestRequest(context, key, SLATE_LENGTH, user_id),
            Slate(
                request_id=str(UUID(bytes=rng.bytes(16))),
                decided_at=now + timedelta(microseconds=number),
                propositions=propositions,
                strategy=Strategy.MODEL,
                model_version="20261126T120000Z-1a2b3c4d",
                degradation_level=DegradationLevel.FULL,
                feature_states=_FRESH,
                candidate_count=CANDIDATES,
                features=SlateFeatures(COLUMNS, rows, now.timestamp()) if is_audited else None,
            ),
        )
