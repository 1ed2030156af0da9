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
