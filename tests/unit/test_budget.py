"""Deadlines: what would overrun is skipped."""

import pytest

from app.domain.budget import FALLBACK_SHARE, OutOfTime, TimeBudget, TypicalTime
from app.domain.types import DegradationLevel
from tests.builders import NOON, request
from tests.unit.test_ranking import FakeModel, FakeReader, rankers, shown


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def test_stages_add_up_to_what_was_spent():
    clock = Clock()
    budget = TimeBudget(0.08, clock)
    for stage, took_s in (("cache", 0.01), ("score", 0.02), ("cache", 0.005)):
        clock.now_s += took_s
        budget.finish(stage)

    assert budget.stages_s == pytest.approx({"cache": 0.015, "score": 0.02})
    assert budget.remaining_s == pytest.approx(0.045)


def test_work_that_typically_takes_longer_than_what_remains_is_refused():
    typical = TypicalTime()
    for _ in range(100):
        typical.learn(0.5)

    typical.require(0.6)
    with pytest.raises(OutOfTime):
        typical.require(0.4)


def test_after_a_slow_spell_the_work_is_tried_again():
    typical = TypicalTime()
    for _ in range(100):
        typical.learn(0.5)

    def refusals():
        for count in range(1_000):
            try:
                typical.require(0.08)
                return count
            except OutOfTime:
                pass

    assert 10 < refusals() < 200


class SlowReader(FakeReader):
    """Takes a second of the given clock, and notes how much time it was given."""

    def __init__(self, clock, took_s, known):
        super().__init__(known)
        self._clock, self._took_s, self.timeouts_s = clock, took_s, []

    def read(self, keys, half_life_count, now, timeout_s=None):
        self.timeouts_s.append(timeout_s)
        self._clock.now_s += self._took_s
        return super().read(keys, half_life_count, now)


class SlowModel(FakeModel):
    def __init__(self, spec, clock):
        super().__init__(spec)
        self._clock, self.took_s = clock, 0.5

    def score(self, matrix):
        self._clock.now_s += self.took_s
        return super().score(matrix)


def levels(ranker, clock, count, budget_s=0.08):
    return [
        ranker.rank(request(), "r", NOON, TimeBudget(budget_s, clock)).degradation_level for _ in range(count)
    ]


def test_a_slow_model_gives_way_to_the_rules_and_comes_back_when_it_is_fast_again(spec):
    clock = Clock()
    model = SlowModel(spec, clock)
    ranker = rankers(model, reader=FakeReader({"u1", request().context_key}))

    slow = levels(ranker, clock, 20)
    model.took_s = 0.001
    recovering = levels(ranker, clock, 500)

    assert DegradationLevel.RULES in slow
    assert recovering[-1] is DegradationLevel.FULL


def test_the_online_store_is_given_what_remains_of_the_request_but_for_a_fallback(spec):
    clock = Clock()
    reader = SlowReader(clock, 0.0, {"u1", request().context_key})

    levels(rankers(FakeModel(spec), reader=reader), clock, 1, budget_s=0.03)

    assert reader.timeouts_s == [pytest.approx(0.03 * (1 - FALLBACK_SHARE))]


def test_when_reading_took_too_long_the_model_is_skipped(spec):
    clock = Clock()
    reader = SlowReader(clock, 0.079, {"u1", request().context_key})
    model = SlowModel(spec, clock)
    model.took_s = 0.01
    ranker = rankers(model, reader=reader)

    assert levels(ranker, clock, 30)[-1] is DegradationLevel.RULES


def test_the_answer_is_full_however_little_time_there_is(spec):
    clock = Clock()
    ranker = rankers(SlowModel(spec, clock), reader=SlowReader(clock, 1.0, {"u1"}))

    for _ in range(5):
        assert shown(ranker.rank(request(), "r", NOON, TimeBudget(0.001, clock)))
