"""When outcomes are counted, and that neither versions nor categories make more and more series."""

from datetime import datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from app.domain.errors import StoreUnavailable
from app.domain.outcomes import CategoryOutcomes, SlateOutcomes
from app.domain.types import EventType
from app.events.metrics import OutcomeMetrics
from app.events.outcomes import Outcomes
from tests.builders import NOON


class FakeTables:
    """Notes what is asked for."""

    def __init__(self):
        self.counted, self.looks, self.is_down = [], 0, False

    def outcomes(self, after, until):
        if self.is_down:
            raise StoreUnavailable("down")
        self.counted.append((seconds(after), seconds(until)))
        return [], []

    def largest_categories(self, most):
        self.looks += 1
        return ["sport"]

    def shown_share(self, since):
        return 0.5

    def newest_rows(self, known):
        return {}


def at(after_s: float) -> datetime:
    return NOON + timedelta(seconds=after_s)


def seconds(moment: datetime) -> float:
    return (moment - NOON).total_seconds()


@pytest.fixture
def tables():
    return FakeTables()


@pytest.fixture
def world(tables):
    """What is told of folded events, the clock, and how far the counting got."""

    class World:
        now_s = 0.0
        outcomes = Outcomes(
            tables, OutcomeMetrics(CollectorRegistry()), lambda: at(World.now_s), timedelta(seconds=5)
        )

        def counted_at(self, now_s: float) -> list[tuple[float, float]]:
            World.now_s, tables.counted = now_s, []
            self.outcomes.refresh()
            return tables.counted

    return World()


def test_what_is_not_ripe_waits_and_nothing_is_counted_twice(world):
    world.outcomes.folded(at(0), at(4))
    assert world.counted_at(4) == []
    world.outcomes.folded(at(4), at(10))

    assert world.counted_at(8) == [(0, 3)]
    assert world.counted_at(8) == []
    assert world.counted_at(12) == [(3, 7)]
    assert world.counted_at(60) == [(7, 10)]
    assert world.counted_at(60) == []


def test_what_another_process_has_folded_between_is_left_out(world):
    world.outcomes.folded(at(0), at(2))
    world.outcomes.folded(at(5), at(7))

    assert world.counted_at(60) == [(0, 2), (5, 7)]


def test_nothing_is_lost_while_the_tables_do_not_answer(world, tables):
    world.outcomes.folded(at(0), at(2))
    world.outcomes.folded(at(5), at(7))
    tables.is_down = True
    assert world.counted_at(60) == []

    tables.is_down = False

    assert world.counted_at(61) == [(0, 2), (5, 7)]


def test_events_of_more_than_a_day_ago_are_history(world):
    day_s = 86_400
    world.outcomes.folded(at(-9 * day_s), at(-2 * day_s))
    world.outcomes.folded(at(-day_s / 2), at(0))

    assert world.counted_at(day_s * 0.75) == [(-day_s / 4, 0)]


def test_tables_are_looked_at_as_a_whole_now_and_then_only(world, tables):
    for second in range(20):
        world.counted_at(second)

    assert tables.looks == 1


def test_versions_and_categories_beyond_the_bound_make_no_more_series():
    registry = CollectorRegistry()
    metrics = OutcomeMetrics(registry)

    def happen(numbers) -> int:
        for n in numbers:
            metrics.name_categories([f"c-{n + k}" for k in range(50)])
            metrics.came_of(
                [SlateOutcomes(kind, "model", f"v-{n}", 1) for kind in EventType],
                [CategoryOutcomes(EventType.CLICK, f"c-{k}", 1) for k in range(n, n + 100)],
            )
            metrics.newest({"user_activity": NOON})
        return len([sample for metric in registry.collect() for sample in metric.samples])

    assert happen(range(20)) == happen(range(20, 400))


def test_of_more_versions_than_are_told_apart_those_that_were_seen_last_are():
    registry = CollectorRegistry()
    metrics = OutcomeMetrics(registry)

    def counted(version: str) -> float | None:
        labels = {"event_type": "click", "strategy": "model", "model_version": version}
        return registry.get_sample_value("propositions_outcomes_total", labels)

    def click(*versions: str) -> None:
        metrics.came_of([SlateOutcomes(EventType.CLICK, "model", version, 1) for version in versions], [])

    click("v0")
    click("v1")
    click("v0")
    click(*(f"w{n}" for n in range(9)))
    assert (counted("v0"), counted("v1"), counted("w8")) == (2, None, 1)

    click(*(f"x{n}" for n in range(12)))
    assert [counted(f"x{n}") for n in range(12)] == [None] * 2 + [1] * 10
    assert counted("other") == 2


def test_there_are_clicks_as_soon_as_there_are_impressions():
    registry = CollectorRegistry()

    OutcomeMetrics(registry).came_of([SlateOutcomes(EventType.IMPRESSION, "model", "v1", 3)], [])

    labels = {"strategy": "model", "model_version": "v1"}
    assert [
        registry.get_sample_value("propositions_outcomes_total", {**labels, "event_type": kind})
        for kind in EventType
    ] == [3, 0, 0, 0]
