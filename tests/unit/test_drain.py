"""A real spool on disk, drained into an event log in memory."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.adapters.spool import SpoolFolder
from app.adapters.spool_format import encode_record
from app.domain.errors import StoreUnavailable
from app.domain.ports import Receipt
from app.domain.types import Event, StoredIn
from app.events.drain import SpoolDrain
from tests.builders import event


class MemoryLog:
    """Takes `room` events until it is down; ids that begin with `bad` are more than it can take.

    It drops those that begin with `old`.
    """

    def __init__(self, room: int = 1_000) -> None:
        self.ids: list[str] = []
        self.room = room

    def append(self, events: Sequence[Event]) -> Receipt:
        if len(self.ids) + len(events) > self.room:
            raise StoreUnavailable("down")
        if any(event.event_id.startswith("bad") for event in events):
            raise ValueError("a bug")
        sent = dict.fromkeys(event.event_id for event in events)
        dropped = tuple(event_id for event_id in sent if event_id.startswith("old"))
        new = tuple(event_id for event_id in sent if event_id not in (*self.ids, *dropped))
        self.ids += new
        return Receipt(new, tuple({*sent} - {*new, *dropped}), StoredIn.POSTGRES, dropped)


@pytest.fixture
def spool(tmp_path):
    return SpoolFolder(tmp_path, 1 << 30)


def test_what_is_spooled_gets_to_the_log_in_order_and_leaves_the_spool(spool):
    spool.append([event(f"e{n}") for n in range(5)])
    spool.append([event("e5")])
    log = MemoryLog()

    assert SpoolDrain(spool, log, batch_events=2).run() == 6

    assert log.ids == [f"e{n}" for n in range(6)]
    assert spool.is_empty()


def test_while_the_log_is_down_everything_stays_and_later_counts_once(spool):
    spool.append([event(f"e{n}") for n in range(5)])
    log = MemoryLog(room=3)
    drain = SpoolDrain(spool, log, batch_events=2)

    assert drain.run() == 0 and not spool.is_empty()
    log.room = 1_000
    assert drain.run() == 5

    assert log.ids == [f"e{n}" for n in range(5)] and spool.is_empty()


def test_an_event_that_the_log_cannot_take_is_kept_aside_and_holds_up_no_other(tmp_path, spool):
    spool.append([event("e1"), event("bad"), event("e2")])
    log = MemoryLog()

    assert SpoolDrain(spool, log, batch_events=10).run() == 2

    assert log.ids == ["e1", "e2"] and spool.is_empty()
    (aside,) = (tmp_path / "aside").iterdir()
    assert aside.read_bytes() == encode_record(event("bad"))


def test_new_events_are_told_of_and_known_ones_are_not(spool):
    told = []
    log = MemoryLog()
    log.ids.append("e1")
    spool.append([event("e1"), event("e2")])

    SpoolDrain(spool, log, 10, lambda events: told.extend(e.event_id for e in events)).run()

    assert told == ["e2"]


def test_events_that_the_log_drops_are_counted_in_the_log_and_kept_nowhere(tmp_path, spool, caplog):
    spool.append([event("e1"), event("old1"), event("old2"), event("bad")])
    spool.append([event("old1")])
    log = MemoryLog()

    assert SpoolDrain(spool, log, batch_events=10).run() == 1

    assert log.ids == ["e1"] and spool.is_empty()
    (aside,) = (tmp_path / "aside").iterdir()
    assert aside.read_bytes() == encode_record(event("bad"))
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.getMessage().startswith("3 spooled events were dropped")
    assert "old1" not in caplog.text


def test_an_event_is_not_to_blame_for_who_is_told_of_it(tmp_path, spool):
    def fail(_events):
        raise ValueError("a bug")

    spool.append([event("e1")])
    log = MemoryLog()

    with pytest.raises(ValueError, match="a bug"):
        SpoolDrain(spool, log, 10, on_recorded=fail).run()

    assert log.ids == ["e1"] and not (tmp_path / "aside").exists()
    assert SpoolDrain(spool, log, 10).run() == 1


def test_who_waits_for_the_spool_gets_a_turn_between_two_segments(tmp_path, spool, monkeypatch):
    monkeypatch.setattr("app.adapters.spool.SEGMENT_BYTES", 1)
    monkeypatch.setattr("app.events.drain.TURN_S", 0.2)
    spool.append([event("e1")])
    spool.append([event("e2", user_id="ann")])
    log, is_busy = MemoryLog(), threading.Event()

    def forget() -> int:
        while (removed := SpoolFolder(tmp_path, 1 << 30).forget_user("ann")) is None:
            is_busy.set()
            time.sleep(0.01)
        return removed

    with ThreadPoolExecutor(1) as pool:
        forgetting = []

        def begin_to_forget(_events):
            forgetting.append(pool.submit(forget))
            assert is_busy.wait(10)

        SpoolDrain(spool, log, 10, begin_to_forget).run()

    assert [waiting.result() for waiting in forgetting] == [1]
    assert log.ids == ["e1"]


def test_while_another_process_drains_this_one_does_not(tmp_path, spool):
    spool.append([event("e1")])
    with SpoolFolder(tmp_path, 1 << 30).exclusive():
        assert SpoolDrain(spool, MemoryLog(), 10).run() == 0

    assert SpoolDrain(spool, MemoryLog(), 10).run() == 1
