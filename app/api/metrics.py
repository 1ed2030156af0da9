"""What the service counts beside the HTTP metrics of prometheus-flask-exporter."""

from prometheus_client import CollectorRegistry, Counter

from app.domain.types import Slate
from app.serving.cache import CacheOutcome


class ServingMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._slates = Counter(
            "propositions_slates", "Slates served.", ["strategy", "level"], registry=registry
        )
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
        self._cache_invalidations = Counter(
            "propositions_cache_invalidations",
            "What made kept slates outdated.",
            ["reason"],
            registry=registry,
        )

    def slate_served(self, slate: Slate) -> None:
        self._slates.labels(slate.strategy, int(slate.degradation_level)).inc()

    def fell_back(self, reason: str) -> None:
        self._fallbacks.labels(reason).inc()

    def decisions_dropped(self, count: int) -> None:
        self._dropped.inc(count)

    def model_load(self, outcome: str) -> None:
        self._model_loads.labels(outcome).inc()
        if outcome == "loaded":
            self.cache_invalidated("model")

    def cache_request(self, outcome: CacheOutcome) -> None:
        self._cache_requests.labels(outcome).inc()

    def cache_invalidated(self, reason: str, count: int = 1) -> None:
        self._cache_invalidations.labels(reason).inc(count)
