"""Decisions on their way to the log, with the features that they were made with."""

import threading

import numpy as np
import pytest

from app.domain.errors import StoreUnavailable
from app.domain.types import DegradationLevel, Slate, SlateFeatures, Strategy
from app.serving.decisions import DecisionQueue
from tests.builders import NOON, request

FEATURES = SlateFeatures(("a",), np.zeros((0, 1), np.float32), 0.0)


class FakeDecisionLog:
    def __init__(self):
        self.stored, self.is_down, self.while_storing = [], False, None

    def append(self, decisions):
        if self.is_down:
            raise StoreUnavailable("down")
        self.stored += [slate for _, slate in decisions]
        if self.while_storing is not None:
            arrived, self.while_storing = self.while_storing, None
            arrived()


@pytest.fixture
def log():
    return FakeDecisionLog()


@pytest.fixture
def queue(log):
    return DecisionQueue(log, size=10, on_drop=lambda count: None)


def slate(features=None, is_cached: bool = False) -> Slate:
    return Slate("r1", NOON, (), Strategy.MODEL, "m1", DegradationLevel.FULL, {}, 0, is_cached, features)


def test_features_are_computed_when_decisions_are_flushed(log, queue):
    computed = []

    def compute():
        computed.append(1)
        return FEATURES

    queue.put(request(), slate(compute))
    assert computed == []
    queue.flush()

    assert [stored.features for stored in log.stored] == [FEATURES]


def test_features_are_computed_once_also_while_nothing_can_be_stored(log, queue):
    computed = []

    def compute():
        computed.append(1)
        return FEATURES

    log.is_down = True
    queue.put(request(), slate(compute))
    queue.flush()
    queue.flush()
    assert computed == [1]
    log.is_down = False
    queue.put(request(), slate(compute))
    queue.flush()

    assert computed == [1, 1]
    assert [stored.features for stored in log.stored] == [FEATURES, FEATURES]


def test_a_decision_that_comes_while_others_are_stored_has_its_features_too(log, queue):
    log.while_storing = lambda: queue.put(request(), slate(lambda: FEATURES))
    queue.put(request(), slate(lambda: FEATURES))

    queue.flush()

    assert [stored.features for stored in log.stored] == [FEATURES, FEATURES]


def test_features_that_cannot_be_computed_do_not_cost_the_decision(log, queue):
    queue.put(request(), slate(lambda: 1 / 0))
    queue.flush()

    assert [stored.features for stored in log.stored] == [None]


def test_a_slate_that_was_ranked_for_another_request_has_no_features(log, queue):
    queue.put(request(), slate(lambda: FEATURES, is_cached=True))
    queue.flush()

    assert [stored.features for stored in log.stored] == [None]


def test_two_flushes_at_once_store_each_decision_once(log, queue):
    is_done = threading.Event()

    def flush_too() -> None:
        queue.flush()
        is_done.set()

    def while_storing() -> None:
        threading.Thread(target=flush_too).start()
        is_done.wait(0.1)  # it ends within that time only if it does not wait for the first one

    log.while_storing = while_storing
    queue.put(request(), slate())
    queue.flush()

    assert is_done.wait(30)
    assert (len(log.stored), len(queue)) == (1, 0)
