"""A circuit breaker before a dependency: while that is down or slow, nobody waits for it."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from purgatory import SyncCircuitBreakerFactory
from purgatory.domain.messages.base import Event
from purgatory.domain.messages.events import ContextChanged
from purgatory.domain.model import CLOSED, HALF_OPENED, HalfOpenedState

from app.domain.errors import LeftAlone, StoreUnavailable

T = TypeVar("T")

log = logging.getLogger(__name__)

# purgatory would count this in wall time, which jumps; when a probe is let through is decided here.
_NEVER_S = 1e12


class CircuitBreaker:
    """Implements `Breaker`, for any number of threads or greenlets, on the library purgatory.

    Args:
        name: of the dependency, for messages and metrics.
        failures: so many in a row open it.
        open_s: seconds until one call is let through as a probe; infinite if only `probe` does that.
        slow_s: work that took longer counts as a failure, though its answer is passed on.
        on_state: is told the name and the new state: "closed", "opened" or "half-opened".
        is_failure: whether an error says something about the dependency, and not about the call.
        clock: seconds for `open_s`.
        work_clock: seconds for `slow_s`.
    """

    def __init__(
        self,
        name: str,
        failures: int,
        open_s: float,
        slow_s: float = math.inf,
        on_state: Callable[[str, str], None] = lambda name, state: None,
        is_failure: Callable[[BaseException], bool] = lambda error: isinstance(error, StoreUnavailable),
        clock: Callable[[], float] = time.monotonic,
        work_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._open_s, self._slow_s = open_s, slow_s
        self._on_state = on_state
        self._is_failure = is_failure
        self._clock, self._work_clock = clock, work_clock
        self._opened_at = -math.inf
        self._probing = threading.Lock()
        factory = SyncCircuitBreakerFactory(
            failures, _NEVER_S, exclude=[(BaseException, lambda error: not self._counts(error))]
        )
        factory.add_listener(self._note)
        self._breaker = factory.get_breaker(name)
        on_state(name, CLOSED)

    @property
    def state(self) -> str:
        return self._breaker.context.state

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around work on the dependency.

        Raises:
            LeftAlone: it has failed, and is not asked for now.
        """
        if self.state == CLOSED:
            with self._watched(self._slow_s):
                yield
            return
        if self._clock() - self._opened_at < self._open_s:
            raise self._left_alone()
        with self._half_opened(self._slow_s):
            yield

    def call(self, work: Callable[[], T]) -> T:
        """As `guard`, around a single call. The shortest way while closed: it is on the way of each request."""
        if self.state != CLOSED:
            with self.guard():
                return work()
        with self._watched(self._slow_s):
            return work()

    def probe(self, work: Callable[[], object]) -> None:
        """Lets this work decide now whether an open breaker closes, however long it takes. Its failure is no error here."""
        if self.state == CLOSED:
            return
        try:
            with self._half_opened(math.inf):
                work()
        except Exception as error:
            if not self._counts(error) and not isinstance(error, StoreUnavailable):
                raise

    @contextmanager
    def _half_opened(self, slow_s: float) -> Iterator[None]:
        """One at a time: a dependency that is getting up must not be run over."""
        if not self._probing.acquire(blocking=False):
            raise self._left_alone()
        try:
            self._breaker.context.set_state(HalfOpenedState())
            self._on_state(self.name, self.state)  # purgatory tells of it only when it is over
            with self._watched(slow_s):
                yield
        finally:
            self._probing.release()

    @contextmanager
    def _watched(self, slow_s: float) -> Iterator[None]:
        began_s = self._work_clock()
        try:
            with self._breaker:
                yield
                if self._work_clock() - began_s > slow_s:
                    raise _Slow
        except _Slow:
            pass

    def _counts(self, error: BaseException) -> bool:
        return isinstance(error, _Slow) or self._is_failure(error)

    def _left_alone(self) -> LeftAlone:
        return LeftAlone(f"{self.name} has failed and is left alone for a moment")

    def _note(self, circuit: str, kind: str, event: Event) -> None:
        if isinstance(event, ContextChanged) and event.state != HALF_OPENED:
            if event.state != CLOSED:
                self._opened_at = self._clock()
            log.warning("the breaker before %s is %s", self.name, event.state)
            self._on_state(self.name, event.state)


class _Slow(Exception):
    """The work was done, but it took too long to let others wait for the next."""
