"""What is handled late in a round of the event loop has waited since the round began."""

import pytest

from app.serving.rounds import BURST_S, CALM_S, Rounds

LONGEST_S, STANDING_S = 0.04, 0.01


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def rounds(clock):
    return Rounds(LONGEST_S, STANDING_S, clock, cpu_clock=clock)


def play(rounds: Rounds, clock: Clock, *lengths_s: float) -> None:
    for length_s in lengths_s:
        rounds.begin()
        clock.now_s += length_s
        rounds.end()


@pytest.mark.parametrize(("waited_s", "is_overrun"), [(0.0, False), (0.039, False), (0.041, True)])
def test_a_burst_may_make_a_round_so_long(rounds, clock, waited_s, is_overrun):
    play(rounds, clock, 0.001)
    rounds.begin()

    clock.now_s += waited_s

    assert rounds.is_overrun is is_overrun


@pytest.mark.parametrize(("worked_s", "is_overrun"), [(0.0, False), (0.004, False), (0.006, True)])
def test_nobody_is_refused_because_the_process_had_no_processor(clock, worked_s, is_overrun):
    cpu_clock = Clock()
    rounds = Rounds(LONGEST_S, STANDING_S, clock, cpu_clock)
    rounds.begin()

    clock.now_s += 10 * LONGEST_S
    cpu_clock.now_s += worked_s

    assert rounds.is_overrun is is_overrun


@pytest.mark.parametrize(("waited_s", "is_strained"), [(0.0, False), (0.009, False), (0.011, True)])
def test_when_long_rounds_do_not_end_what_is_handled_late_is_strained(rounds, clock, waited_s, is_strained):
    play(rounds, clock, *[0.015] * 8)
    rounds.begin()

    clock.now_s += waited_s

    assert rounds.is_strained is is_strained and not rounds.is_overrun


def test_the_first_long_round_may_be_as_long_as_in_a_burst(rounds, clock):
    play(rounds, clock, *[0.015] * 8)
    rounds.begin()

    clock.now_s += 0.03

    assert rounds.is_strained and not rounds.is_overrun


@pytest.mark.parametrize(("waited_s", "is_overrun"), [(0.019, False), (0.021, True)])
def test_when_long_rounds_do_not_end_half_of_the_time_is_too_late(rounds, clock, waited_s, is_overrun):
    play(rounds, clock, *[0.03] * 4)
    rounds.begin()

    clock.now_s += waited_s

    assert rounds.is_overrun is is_overrun


def test_one_short_round_and_it_was_a_burst(rounds, clock):
    play(rounds, clock, *[0.015] * 10, 0.001)
    rounds.begin()

    clock.now_s += 0.03

    assert not rounds.is_strained


def test_time_in_which_nothing_is_ready_is_no_round(rounds, clock):
    play(rounds, clock, 0.001)
    clock.now_s += 100 * BURST_S
    play(rounds, clock, 0.001)
    rounds.begin()

    clock.now_s += 0.03

    assert not rounds.is_strained


@pytest.mark.parametrize(
    ("length_s", "since_s", "is_strained"), [(0.03, 0.9, True), (0.03, 1.1, False), (0.015, 0.9, False)]
)
def test_once_it_was_overrun_it_stays_strained_for_a_while(rounds, clock, length_s, since_s, is_strained):
    play(rounds, clock, *[length_s] * 10)

    clock.now_s += since_s * CALM_S
    play(rounds, clock, 0.001)
    rounds.begin()

    assert rounds.is_strained is is_strained
