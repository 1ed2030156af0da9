"""POST /suggest"""

from datetime import UTC, datetime, tzinfo
from functools import lru_cache

import orjson
from flask import Response, g, request
from flask_openapi import APIBlueprint, Tag

from app.api.problems import InvalidField
from app.api.schemas import SuggestIn, SuggestOut
from app.domain.budget import TimeBudget
from app.domain.context import complete_context, context_key
from app.domain.ids import new_id
from app.domain.tracing import current_span
from app.domain.types import Filters, RankedProposition, Slate, SuggestRequest
from app.serving.suggest import Suggest

DEADLINE_HEADER = "X-Deadline-Ms"


def suggest_routes(
    suggest: Suggest, context_fields: tuple[str, ...], timezone: tzinfo, max_limit: int, deadline_ms: int
) -> APIBlueprint:
    routes = APIBlueprint("suggest", __name__, abp_tags=[Tag(name="suggest")])

    @routes.post(
        "/suggest",
        summary="A slate for a user, here and now",
        description=f"The header `{DEADLINE_HEADER}` lowers the time that the answer may take; what would "
        "overrun it is skipped in favour of the next degradation level. `Server-Timing` tells where the time went.",
        responses={200: SuggestOut},
    )
    def post_suggest(body: SuggestIn) -> Response:
        if body.limit > max_limit:
            raise InvalidField("limit", f"Input should be less than or equal to {max_limit}")
        span = current_span()
        budget = TimeBudget(
            min(_asked_deadline_ms(), deadline_ms) / 1_000, on_stage=None if span is None else span.add
        )
        now = datetime.now(UTC)
        # Lines that are logged while the slate is ranked belong to its decision, too.
        here = g._get_current_object()
        here.decision_id, here.user_id, here.budget = new_id(), body.user_id, budget
        here.slate = slate = suggest(_to_request(body, now), here.decision_id, now, budget)
        response = Response(_to_json(slate), mimetype="application/json")
        response.headers["Server-Timing"] = _server_timing(budget)
        return response

    def _asked_deadline_ms() -> float:
        text = request.headers.get(DEADLINE_HEADER)
        if text is None:
            return deadline_ms
        if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
            raise InvalidField(DEADLINE_HEADER, "should be a whole number of milliseconds, at least 1")
        return int(text[:9])

    def _to_request(body: SuggestIn, now: datetime) -> SuggestRequest:
        context = complete_context(body.context, now, timezone)
        return SuggestRequest(
            context=context,
            context_key=context_key(context, context_fields),
            limit=body.limit,
            user_id=body.user_id,
            candidate_ids=None if body.candidates is None else frozenset(body.candidates),
            excluded_ids=frozenset(body.exclude),
            filters=Filters(
                categories=frozenset(body.filters.categories),
                tags=frozenset(body.filters.tags),
                min_value=body.filters.min_value,
            ),
        )

    return routes


def _to_json(slate: Slate) -> bytes:
    return orjson.dumps(
        {
            "request_id": slate.request_id,
            "propositions": orjson.Fragment(b"[" + b",".join(map(_proposition, slate.propositions)) + b"]"),
            "strategy": slate.strategy,
            "model_version": slate.model_version,
            "degradation_level": slate.degradation_level,
            "features": slate.feature_states,
            "cached": slate.is_cached,
            "decided_at": slate.decided_at,
        }
    )


def _proposition(ranked: RankedProposition) -> bytes:
    """What is shown of the proposition, which is JSON already, behind what the ranking adds."""
    return b'{"rank":%d,"score":%s,"sources":%s,%s' % (
        ranked.rank,
        orjson.dumps(ranked.score),
        _sources(ranked.sources),
        ranked.details[1:],
    )


@lru_cache(maxsize=256)
def _sources(sources: tuple[str, ...]) -> bytes:
    return orjson.dumps(sources)


def _server_timing(budget: TimeBudget) -> str:
    stages = [f"{stage};dur={seconds * 1_000:.2f}" for stage, seconds in budget.stages_s.items()]
    return ", ".join([*stages, f"total;dur={budget.spent_s * 1_000:.2f}"])
