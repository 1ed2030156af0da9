"""Group commit: requests that arrive while a commit is under way share the next one."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from app.domain.errors import StoreUnavailable
from app.domain.ports import EventLog, Receipt
from app.domain.tracing import SharedSpan, current_span, working_for
from app.domain.types import Event

log = logging.getLogger(__name__)

STUCK = "the event log takes too long"
# As long as appends succeed in time, a busy worker's callers wait for so many times the longest of them.
_PATIENCE = 10
_SHORTEST_PAUSE_S = 0.001


class GroupCommit:
    """An `EventLog` for many callers at once over one that is called by a single thread of its own.

    Works in threads and, where these are patched, in greenlets.

    Args:
        event_log: is given the events of all callers that wait.
        max_append_s: when an append takes longer, its callers and those behind them give up. Their events
            may become durable later; who goes elsewhere with them relies on `event_id` counting once.
        max_group_events: a group takes no further caller when it has as many.
        on_recorded: is told the events of each group that are new, before its callers are answered.
    """

    def __init__(
        self,
        event_log: EventLog,
        max_append_s: float,
        max_group_events: int,
        on_recorded: Callable[[Sequence[Event]], None] = lambda events: None,
    ) -> None:
        self._event_log = event_log
        self._max_append_s = max_append_s
        self._max_group_events = max_group_events
        self._on_recorded = on_recorded
        self._waiting: deque[_Call] = deque()
        self._arrival = threading.Event()
        self._start_lock = threading.Lock()
        self._leader: threading.Thread | None = None
        self._appending_since_s: float | None = None

    def append(self, events: Sequence[Event]) -> Receipt:
        """Implements `EventLog`.

        Raises:
            StoreUnavailable: also when it takes too long, or an earlier group does.
        """
        if self._is_stuck():
            raise StoreUnavailable(STUCK)
        call = _Call(events)
        self._waiting.append(call)
        self._ensure_leader()
        self._arrival.set()
        last_s = time.monotonic() + _PATIENCE * self._max_append_s
        while not call.done.wait(self._pause_s()):
            if self._is_stuck() or time.monotonic() > last_s:
                call.is_abandoned = True
                break
        return call.result()

    def _is_stuck(self) -> bool:
        since_s = self._appending_since_s
        return since_s is not None and time.monotonic() - since_s >= self._max_append_s

    def _pause_s(self) -> float:
        """Until the append that is under way, or one that begins now, would be stuck."""
        since_s = self._appending_since_s
        if since_s is None:
            return self._max_append_s
        return max(since_s + self._max_append_s - time.monotonic(), _SHORTEST_PAUSE_S)

    def _ensure_leader(self) -> None:
        if self._leader is None:
            with self._start_lock:
                if self._leader is None:
                    self._leader = threading.Thread(target=self._lead, daemon=True)
                    self._leader.start()

    def _lead(self) -> None:
        while True:
            self._arrival.wait()
            self._arrival.clear()
            while group := self._next_group():
                self._commit(group)

    def _next_group(self) -> list["_Call"]:
        group, size = [], 0
        while self._waiting and size < self._max_group_events:
            call = self._waiting.popleft()
            if not call.is_abandoned:
                group.append(call)
                size += len(call.events)
        return group

    def _commit(self, group: Sequence["_Call"]) -> None:
        try:
            self._append(group)
        except StoreUnavailable as error:
            _fail(group, error)
        except Exception as error:
            # A bug, or events that the store cannot take: nobody's but the caller's that brought them.
            if len(group) == 1:
                _fail(group, error)
            else:
                for call in group:
                    self._commit([call])
        for call in group:
            call.done.set()

    def _append(self, group: Sequence["_Call"]) -> None:
        events = [event for call in group for event in call.events]
        with working_for(_span_of(group)):
            self._appending_since_s = time.monotonic()
            try:
                receipt = self._event_log.append(events)
            finally:
                self._appending_since_s = None
            _hand_out(receipt, group)
            self._tell(events, receipt)

    def _tell(self, events: Sequence[Event], receipt: Receipt) -> None:
        new_ids = set(receipt.recorded_ids)
        try:
            self._on_recorded([event for event in events if event.event_id in new_ids])
        except Exception:
            # The events are durable: their callers must not hear otherwise.
            log.exception("recorded events could not be told of")


class _Call:
    """What one caller brought, and what became of it."""

    __slots__ = ("done", "error", "events", "is_abandoned", "receipt", "span")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.done = threading.Event()
        self.is_abandoned = False
        self.span = current_span()
        self.receipt: Receipt | None = None
        self.error: Exception | None = None

    def result(self) -> Receipt:
        if self.receipt is not None:
            return self.receipt
        raise self.error or StoreUnavailable(STUCK)


def _span_of(group: Sequence[_Call]) -> SharedSpan | None:
    """The spans of the callers by their events. Of those that sent the same id, the first one's."""
    spans = {e.event_id: call.span for call in reversed(group) if call.span for e in call.events}
    return SharedSpan(spans) if spans else None


def _fail(group: Sequence[_Call], error: Exception) -> None:
    for call in group:
        call.error = error


def _hand_out(receipt: Receipt, group: Sequence[_Call]) -> None:
    """Gives each caller its part. Of those that sent the same id, it is new to the first."""
    unclaimed, dropped_ids = set(receipt.recorded_ids), set(receipt.dropped_ids)
    for call in group:
        recorded: dict[str, None] = {}
        repeated: dict[str, None] = {}
        dropped: dict[str, None] = {}
        for event in call.events:
            if event.event_id in dropped_ids:
                dropped[event.event_id] = None
            elif event.event_id in unclaimed:
                unclaimed.remove(event.event_id)
                recorded[event.event_id] = None
            else:
                repeated[event.event_id] = None
        call.receipt = Receipt(tuple(recorded), tuple(repeated), receipt.stored_in, tuple(dropped))
