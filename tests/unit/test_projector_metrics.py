from datetime import timedelta

from prometheus_client import CollectorRegistry

from app.events.metrics import ProjectorMetrics
from tests.builders import NOON


def test_the_delay_is_the_age_of_the_oldest_event_that_waits():
    metrics = ProjectorMetrics(CollectorRegistry())

    assert metrics.delay_s(NOON) == 0.0
    metrics.oldest_unfolded = NOON
    assert metrics.delay_s(NOON + timedelta(seconds=3)) == 3.0
    assert metrics.delay_s(NOON - timedelta(seconds=3)) == 0.0


def test_freshness_counts_every_commit_from_its_receipt():
    registry = CollectorRegistry()

    ProjectorMetrics(registry).served([NOON, NOON - timedelta(seconds=2)], NOON + timedelta(seconds=0.5))

    assert registry.get_sample_value("propositions_freshness_seconds_sum") == 3.0
    assert registry.get_sample_value("propositions_freshness_seconds_bucket", {"le": "0.5"}) == 1.0
