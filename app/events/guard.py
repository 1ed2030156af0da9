"""A circuit breaker before an event log: while it is down or slow, nobody waits for it."""

import logging
import time
from collections.abc import Callable, Sequence

from purgatory import SyncCircuitBreakerFactory
from purgatory.domain.messages.base import Event as BreakerEvent
from purgatory.domain.messages.events import ContextChanged
from purgatory.domain.model import OpenedState

from app.domain.errors import StoreUnavailable
from app.domain.ports import EventLog, Receipt
from app.domain.types import Event

log = logging.getLogger(__name__)

CIRCUIT = "events"


class GuardedEventLog:
    """Implements `EventLog`. For one caller at a time, so that a half-open breaker lets one probe through.

    Args:
        slow_s: an answer that took longer counts as an outage, though it is passed on.
        failures: so many outages in a row open the breaker.
        open_s: seconds until the next call is let through as a probe.
        on_state: is told the new state: "closed", "opened" or "half-opened".
    """

    def __init__(
        self,
        event_log: EventLog,
        slow_s: float,
        failures: int,
        open_s: float,
        on_state: Callable[[str], None] = lambda state: None,
    ) -> None:
        self._event_log = event_log
        self._slow_s = slow_s
        self._on_state = on_state
        factory = SyncCircuitBreakerFactory(failures, open_s, exclude=[(BaseException, _is_no_outage)])
        factory.add_listener(self._note)
        self._breaker = factory.get_breaker(CIRCUIT)

    def append(self, events: Sequence[Event]) -> Receipt:
        try:
            with self._breaker:
                return self._append(events)
        except _Slow as slow:
            return slow.receipt
        except OpenedState as error:
            raise StoreUnavailable("the breaker before the event log is open") from error

    def _append(self, events: Sequence[Event]) -> Receipt:
        began_s = time.monotonic()
        receipt = self._event_log.append(events)
        if time.monotonic() - began_s > self._slow_s:
            raise _Slow(receipt)
        return receipt

    def _note(self, circuit: str, kind: str, event: BreakerEvent) -> None:
        if isinstance(event, ContextChanged):
            log.warning("the breaker before the event log is %s", event.state)
            self._on_state(event.state)


class _Slow(Exception):
    """The events are recorded, but it took too long to let others wait for the next."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__()
        self.receipt = receipt


def _is_no_outage(error: BaseException) -> bool:
    return not isinstance(error, (StoreUnavailable, _Slow))
