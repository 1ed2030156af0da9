"""Decisions in PostgreSQL: each logged slate with what is needed to explain it."""

from collections.abc import Sequence

import orjson
from sqlalchemy import text

from app.adapters.database import Database
from app.domain.types import Slate, SuggestRequest

_INSERT = text("""
    INSERT INTO decisions
    SELECT * FROM jsonb_populate_recordset(NULL::decisions, CAST(:decisions AS jsonb))
    ON CONFLICT DO NOTHING""")


class PostgresDecisionLog:
    """Implements `DecisionLog`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, decisions: Sequence[tuple[SuggestRequest, Slate]]) -> None:
        records = [_record(request, slate) for request, slate in decisions]
        with self._database.transaction() as connection:
            connection.execute(_INSERT, {"decisions": orjson.dumps(records).decode()})


def _record(request: SuggestRequest, slate: Slate) -> dict:
    return {
        "request_id": slate.request_id,
        "decided_at": slate.decided_at,
        "user_id": request.user_id,
        "context": dict(request.context),
        "context_key": request.context_key,
        "strategy": slate.strategy,
        "model_version": slate.model_version,
        "degradation_level": slate.degradation_level,
        "feature_states": dict(slate.feature_states),
        "candidate_count": slate.candidate_count,
        "slate": [
            {"proposition_id": r.proposition_id, "rank": r.rank, "score": r.score, "sources": r.sources}
            for r in slate.propositions
        ],
        "is_cached": slate.is_cached,
    }
