"""What the service counts beside the HTTP metrics of prometheus-flask-exporter."""

from prometheus_client import CollectorRegistry, Counter

from app.domain.types import Slate


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

    def slate_served(self, slate: Slate) -> None:
        self._slates.labels(slate.strategy, int(slate.degradation_level)).inc()

    def fell_back(self, reason: str) -> None:
        self._fallbacks.labels(reason).inc()

    def decisions_dropped(self, count: int) -> None:
        self._dropped.inc(count)

    def model_load(self, outcome: str) -> None:
        self._model_loads.labels(outcome).inc()
