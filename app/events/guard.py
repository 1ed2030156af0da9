"""An event log behind a breaker: while it is down or slow, nobody waits for it."""

from collections.abc import Sequence

from app.domain.ports import Breaker, EventLog, Receipt
from app.domain.types import Event


class GuardedEventLog:
    """Implements `EventLog`."""

    def __init__(self, event_log: EventLog, breaker: Breaker) -> None:
        self._event_log, self._breaker = event_log, breaker

    def append(self, events: Sequence[Event]) -> Receipt:
        return self._breaker.call(lambda: self._event_log.append(events))
