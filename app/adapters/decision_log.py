"""Decisions in PostgreSQL: each logged slate with what is needed to explain it."""

from collections.abc import Sequence

import numpy as np
import orjson
from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.adapters.forgotten_users import ForgottenUsers
from app.domain.types import Slate, SlateFeatures, SuggestRequest

_INSERT = text("""
    INSERT INTO decisions
    SELECT * FROM jsonb_populate_recordset(NULL::decisions, CAST(:decisions AS jsonb))
    ON CONFLICT DO NOTHING""")


# Held until the commit, which whoever forgets a user waits for: no decision slips in behind their back.
_HOLD_HEAD = text("SELECT has_forgotten FROM log_heads WHERE name = 'decisions' FOR SHARE")

_Decision = tuple[SuggestRequest, Slate]


class PostgresDecisionLog:
    """Implements `DecisionLog`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._forgotten = ForgottenUsers()

    def append(self, decisions: Sequence[_Decision]) -> None:
        with self._database.transaction() as connection:
            if connection.execute(_HOLD_HEAD).scalar_one():
                decisions = self._of_known_users(connection, decisions)
            records = [_record(request, slate) for request, slate in decisions]
            content = orjson.dumps(records, option=orjson.OPT_SERIALIZE_NUMPY)
            connection.execute(_INSERT, {"decisions": content.decode()})

    def _of_known_users(self, connection: Connection, decisions: Sequence[_Decision]) -> list[_Decision]:
        """Without those from before their user was forgotten."""
        user_ids = {request.user_id for request, _ in decisions if request.user_id is not None}
        forgotten = self._forgotten.since(connection, user_ids)
        return [
            (request, slate)
            for request, slate in decisions
            if request.user_id not in forgotten or slate.decided_at > forgotten[request.user_id]
        ]


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
        "features": _features(slate),
    }


def _features(slate: Slate) -> dict | None:
    """The model's input as JSON, NaN as null; None unless it was computed."""
    features = slate.features
    if not isinstance(features, SlateFeatures):
        return None
    return {
        "columns": features.columns,
        "rows": np.ascontiguousarray(features.rows),
        "candidates_as_of_s": features.candidates_as_of_s,
    }
