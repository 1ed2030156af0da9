"""Requests of a worker take turns, because a worker computes one at a time whatever it has begun."""

import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from app.domain.budget import TimeBudget
from app.domain.ports import Ranker
from app.domain.types import Slate, SuggestRequest
from app.serving.rounds import BURST_S

# Of a request's time, what it waits for its turn at most: a store that hangs must not hold up those behind.
WAIT_SHARE = 0.25
# How much the latest request counts in what one costs.
_COST_WEIGHT = 0.05


class Semaphore(Protocol):
    """Lets those who wait in one after the other."""

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool: ...
    def release(self) -> None: ...


class TakingTurns:
    """Few slates are ranked at a time; further requests wait in the order in which they came.

    What is begun is then finished early and while it is still in the processor's caches. With all requests under
    way at once, each waits for all others twice: before it asks Redis and after.

    Args:
        longest_queue_s: when those who wait need more of the processor than this, it `is_overrun`.
        standing_queue_s: when they need more than this, and the queue was not empty for `BURST_S`, it `is_strained`.
        least_queue: so many may always wait.
        clock: seconds.
        cpu_clock: seconds that this worker's thread has computed. What it spends waiting for a store that
            hangs is no sign of too many requests.
    """

    def __init__(
        self,
        ranker: Ranker,
        turns: Semaphore,
        longest_queue_s: float = math.inf,
        standing_queue_s: float = math.inf,
        least_queue: int = 4,
        cpu_clock: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ranker = ranker
        self._turns = turns
        self._longest_queue_s, self._standing_queue_s = longest_queue_s, standing_queue_s
        self._least_queue = least_queue
        self._cpu_clock, self._clock = cpu_clock, clock
        self._was_empty_at_s = clock()
        self._waiting = 0
        self._cost_s = 0.0
        self._busy_since_s: float | None = None

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def is_overrun(self) -> bool:
        """True if whoever comes now would wait too long."""
        return self._needs_more_than(self._longest_queue_s)

    @property
    def is_strained(self) -> bool:
        """True if the queue stands, so that whoever waits in it waits for nothing but those before."""
        is_burst = self._clock() - self._was_empty_at_s < BURST_S
        return not is_burst and self._needs_more_than(self._standing_queue_s)

    def _needs_more_than(self, seconds: float) -> bool:
        return self._waiting > self._least_queue and self._waiting * self._cost_s > seconds

    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        if not self._waiting:  # nor did anybody wait since, however long ago that was
            self._was_empty_at_s = self._clock()
        self._waiting += 1
        try:
            has_turn = self._turns.acquire(timeout=max(WAIT_SHARE * budget.remaining_s, 0.0))
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._was_empty_at_s = self._clock()
        budget.finish("turn")
        try:
            return self._ranker.rank(request, request_id, now, budget)
        finally:
            if has_turn:
                self._turns.release()
            self._learn()

    def _learn(self) -> None:
        """While others wait, one request after the other is computed: what lies between two ends is what one costs."""
        now_s = self._cpu_clock()
        if self._busy_since_s is not None:
            self._cost_s += _COST_WEIGHT * (now_s - self._busy_since_s - self._cost_s)
        self._busy_since_s = now_s if self._waiting else None
