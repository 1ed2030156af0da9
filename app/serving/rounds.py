"""How late requests are seen: an event loop works off what was ready at once, one after the other."""

import time
from collections.abc import Callable

# The controlled delay of Nichols and Jacobson (2012), as it is done for servers: see "Fail at Scale", Maurer (2015).
BURST_S = 0.1


class Rounds:
    """Rounds of an event loop. Whatever is handled late in a round was ready when it began, and has waited since.

    A burst may make a round as long as `longest_s`. When for `BURST_S` none was shorter than `standing_s`, it is
    no burst, and rounds are kept to that: what takes several rounds to answer is late otherwise, and so is all the rest.
    """

    def __init__(
        self, longest_s: float, standing_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._longest_s, self._standing_s = longest_s, standing_s
        self._clock = clock
        self._began_at_s = self._was_short_at_s = clock()

    def begin(self) -> None:
        self._began_at_s = self._clock()

    def end(self) -> None:
        now_s = self._clock()
        if now_s - self._began_at_s < self._standing_s:
            self._was_short_at_s = now_s

    @property
    def is_overrun(self) -> bool:
        """True if what is handled now has waited too long already."""
        now_s = self._clock()
        is_burst = now_s - self._was_short_at_s < BURST_S
        return now_s - self._began_at_s > (self._longest_s if is_burst else self._standing_s)
