"""Drains the spool into the primary event log as soon as that answers, oldest events first."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.domain.errors import StoreUnavailable
from app.domain.ports import EventLog, Receipt
from app.domain.types import Event

# Between two segments, for who looks again and again whether the spool is free.
TURN_S = 0.05

log = logging.getLogger(__name__)


class Segment(Protocol):
    """A part of the spool that nothing is added to any more."""

    @property
    def events(self) -> Sequence[Event]: ...


class Spool(Protocol):
    """See `app.adapters.spool.SpoolFolder`."""

    def is_empty(self) -> bool: ...
    def exclusive(self) -> AbstractContextManager[bool]: ...
    def oldest(self) -> Segment | None: ...
    def remove(self, segment: Segment, refused: Sequence[Event]) -> None: ...


class SpoolDrain:
    """One of any number of workers drains at a time. What is drained twice counts once by its `event_id`.

    Args:
        spool: files, so it is used through `run_aside`, which runs what takes long beside the requests.
        event_log: the primary itself, not the one behind a breaker: to try is what tells that it is back.
        batch_events: few enough that live events, which wait for a batch's commit, need not wait long.
        on_recorded: is told the new events of each batch.
    """

    def __init__(
        self,
        spool: Spool,
        event_log: EventLog,
        batch_events: int,
        on_recorded: Callable[[Sequence[Event]], None] = lambda events: None,
        run_aside: Callable[[Callable], Any] = lambda work: work(),
    ) -> None:
        self._spool = spool
        self._event_log = event_log
        self._batch_events = batch_events
        self._on_recorded = on_recorded
        self._run_aside = run_aside
        self._problem: str | None = None

    def run(self) -> int:
        """Drains until the spool is empty or the primary does not answer; returns the number of events."""
        drained = 0
        try:
            while not self._spool.is_empty() and (count := self._drain_oldest()) is not None:
                drained, self._problem = drained + count, None
                time.sleep(TURN_S)
        except StoreUnavailable as error:
            if self._problem is None:
                log.warning("spooled events wait: %s", error)
            self._problem = str(error)
        if drained:
            log.info("%d spooled events are in the event log", drained)
        return drained

    def _drain_oldest(self) -> int | None:
        """How many events the log has now; None if there are none, or another worker has taken them on.

        Between two segments others get their turn, such as a removal of a user's events.
        """
        with self._spool.exclusive() as is_mine:
            segment = self._run_aside(self._spool.oldest) if is_mine else None
            if segment is None:
                return None
            left_out = _LeftOut()
            for first in range(0, len(segment.events), self._batch_events):
                self._append(segment.events[first : first + self._batch_events], left_out)
            self._run_aside(lambda: self._spool.remove(segment, left_out.refused))
            if left_out.dropped_count:
                log.warning(
                    "%d spooled events were dropped: they are of forgotten users, or older than events are kept",
                    left_out.dropped_count,
                )
            return len(segment.events) - len(left_out.refused) - left_out.dropped_count

    def _append(self, events: Sequence[Event], left_out: "_LeftOut") -> None:
        """Events that the log refuses though it is there are left out: they must not hold up the others."""
        try:
            receipt = self._event_log.append(events)
        except StoreUnavailable:
            raise
        except Exception:
            if len(events) > 1:
                for event in events:
                    self._append([event], left_out)
                return
            log.exception("a spooled event cannot be recorded and is kept aside")
            left_out.refused += events
            return
        left_out.dropped_count += sum(event.event_id in receipt.dropped_ids for event in events)
        self._told(events, receipt)

    def _told(self, events: Sequence[Event], receipt: Receipt) -> None:
        new_ids = set(receipt.recorded_ids)
        self._on_recorded([event for event in events if event.event_id in new_ids])


@dataclass(slots=True)
class _LeftOut:
    """What of a segment does not get into the event log. Who was forgotten is not kept aside either."""

    refused: list[Event] = field(default_factory=list)
    dropped_count: int = 0
