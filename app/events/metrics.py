"""What a projector tells of itself."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.features.slots import COVISIT_SLOT

_BATCH_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_FRESHNESS_S = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 5.0, 15.0, 60.0)


COUNTERS, COVISITS = "counters", "covisits"


def part_of(slots: Collection[int]) -> str:
    """The name of what is folded in these slots: counters and co-visits are felt at different times."""
    return COVISITS if set(slots) == {COVISIT_SLOT} else COUNTERS


class ProjectorMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._oldest_waiting: dict[str, datetime | None] = {}
        self._events = Counter("propositions_projected_events", "Events folded.", ["part"], registry=registry)
        self._batch_s = Histogram(
            "propositions_projection_batch_seconds",
            "From the begin of a batch to its rows in both stores.",
            ["part"],
            buckets=_BATCH_S,
            registry=registry,
        )
        self._freshness_s = Histogram(
            "propositions_freshness_seconds",
            "From the receipt of events to the features that count them in the online store.",
            ["part"],
            buckets=_FRESHNESS_S,
            registry=registry,
        )
        self._slots = Gauge(
            "propositions_projection_slots", "Slots that this process folds.", registry=registry
        )
        self._rebuilds = Counter("propositions_rebuilds", "Replays of the whole log.", registry=registry)
        delay_s = Gauge(
            "propositions_projection_delay_seconds",
            "Age of the oldest event that waits to be folded; 0 if none does.",
            ["part"],
            registry=registry,
        )
        for part in (COUNTERS, COVISITS):
            delay_s.labels(part).set_function(partial(self._delay_s_now, part))

    def waits(self, part: str, since: datetime | None) -> None:
        """The receipt of the oldest event that is known to wait; None if none does."""
        self._oldest_waiting[part] = since

    def delay_s(self, part: str, now: datetime) -> float:
        oldest = self._oldest_waiting.get(part)
        return 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)

    def _delay_s_now(self, part: str) -> float:
        return self.delay_s(part, datetime.now(UTC))

    def batch_done(self, part: str, event_count: int, took_s: float) -> None:
        self._events.labels(part).inc(event_count)
        self._batch_s.labels(part).observe(took_s)

    def served(self, part: str, received_at: Iterable[datetime], now: datetime) -> None:
        """Commits of the log whose events can be felt from `now` on; each counts once, whatever its size."""
        for moment in received_at:
            self._freshness_s.labels(part).observe((now - moment).total_seconds())

    def owns(self, slot_count: int) -> None:
        self._slots.set(slot_count)

    def rebuilt(self) -> None:
        self._rebuilds.inc()
