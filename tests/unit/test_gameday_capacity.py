"""What a service can do is found out by requests that nobody has asked before, in its slowest moment."""

from pathlib import Path

import pytest

from app.gameday.serving_world import REQUESTS, Load


class LoadOfNobody(Load):
    """Notes where each closed loop begins; they give 500 slates a second, but for the second measurement."""

    def _closed_loop(self, seconds, first):
        self.firsts = [*getattr(self, "firsts", []), first]
        rate = 400.0 if len(self.firsts) == 3 else 500.0
        by_rules = 10
        answers = round(rate * seconds) + by_rules
        return {"answers": answers, "seconds": seconds, "levels": {"0": answers - by_rules, "2": by_rules}}


def test_capacity_is_what_the_model_ranks_in_the_slowest_measurement():
    assert LoadOfNobody(0, Path(), Path(), Path()).capacity(2.0) == pytest.approx(400.0)


def test_each_measurement_asks_what_is_not_in_the_cache_yet():
    load = LoadOfNobody(0, Path(), Path(), Path())

    load.capacity(40.0)

    ends = [10_010, 30_020, 46_030]
    assert load.firsts == [0, *(end % REQUESTS for end in ends)]
