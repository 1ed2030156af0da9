"""Many callers, one log. The log here is a list whose appends the test lets go one by one."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.domain.errors import StoreUnavailable
from app.domain.ports import Receipt
from app.domain.types import Event, StoredIn
from app.events.commit import GroupCommit
from tests.builders import event

LONG_S = 30.0


class HeldLog:
    """An event log in memory. Each append waits until it is let go; ids that begin with `bad` are a bug."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.began = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.outage: StoreUnavailable | None = None

    def append(self, events: Sequence[Event]) -> Receipt:
        ids = [event.event_id for event in events]
        self.began.release()
        assert self.go.acquire(timeout=LONG_S)
        if self.outage is not None:
            raise self.outage
        if any(event_id.startswith("bad") for event_id in ids):
            raise ValueError("a bug")
        known = {event_id for group in self.groups for event_id in group}
        self.groups.append(ids)
        new = tuple(dict.fromkeys(event_id for event_id in ids if event_id not in known))
        return Receipt(new, tuple(known & set(ids)), StoredIn.POSTGRES)


@pytest.fixture
def log():
    return HeldLog()


@pytest.fixture
def callers():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def wait_until_queued(commit: GroupCommit, count: int) -> None:
    while len(commit._waiting) < count:
        pass


def together(commit, log, callers, *id_lists):
    """Futures of callers whose events went into one group, behind one that is alone in its own."""
    first = callers.submit(commit.append, [event("first")])
    assert log.began.acquire(timeout=LONG_S)
    futures = []
    for number, ids in enumerate(id_lists, start=1):
        futures.append(callers.submit(commit.append, [event(i) for i in ids]))
        wait_until_queued(commit, number)
    log.go.release(100)
    assert first.result(LONG_S).recorded_ids == ("first",)
    return futures


def test_callers_that_wait_for_the_same_commit_share_the_next(log, callers):
    commit = GroupCommit(log, LONG_S, 100)

    futures = together(commit, log, callers, ["a"], ["b", "c"], ["d"])

    assert [future.result(LONG_S).recorded_ids for future in futures] == [("a",), ("b", "c"), ("d",)]
    assert log.groups == [["first"], ["a", "b", "c", "d"]]


def test_of_callers_with_the_same_id_it_is_new_to_the_first(log, callers):
    commit = GroupCommit(log, LONG_S, 100)

    futures = together(commit, log, callers, ["a", "a"], ["first", "a", "b"])

    receipts = [future.result(LONG_S) for future in futures]
    assert [(r.recorded_ids, r.duplicate_ids) for r in receipts] == [
        (("a",), ("a",)),
        (("b",), ("first", "a")),
    ]


def test_a_group_is_bounded_but_takes_a_large_caller_whole(log, callers):
    commit = GroupCommit(log, LONG_S, 2)

    futures = together(commit, log, callers, ["a"], ["b", "c", "d"], ["e"])

    assert [len(future.result(LONG_S).recorded_ids) for future in futures] == [1, 3, 1]
    assert log.groups == [["first"], ["a", "b", "c", "d"], ["e"]]


def test_events_that_the_log_cannot_take_fail_their_own_caller_only(log, callers):
    commit = GroupCommit(log, LONG_S, 100)

    good, bad, other = together(commit, log, callers, ["a"], ["bad"], ["b"])

    assert (good.result(LONG_S).recorded_ids, other.result(LONG_S).recorded_ids) == (("a",), ("b",))
    with pytest.raises(ValueError, match="a bug"):
        bad.result(LONG_S)


def test_an_outage_is_told_to_every_caller_of_its_group_and_the_next_group_is_tried(log, callers):
    commit = GroupCommit(log, LONG_S, 100)
    log.outage = StoreUnavailable("down")
    log.go.release()
    with pytest.raises(StoreUnavailable, match="down"):
        commit.append([event("a")])
    log.outage = None
    log.go.release()

    assert commit.append([event("b")]).recorded_ids == ("b",)


def test_a_caller_that_gave_up_is_dropped_and_nobody_joins_a_queue_that_is_stuck(log, callers):
    commit = GroupCommit(log, 0.5, 100)
    first = callers.submit(commit.append, [event("a")])
    assert log.began.acquire(timeout=LONG_S)
    second = callers.submit(commit.append, [event("b")])
    wait_until_queued(commit, 1)

    for given_up in (first, second):
        with pytest.raises(StoreUnavailable, match="too long"):
            given_up.result(LONG_S)
    with pytest.raises(StoreUnavailable, match="too long"):
        commit.append([event("c")])
    assert len(commit._waiting) == 1

    log.go.release(100)
    while commit._appending_since_s is not None:
        pass
    assert commit.append([event("d")]).recorded_ids == ("d",)
    assert log.groups == [["a"], ["d"]]


def test_new_events_are_told_of_before_their_callers_are_answered(log, callers):
    told = []
    commit = GroupCommit(log, LONG_S, 100, lambda events: told.append([e.event_id for e in events]))

    futures = together(commit, log, callers, ["a"], ["first", "b"])

    for future in futures:
        future.result(LONG_S)
    assert told == [["first"], ["a", "b"]]


def test_what_goes_wrong_after_the_commit_does_not_take_the_receipt_back(log):
    def fail(events):
        raise ValueError("a bug")

    log.go.release()

    assert GroupCommit(log, LONG_S, 100, fail).append([event("a")]).recorded_ids == ("a",)
