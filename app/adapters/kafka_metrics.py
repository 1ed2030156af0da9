"""What Prometheus is told of the way through Kafka."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class SenderMetrics:
    """Of a process that sends events to Kafka."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queued = Gauge(
            "propositions_kafka_queued",
            "Messages that wait for Kafka's acknowledgement.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._failures = Counter(
            "propositions_kafka_failures",
            "Messages that Kafka did not acknowledge, by reason.",
            ["reason"],
            registry=registry,
        )

    def queued(self, count: int) -> None:
        self._queued.set(count)

    def failed(self, reason: str, count: int = 1) -> None:
        self._failures.labels(reason).inc(count)


class IntakeMetrics:
    """Of a process that brings events from Kafka into PostgreSQL."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._consumed = Counter(
            "propositions_kafka_consumed",
            "Messages that are done with, by what became of them: recorded, duplicate, dropped or dead.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("recorded", "duplicate", "dropped", "dead"):
            self._consumed.labels(outcome)
        self._lag = Gauge(
            "propositions_kafka_lag",
            "Messages of a partition that this process has still to bring into PostgreSQL.",
            ["partition"],
            multiprocess_mode="livesum",
            registry=registry,
        )

    def consumed(self, outcome: str, count: int) -> None:
        self._consumed.labels(outcome).inc(count)

    def lag(self, partition: int, count: int) -> None:
        self._lag.labels(partition).set(count)

    def no_lag(self, partition: int) -> None:
        """Another process has the partition now."""
        self._lag.labels(partition).set(0)
