"""Requests of a worker take turns, because a worker computes one at a time whatever it has begun."""

from datetime import datetime
from typing import Protocol

from app.domain.budget import TimeBudget
from app.domain.ports import Ranker
from app.domain.types import Slate, SuggestRequest

# Of a request's time, what it waits for its turn at most: a store that hangs must not hold up those behind.
WAIT_SHARE = 0.25


class Semaphore(Protocol):
    """Lets those who wait in one after the other."""

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool: ...
    def release(self) -> None: ...


class TakingTurns:
    """Few slates are ranked at a time; further requests wait in the order in which they came.

    What is begun is then finished early and while it is still in the processor's caches. With all requests under
    way at once, each waits for all others twice: before it asks Redis and after.
    """

    def __init__(self, ranker: Ranker, turns: Semaphore) -> None:
        self._ranker = ranker
        self._turns = turns

    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        has_turn = self._turns.acquire(timeout=max(WAIT_SHARE * budget.remaining_s, 0.0))
        budget.finish("turn")
        try:
            return self._ranker.rank(request, request_id, now, budget)
        finally:
            if has_turn:
                self._turns.release()
