"""How late requests are seen: an event loop works off what was ready at once, one after the other."""

import time
from collections.abc import Callable

# The controlled delay of Nichols and Jacobson (2012), as it is done for servers: see "Fail at Scale", Maurer (2015).
BURST_S = 0.1
# So long it stays strained once it was overrun: to rank in full again at the first short round would bring the queue back.
CALM_S = 0.25
# Of the time after which it is overrun, what must have been worked in the round: else it was long because this process had
# no processor, which refusing the few who wait does not help.
WORKED_SHARE = 0.125


class Rounds:
    """Rounds of an event loop. Whatever is handled late in a round was ready when it began, and has waited since.

    In a burst a round may be long. When for `BURST_S` none was shorter than `standing_s`, it is no burst, and what is
    handled later in a round than that `is_strained`: what takes several rounds to answer would be late. After `longest_s`,
    if `WORKED_SHARE` of that was computed in it, it `is_overrun`, and anything would be late. Once a round that is no burst
    was longer than half of that, so are those after it: for `CALM_S` it stays strained, and is overrun after half the time.

    `cpu_clock`: seconds that the thread of the event loop has computed.
    """

    def __init__(
        self,
        longest_s: float,
        standing_s: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._longest_s, self._standing_s = longest_s, standing_s
        self._clock, self._cpu_clock = clock, cpu_clock
        self._began_at_cpu_s = cpu_clock()
        self._began_at_s = self._was_short_at_s = clock()
        self._was_short = True
        self._calm_at_s = self._began_at_s
        self._longest_round_s = 0.0

    def begin(self) -> None:
        self._began_at_s, self._began_at_cpu_s = self._clock(), self._cpu_clock()
        if self._was_short:  # it may have been long ago, and nothing was ready since
            self._was_short_at_s = self._began_at_s

    def end(self) -> None:
        now_s = self._clock()
        took_s = now_s - self._began_at_s
        if took_s > self._longest_s / 2 and self._stands(now_s):
            self._calm_at_s = now_s + CALM_S
        self._was_short = took_s < self._standing_s
        if took_s > self._longest_round_s:
            self._longest_round_s = took_s

    def take_longest_s(self) -> float:
        """The longest round since this was asked last: so late its last request was handled."""
        longest_s, self._longest_round_s = self._longest_round_s, 0.0
        return longest_s

    @property
    def is_strained(self) -> bool:
        now_s = self._clock()
        return now_s < self._calm_at_s or (
            now_s - self._began_at_s > self._standing_s and self._stands(now_s)
        )

    @property
    def is_overrun(self) -> bool:
        now_s = self._clock()
        limit_s = self._longest_s / 2 if now_s < self._calm_at_s else self._longest_s
        if now_s - self._began_at_s <= limit_s:
            return False
        return self._cpu_clock() - self._began_at_cpu_s > WORKED_SHARE * limit_s

    def _stands(self, now_s: float) -> bool:
        return now_s - self._was_short_at_s >= BURST_S
