"""The suggest use case: rank, then hand the decision to its log, off the request's path."""

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime

from app.domain.budget import TimeBudget
from app.domain.ports import Ranker
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

    def __call__(self, request: SuggestRequest, now: datetime, budget: TimeBudget) -> Slate:
        slate = self._ranker.rank(request, str(uuid.uuid4()), now, budget)
        self._on_decision(request, slate)
        self._on_stages(budget.stages_s)
        return slate
