from datetime import timedelta

from prometheus_client import CollectorRegistry

from app.events.metrics import ProjectorMetrics, part_of
from app.features.slots import ALL_SLOTS, COVISIT_SLOT
from tests.builders import NOON


def test_the_delay_is_the_age_of_the_oldest_event_that_waits():
    metrics = ProjectorMetrics(CollectorRegistry())

    assert metrics.delay_s("counters", NOON) == 0.0
    metrics.waits("counters", NOON)
    assert metrics.delay_s("counters", NOON + timedelta(seconds=3)) == 3.0
    assert metrics.delay_s("counters", NOON - timedelta(seconds=3)) == 0.0
    assert metrics.delay_s("covisits", NOON + timedelta(seconds=3)) == 0.0
    metrics.waits("counters", None)
    assert metrics.delay_s("counters", NOON + timedelta(seconds=3)) == 0.0


def test_counters_and_covisits_are_told_apart():
    assert part_of(ALL_SLOTS) == part_of({0}) == part_of({0, COVISIT_SLOT}) == "counters"
    assert part_of({COVISIT_SLOT}) == "covisits"


def test_freshness_counts_every_commit_from_its_receipt():
    registry = CollectorRegistry()

    received_at = [NOON, NOON - timedelta(seconds=2)]
    ProjectorMetrics(registry).served("counters", received_at, NOON + timedelta(seconds=0.5))

    def sample(name: str, **labels: str) -> float | None:
        labels["part"] = "counters"
        return registry.get_sample_value(f"propositions_freshness_seconds_{name}", labels)

    assert sample("sum") == 3.0
    assert sample("bucket", le="0.5") == 1.0
