"""POST /suggest"""

from datetime import UTC, datetime, tzinfo

import orjson
from flask import Response
from flask_openapi import APIBlueprint, Tag

from app.api.problems import InvalidField
from app.api.schemas import SuggestIn, SuggestOut
from app.domain.context import complete_context, context_key
from app.domain.types import Filters, RankedProposition, Slate, SuggestRequest
from app.serving.suggest import Suggest


def suggest_routes(
    suggest: Suggest, context_fields: tuple[str, ...], timezone: tzinfo, max_limit: int
) -> APIBlueprint:
    routes = APIBlueprint("suggest", __name__, abp_tags=[Tag(name="suggest")])

    @routes.post("/suggest", summary="A slate for a user, here and now", responses={200: SuggestOut})
    def post_suggest(body: SuggestIn) -> Response:
        if body.limit > max_limit:
            raise InvalidField("limit", f"Input should be less than or equal to {max_limit}")
        now = datetime.now(UTC)
        slate = suggest(_to_request(body, now), now)
        return Response(orjson.dumps(_to_json(slate)), mimetype="application/json")

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


def _to_json(slate: Slate) -> dict:
    return {
        "request_id": slate.request_id,
        "propositions": [_proposition(ranked) for ranked in slate.propositions],
        "strategy": slate.strategy,
        "model_version": slate.model_version,
        "degradation_level": slate.degradation_level,
        "features": slate.feature_states,
        "cached": False,
        "decided_at": slate.decided_at,
    }


def _proposition(ranked: RankedProposition) -> dict:
    proposition = ranked.proposition
    return {
        "proposition_id": proposition.proposition_id,
        "rank": ranked.rank,
        "score": ranked.score,
        "title": proposition.title,
        "category": proposition.category,
        "tags": proposition.tags,
        "value": proposition.value,
        "attributes": proposition.attributes,
    }
