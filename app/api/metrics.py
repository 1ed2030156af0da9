"""What the service counts beside the HTTP metrics of prometheus-flask-exporter."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.api.schemas import EventOutcome
from app.domain.types import Slate, StoredIn
from app.serving.cache import CacheOutcome


class ServingMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._slates = Counter(
            "propositions_slates", "Slates served.", ["strategy", "level"], registry=registry
        )
        # Remembered, because to look a counter up by its labels takes longer than to count.
        self._slates_of = cache(self._slates.labels)
        self._fallbacks = Counter(
            "propositions_fallbacks",
            "Rankers that could not answer, by reason.",
            ["reason"],
            registry=registry,
        )
        self._dropped = Counter(
            "propositions_decisions_dropped",
            "Decisions lost because their queue was full.",
            registry=registry,
        )
        self._model_loads = Counter(
            "propositions_model_loads", "Models loaded or refused.", ["outcome"], registry=registry
        )

        self._cache_requests = Counter(
            "propositions_cache_requests",
            "Requests by what the suggestion cache did for them.",
            ["outcome"],
            registry=registry,
        )
        self._cache_requests_of = cache(self._cache_requests.labels)
        self._cache_invalidations = Counter(
            "propositions_cache_invalidations",
            "What made kept slates outdated.",
            ["reason"],
            registry=registry,
        )

    def slate_served(self, slate: Slate) -> None:
        self._slates_of(slate.strategy, int(slate.degradation_level)).inc()

    def fell_back(self, reason: str) -> None:
        self._fallbacks.labels(reason).inc()

    def decisions_dropped(self, count: int) -> None:
        self._dropped.inc(count)

    def model_load(self, outcome: str) -> None:
        self._model_loads.labels(outcome).inc()
        if outcome == "loaded":
            self.cache_invalidated("model")

    def cache_request(self, outcome: CacheOutcome) -> None:
        self._cache_requests_of(outcome).inc()

    def cache_invalidated(self, reason: str, count: int = 1) -> None:
        self._cache_invalidations.labels(reason).inc(count)


BREAKER_STATES = {"closed": 0, "half-opened": 1, "opened": 2}


class ResilienceMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._breaker = Gauge(
            "propositions_breaker_state",
            "Of the breaker before a dependency, the worst of all workers: 0 closed, 1 half open, 2 open.",
            ["dependency"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._breaker_changes = Counter(
            "propositions_breaker_changes",
            "Changes of breakers, by the new state.",
            ["dependency", "state"],
            registry=registry,
        )
        self._shed = Counter(
            "propositions_requests_shed",
            "Requests refused because they would have waited too long.",
            ["route"],
            registry=registry,
        )

    def breaker_changed(self, dependency: str, state: str) -> None:
        self._breaker.labels(dependency).set(BREAKER_STATES[state])
        self._breaker_changes.labels(dependency, state).inc()

    def shed(self, route: str) -> None:
        self._shed.labels(f"/{route}").inc()


class EventMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "propositions_events",
            "Events by what became of them.",
            ["outcome", "stored_in"],
            registry=registry,
        )
        # All workers look at the same folder: the latest look counts, whoever took it.
        self._spool_bytes = Gauge(
            "propositions_spool_bytes",
            "Bytes that wait to be drained.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._spool_events = Gauge(
            "propositions_spool_events",
            "Events that wait to be drained.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._drained = Counter(
            "propositions_spool_drained", "Events that were drained from the spool.", registry=registry
        )
        self._lost_bytes = Counter(
            "propositions_spool_unreadable_bytes",
            "Bytes of the spool that are no events that can be recorded.",
            ["kind"],
            registry=registry,
        )

    def events(self, outcome: EventOutcome, stored_in: StoredIn | None, count: int) -> None:
        self._events.labels(outcome, stored_in or "nowhere").inc(count)

    def spool_holds(self, bytes_: int, events: int) -> None:
        self._spool_bytes.set(bytes_)
        self._spool_events.set(events)

    def spool_drained(self, count: int) -> None:
        self._drained.inc(count)

    def spool_unreadable(self, kind: str, bytes_: int) -> None:
        self._lost_bytes.labels(kind).inc(bytes_)
