"""A model that is too slow is found out before it serves."""

import numpy as np
import pytest

from app.domain.errors import ModelRefused
from app.serving.trial import TRIES, require_fast
from tests.builders import proposition
from tests.unit.test_ranking import snapshot


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class SlowScorer:
    """Takes as many seconds per candidate as it is given, one try after the other, the last again and again."""

    class model:
        version = "v7"

    as_of_s = 0.0

    def __init__(self, clock: Clock, taken_s: list[float], candidates: int) -> None:
        self.snapshot = snapshot(*(proposition(f"p{n}") for n in range(candidates)))
        self.counts: list[int] = []
        self._clock, self._taken_s = clock, list(taken_s)

    def score(self, context_key, positions, catalog, online, now_s):
        self.counts.append(len(positions))
        taken_s = self._taken_s.pop(0) if len(self._taken_s) > 1 else self._taken_s[0]
        self._clock.now_s += taken_s * len(positions)
        return np.zeros(len(positions))


@pytest.mark.parametrize("taken_s", [[0.0005], [0.1, 0.0005], [0.1, 0.1, 0.001, 0.05, 0.0005]])
def test_one_that_is_fast_once_it_is_warm_may_serve(taken_s):
    clock = Clock()
    scorer = SlowScorer(clock, taken_s, 80)

    require_fast(scorer, 500, 0.05, clock)

    assert scorer.counts[-1] == 80


def test_one_that_is_never_fast_enough_is_refused_with_how_long_it_takes():
    clock = Clock()

    with pytest.raises(ModelRefused, match=r"v7 takes 80 ms to score 80 candidates, and may take 50 ms"):
        require_fast(SlowScorer(clock, [0.001], 80), 500, 0.05, clock)


def test_one_that_is_far_too_slow_is_refused_after_a_few_candidates():
    clock = Clock()
    scorer = SlowScorer(clock, [0.01], 80)

    with pytest.raises(ModelRefused, match=r"takes 800 ms to score 80 candidates"):
        require_fast(scorer, 500, 0.05, clock)

    assert scorer.counts == [10] * TRIES


def test_it_is_tried_on_as_many_candidates_as_a_slate_has_at_most():
    clock = Clock()
    scorer = SlowScorer(clock, [0.0], 80)

    require_fast(scorer, 16, 0.04, clock)

    assert scorer.counts == [2, 16]


def test_without_a_catalog_there_is_nothing_to_try():
    require_fast(SlowScorer(Clock(), [1.0], 0), 500, 0.04)
