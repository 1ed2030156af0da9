"""Requests wait for their turn, but not for long."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.domain.budget import TimeBudget
from app.serving.turns import TakingTurns
from tests.builders import NOON, request

LONG_S = 60.0


class Gate:
    """A ranker in which requests stay until they are let out."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.out = threading.Event()

    def rank(self, request, request_id, now, budget):
        self.entered.release()
        assert self.out.wait(LONG_S)
        return request_id


class Broken:
    def rank(self, request, request_id, now, budget):
        raise ValueError("broken")


def rank(turns: TakingTurns, request_id: str, budget_s: float = LONG_S) -> str:
    return turns.rank(request(), request_id, NOON, TimeBudget(budget_s))


def test_no_more_are_ranked_at_a_time_than_there_are_turns():
    gate = Gate()
    turns = TakingTurns(gate, threading.BoundedSemaphore(2))
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(rank, turns, name) for name in "abc"]
        for _ in range(2):
            assert gate.entered.acquire(timeout=LONG_S)

        assert not gate.entered.acquire(timeout=0.05)
        gate.out.set()

        assert sorted(answer.result(LONG_S) for answer in answers) == ["a", "b", "c"]


def test_who_has_waited_for_a_part_of_its_time_goes_ahead_without_a_turn():
    gate = Gate()
    turns = TakingTurns(gate, threading.BoundedSemaphore(1))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rank, turns, "first")
        assert gate.entered.acquire(timeout=LONG_S)

        second = pool.submit(rank, turns, "second", budget_s=0.01)
        assert gate.entered.acquire(timeout=LONG_S)
        gate.out.set()

        assert {first.result(LONG_S), second.result(LONG_S)} == {"first", "second"}
    assert rank(turns, "third") == "third"  # and gave back no turn that it did not have


def test_a_turn_is_given_back_when_a_ranker_fails():
    semaphore = threading.BoundedSemaphore(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            rank(TakingTurns(Broken(), semaphore), "r")

    assert semaphore.acquire(blocking=False)


def test_the_time_of_waiting_is_told():
    budget = TimeBudget(LONG_S)
    gate = Gate()
    gate.out.set()

    TakingTurns(gate, threading.BoundedSemaphore(1)).rank(request(), "r", NOON, budget)

    assert list(budget.stages_s) == ["turn"]


class Processor:
    """A clock of computed seconds, and a ranker that computes for so long."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s, self.computed_s = cost_s, 0.0

    def __call__(self) -> float:
        return self.computed_s

    def rank(self, request, request_id, now, budget):
        self.computed_s += self.cost_s
        return request_id


def busy(
    cost_s: float, longest_queue_s: float, ranked: int = 200, clock=lambda: 0.0
) -> tuple[TakingTurns, Processor]:
    """Turns that have seen many requests one after the other, with others waiting all the time."""
    processor = Processor(cost_s)
    turns = TakingTurns(
        processor, threading.BoundedSemaphore(1), longest_queue_s, longest_queue_s / 8, 2, processor, clock
    )
    turns._waiting = 1
    for _ in range(ranked):
        rank(turns, "r")
    turns._waiting = 0
    return turns, processor


@pytest.mark.parametrize(("waiting", "is_overrun"), [(0, False), (10, False), (11, True)])
def test_it_is_overrun_when_those_who_wait_need_too_much_of_the_processor(waiting, is_overrun):
    turns, _ = busy(cost_s=0.002, longest_queue_s=0.0205)
    turns._waiting = waiting

    assert turns.is_overrun is is_overrun


def test_a_few_may_always_wait():
    turns, _ = busy(cost_s=1.0, longest_queue_s=0.02)

    turns._waiting = 2
    assert not turns.is_overrun
    turns._waiting = 3
    assert turns.is_overrun


def test_what_is_computed_between_requests_that_nobody_waits_for_is_no_cost_of_theirs():
    turns, processor = busy(cost_s=0.002, longest_queue_s=0.0205)
    rank(turns, "the last who waited")
    for _ in range(200):
        processor.computed_s += 5.0  # an idle hour has its background work, too
        rank(turns, "r")

    turns._waiting = 10
    assert not turns.is_overrun


def test_stores_that_hang_make_nobody_overrun():
    turns, _ = busy(cost_s=0.0, longest_queue_s=0.02)

    turns._waiting = 1_000
    assert not turns.is_overrun


def test_a_queue_that_stands_strains_and_a_burst_does_not():
    now = [0.0]
    turns, _ = busy(cost_s=0.002, longest_queue_s=0.0405, clock=lambda: now[0])
    rank(turns, "empty")
    turns._waiting = 20

    assert not turns.is_strained and not turns.is_overrun
    now[0] = 0.2
    assert turns.is_strained and not turns.is_overrun
    turns._waiting = 2
    assert not turns.is_strained
    turns._waiting = 0
    rank(turns, "empty again")
    turns._waiting = 20
    assert not turns.is_strained


def test_a_burst_after_a_quiet_time_is_a_burst():
    now, gate = [0.0], Gate()
    turns = TakingTurns(gate, threading.BoundedSemaphore(1), 60.0, 0.0, 0, lambda: now[0], lambda: now[0])
    turns._cost_s = 1.0
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rank, turns, "first")
        assert gate.entered.acquire(timeout=LONG_S)
        now[0] = 1_000.0
        second = pool.submit(rank, turns, "second")
        while not turns._waiting:
            assert not second.done()

        assert not turns.is_strained
        gate.out.set()

        assert {first.result(LONG_S), second.result(LONG_S)} == {"first", "second"}
