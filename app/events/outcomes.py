"""What came of slates and of categories, counted beside the fold and not by it.

An event is counted by whoever commits the ninth slot's progress past it, so once over all projectors. It is counted a
few seconds later than it is folded: until then the decision that it belongs to, which is logged off the request's path,
is in PostgreSQL. What waits for that is lost with its process.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from app.domain.errors import StoreUnavailable
from app.domain.outcomes import CategoryOutcomes, SlateOutcomes
from app.events.metrics import OutcomeMetrics

log = logging.getLogger(__name__)

# Longer than a decision waits to be stored.
RIPE_AFTER = timedelta(seconds=5)
# Older events are no news: they come from an import.
COUNTED_FOR = timedelta(days=1)
SHOWN_WITHIN = timedelta(days=1)
LOOK_INTERVAL_S = 60.0
# Of the time, what looking at whole tables may take at most.
LOOK_SHARE = 0.05
MOST_CATEGORIES = 50


class OutcomeTables(Protocol):
    """See `app.adapters.outcome_tables.OutcomeTables`. All methods raise StoreUnavailable."""

    def outcomes(
        self, after: datetime, until: datetime
    ) -> tuple[Sequence[SlateOutcomes], Sequence[CategoryOutcomes]]: ...
    def largest_categories(self, most: int) -> Sequence[str]: ...
    def shown_share(self, since: datetime) -> float | None: ...
    def newest_rows(self, known: Mapping[str, datetime]) -> Mapping[str, datetime]: ...


class Outcomes:
    """Is told of what is folded by one thread, and counts it in another, which calls `refresh` every few seconds."""

    def __init__(
        self,
        tables: OutcomeTables,
        metrics: OutcomeMetrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        ripe_after: timedelta = RIPE_AFTER,
    ) -> None:
        self._tables, self._metrics = tables, metrics
        self._now, self._ripe_after = now, ripe_after
        self._lock = threading.Lock()
        self._waiting: list[tuple[datetime, datetime]] = []
        self._newest: Mapping[str, datetime] = {}
        self._look_due_s = 0.0
        self._problem: str | None = None

    def folded(self, after: datetime, until: datetime) -> None:
        """This process, and no other one, has committed what was received after one moment and until another."""
        with self._lock:
            if self._waiting and self._waiting[-1][1] == after:
                after, _ = self._waiting.pop()
            self._waiting.append((after, until))

    def refresh(self) -> None:
        """Counts what is ripe, and now and then looks at the tables as a whole. While they do not answer, all waits."""
        try:
            if time.monotonic() >= self._look_due_s:
                self._look()
            self._count()
            self._problem = None
        except StoreUnavailable as error:
            if self._problem is None:
                log.warning("outcomes are counted later: %s", error)
            self._problem = str(error)

    def _look(self) -> None:
        began_s = time.monotonic()
        self._metrics.name_categories(self._tables.largest_categories(MOST_CATEGORIES))
        self._metrics.covers(self._tables.shown_share(self._now() - SHOWN_WITHIN))
        self._newest = self._tables.newest_rows(self._newest)
        self._metrics.newest(self._newest)
        ended_s = time.monotonic()
        self._look_due_s = ended_s + max(LOOK_INTERVAL_S, (ended_s - began_s) / LOOK_SHARE)

    def _count(self) -> None:
        now = self._now()
        while (span := self._next_ripe(now - self._ripe_after)) is not None:
            after, until = span
            try:
                if until > now - COUNTED_FOR:
                    after = max(after, now - COUNTED_FOR)
                    self._metrics.came_of(*self._tables.outcomes(after, until))
            except StoreUnavailable:
                with self._lock:
                    self._waiting.insert(0, span)
                raise

    def _next_ripe(self, moment: datetime) -> tuple[datetime, datetime] | None:
        """The first span that waits, as far as it lies before a moment; the rest of it goes on waiting."""
        with self._lock:
            for number, (after, until) in enumerate(self._waiting):
                if after < moment:
                    if until <= moment:
                        del self._waiting[number]
                    else:
                        self._waiting[number] = (moment, until)
                    return after, min(until, moment)
        return None
