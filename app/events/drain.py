"""Drains the spool into the primary event log as soon as that answers, oldest events first."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from app.domain.errors import StoreUnavailable
from app.domain.ports import EventLog, Receipt
from app.domain.types import Event

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
        except StoreUnavailable as error:
            if self._problem is None:
                log.warning("spooled events wait: %s", error)
            self._problem = str(error)
        if drained:
            log.info("%d spooled events are in the event log", drained)
        return drained

    def _drain_oldest(self) -> int | None:
        """The number of events; None if there are none, or another worker has taken them on.

        Between two segments others get their turn, such as a removal of a user's events.
        """
        with self._spool.exclusive() as is_mine:
            segment = self._run_aside(self._spool.oldest) if is_mine else None
            if segment is None:
                return None
            refused: list[Event] = []
            for first in range(0, len(segment.events), self._batch_events):
                refused += self._append(segment.events[first : first + self._batch_events])
            self._run_aside(lambda: self._spool.remove(segment, refused))
            return len(segment.events) - len(refused)

    def _append(self, events: Sequence[Event]) -> list[Event]:
        """Returns the events that the log refuses though it is there: they must not hold up the others."""
        try:
            self._told(events, self._event_log.append(events))
        except StoreUnavailable:
            raise
        except Exception:
            if len(events) > 1:
                return [refused for event in events for refused in self._append([event])]
            log.exception("a spooled event cannot be recorded and is kept aside")
            return list(events)
        return []

    def _told(self, events: Sequence[Event], receipt: Receipt) -> None:
        new_ids = set(receipt.recorded_ids)
        self._on_recorded([event for event in events if event.event_id in new_ids])
