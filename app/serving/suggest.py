"""The suggest use case: rank, then hand the decision to its log, off the request's path."""

import uuid
from collections.abc import Callable
from datetime import datetime

from app.domain.budget import TimeBudget
from app.domain.ports import Ranker
from app.domain.types import Slate, SuggestRequest


class Suggest:
    def __init__(self, ranker: Ranker, on_decision: Callable[[SuggestRequest, Slate], None]) -> None:
        self._ranker = ranker
        self._on_decision = on_decision

    def __call__(self, request: SuggestRequest, now: datetime, budget: TimeBudget) -> Slate:
        slate = self._ranker.rank(request, str(uuid.uuid4()), now, budget)
        self._on_decision(request, slate)
        return slate
