"""The time that a request may take, and where it went."""

import time
from collections.abc import Callable

from app.domain.errors import PropositionsError

# Of a budget, what is left for a fallback when the better way does not come to an end.
FALLBACK_SHARE = 0.15


class OutOfTime(PropositionsError):
    """What would come next would probably overrun the request's deadline."""


class TimeBudget:
    """`budget_s` seconds from now on. `stages_s` has the seconds spent per stage, in order.

    `on_stage` is told of each stage its name, and when it began and ended by the clock.
    """

    def __init__(
        self,
        budget_s: float,
        clock: Callable[[], float] = time.perf_counter,
        on_stage: Callable[[str, float, float], None] | None = None,
    ) -> None:
        self._clock = clock
        self._on_stage = on_stage
        self._started = self._stage_began = clock()
        self._budget_s = budget_s
        self.stages_s: dict[str, float] = {}

    def finish(self, stage: str) -> None:
        """Counts the time since the last stage ended as this one's."""
        now = self._clock()
        self.stages_s[stage] = self.stages_s.get(stage, 0.0) + now - self._stage_began
        if self._on_stage is not None:
            self._on_stage(stage, self._stage_began, now)
        self._stage_began = now

    @property
    def spent_s(self) -> float:
        return self._clock() - self._started

    @property
    def remaining_s(self) -> float:
        return self._budget_s - self.spent_s

    @property
    def remaining_before_fallback_s(self) -> float:
        """What work may use that has a fallback, so that time remains for that."""
        return self.remaining_s - FALLBACK_SHARE * self._budget_s


class TypicalTime:
    """How long a piece of work takes lately: an exponential moving average, in seconds.

    Skipping the work shortens it a little, so that after a slow spell the work is tried again.
    """

    def __init__(self, first_guess_s: float = 0.0, weight: float = 0.1, forgetting: float = 0.98) -> None:
        self._typical_s = first_guess_s
        self._weight = weight
        self._forgetting = forgetting

    def require(self, remaining_s: float) -> None:
        """Raises OutOfTime when the work would not fit into what remains."""
        if self._typical_s > remaining_s:
            self._typical_s *= self._forgetting
            raise OutOfTime(f"{remaining_s * 1_000:.0f} ms remain, it takes {self._typical_s * 1_000:.0f} ms")

    def learn(self, took_s: float) -> None:
        self._typical_s += self._weight * (took_s - self._typical_s)
