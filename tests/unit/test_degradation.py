"""The ladder of degradation: each level alone, from each to each, and back to 0 as soon as its reason is gone."""

import math
from datetime import timedelta
from itertools import permutations

import pytest

from app.adapters.breaker import CircuitBreaker
from app.domain.errors import FeaturesUnavailable
from app.domain.rules import RulesWeights
from app.domain.types import DegradationLevel, FeatureState, Strategy
from app.features.catalog import Catalog
from app.features.snapshot import empty_snapshot
from app.serving.candidates import CandidateGenerator
from app.serving.current_scorer import CurrentScorer
from app.serving.rankers import DefaultRanker, Fallback, ModelRanker, Relieved, RulesRanker
from tests.builders import HOUR_S, NOON, proposition, request
from tests.unit.test_ranking import HALF_LIVES, POPULAR, FakeModel, FakeReader, plenty, shown

WEIGHTS = RulesWeights(frequency=1.0, recency=0.1, context=1.0, recency_half_life_s=HOUR_S)
SCORING_S = 0.04


class World:
    """Everything that the ranker of a service depends on, each part of which can fail."""

    def __init__(self, spec) -> None:
        self.model = self._model = FakeModel(spec)
        self.snapshot = POPULAR
        self.reader = self._reader = FakeReader({"u1", request().context_key})
        self.computed_s = self.scoring_takes_s = 0.0
        self.reasons: list[str] = []
        self.breaker = CircuitBreaker(
            "model",
            2,
            math.inf,
            SCORING_S,
            is_failure=lambda error: isinstance(error, Exception),
            work_clock=lambda: self.computed_s,
        )
        generator = CandidateGenerator(100)
        by_model = ModelRanker(
            lambda: self.model,
            lambda: self.snapshot,
            self,
            generator,
            CurrentScorer(max_age_s=5.0, max_bytes=1 << 20),
            breaker=self.breaker,
        )
        rules = RulesRanker(lambda: self.snapshot, generator, WEIGHTS)
        default = DefaultRanker(Catalog.of([proposition("default")]), lambda: self.snapshot)
        self.ranker = Fallback(by_model, Fallback(rules, default, lambda reason: None), self.reasons.append)
        score = self._model.score

        def slow_score(matrix):
            self.computed_s += self.scoring_takes_s
            return score(matrix)

        self._model.score = slow_score

    def read(self, *arguments):
        return self.reader.read(*arguments)

    def fall_to(self, level: int) -> None:
        self.model, self.snapshot, self.reader = self._model, POPULAR, self._reader
        match level:
            case 1:
                self.reader = FakeReader({"u1"}, FeatureState.STALE)
            case 2:
                self.reader = FakeReader(is_down=True)
            case 3:
                self.model, self.snapshot = None, empty_snapshot(HALF_LIVES)

    def rank(self, now=NOON):
        return self.ranker.rank(request(), "r", now, plenty())

    @property
    def level(self) -> int:
        slate = self.rank()
        assert shown(slate)
        return int(slate.degradation_level)


@pytest.fixture
def world(spec):
    return World(spec)


@pytest.mark.parametrize("level", range(4))
def test_each_level_says_so_and_shows_a_slate(world, level):
    world.fall_to(level)

    slate = world.rank()

    assert slate.degradation_level == level
    assert shown(slate) == (["default"] if level == 3 else ["loved", "dull"])
    assert slate.strategy == [Strategy.MODEL, Strategy.MODEL, Strategy.RULES, Strategy.DEFAULT][level]


@pytest.mark.parametrize(("before", "after"), permutations(range(4), 2))
def test_from_each_level_it_comes_to_each_other_and_back_to_0(world, before, after):
    levels = []
    for level in (before, after, 0):
        world.fall_to(level)
        levels.append(world.level)

    assert levels == [before, after, 0]


def test_all_faults_in_sequence_and_again_leave_nothing_behind(world):
    sequence = [0, 1, 2, 3, 2, 1, 0, 3, 0, 2, 0, 1, 3, 1] * 3

    levels = []
    for level in sequence:
        world.fall_to(level)
        levels.append(world.level)

    assert levels == sequence


def test_a_model_that_takes_too_long_is_left_to_the_rules_after_two_slates(world):
    world.scoring_takes_s = 0.5

    assert [world.level for _ in range(5)] == [0, 0, 2, 2, 2]
    assert world.computed_s == pytest.approx(2 * 0.5)
    assert world.reasons == ["LeftAlone"] * 3


def test_requests_never_try_a_slow_model_and_a_trial_beside_them_brings_it_back(world):
    world.scoring_takes_s = 0.5
    for _ in range(3):
        world.rank()

    world.breaker.probe(lambda: 1 / 0)
    assert world.level == 2

    world.scoring_takes_s = 0.0
    world.breaker.probe(lambda: None)
    assert world.level == 0


def test_a_model_with_a_bug_is_left_alone_too(world):
    def broken(matrix):
        raise ZeroDivisionError

    world.model.score = broken

    assert [world.level for _ in range(4)] == [2] * 4
    assert world.reasons == ["bug", "bug", "LeftAlone", "LeftAlone"]


@pytest.mark.parametrize("years", [-50, -1, 1, 50, 500])
def test_a_clock_that_jumps_costs_quality_never_the_slate(world, years):
    world.rank()

    slate = world.rank(NOON + timedelta(days=365 * years))

    assert set(shown(slate)) == {"loved", "dull"}
    assert all(math.isfinite(ranked.score) for ranked in slate.propositions) or slate.strategy == "model"
    assert world.level == 0


def test_a_store_that_lies_is_a_store_that_is_down(world):
    class Liar:
        def read(self, *arguments):
            raise FeaturesUnavailable("Redis holds something else than features")

    world.reader = Liar()
    assert world.rank().degradation_level is DegradationLevel.RULES


def test_under_strain_rules_rank_and_no_longer(world):
    strained, told = [True], []
    ranker = Relieved(world.ranker, world.ranker._second, lambda: strained[0], told.append)

    assert ranker.rank(request(), "r", NOON, plenty()).degradation_level is DegradationLevel.RULES
    strained[0] = False
    assert ranker.rank(request(), "r", NOON, plenty()).degradation_level is DegradationLevel.FULL
    assert told == ["strained"]
