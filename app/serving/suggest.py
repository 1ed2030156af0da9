"""The suggest use case: rank, then hand the decision to its log, off the request's path."""

from collections.abc import Callable, Mapping
from datetime import datetime

from app.domain.budget import TimeBudget
from app.domain.ports import Ranker
from app.domain.tracing import Attributes, current_span
from app.domain.types import Slate, SuggestRequest


class Suggest:
    """`on_stages` is told how many seconds each stage of a request took."""

    def __init__(
        self,
        ranker: Ranker,
        on_decision: Callable[[SuggestRequest, Slate], None],
        on_stages: Callable[[Mapping[str, float]], None] = lambda stages_s: None,
    ) -> None:
        self._ranker = ranker
        self._on_decision = on_decision
        self._on_stages = on_stages

    def __call__(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        slate = self._ranker.rank(request, request_id, now, budget)
        self._on_decision(request, slate)
        self._on_stages(budget.stages_s)
        span = current_span()
        if span is not None:
            span.describe(_attributes(slate))
        return slate


def _attributes(slate: Slate) -> Attributes:
    described = {
        "propositions.request_id": slate.request_id,
        "propositions.strategy": str(slate.strategy),
        "propositions.degradation_level": int(slate.degradation_level),
        "propositions.candidates": slate.candidate_count,
        "propositions.cached": slate.is_cached,
    }
    if slate.model_version is not None:
        described["propositions.model_version"] = slate.model_version
    return described
