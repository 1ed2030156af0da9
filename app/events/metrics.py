"""What a projector tells of itself."""

from collections.abc import Iterable
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BATCH_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_FRESHNESS_S = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 5.0, 15.0, 60.0)


class ProjectorMetrics:
    """`oldest_unfolded` is the receipt of the oldest event that is known to wait; None if none does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.oldest_unfolded: datetime | None = None
        self._events = Counter("propositions_projected_events", "Events folded.", registry=registry)
        self._batch_s = Histogram(
            "propositions_projection_batch_seconds",
            "From the begin of a batch to its rows in both stores.",
            buckets=_BATCH_S,
            registry=registry,
        )
        self._freshness_s = Histogram(
            "propositions_freshness_seconds",
            "From the receipt of events to the features that count them in the online store.",
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
            registry=registry,
        )
        delay_s.set_function(lambda: self.delay_s(datetime.now(UTC)))

    def delay_s(self, now: datetime) -> float:
        oldest = self.oldest_unfolded
        return 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)

    def batch_done(self, event_count: int, took_s: float) -> None:
        self._events.inc(event_count)
        self._batch_s.observe(took_s)

    def served(self, received_at: Iterable[datetime], now: datetime) -> None:
        """Commits of the log whose events can be felt from `now` on; each counts once, whatever its size."""
        for moment in received_at:
            self._freshness_s.observe((now - moment).total_seconds())

    def owns(self, slot_count: int) -> None:
        self._slots.set(slot_count)

    def rebuilt(self) -> None:
        self._rebuilds.inc()
