"""A real spool on disk, drained into an event log in memory."""

from collections.abc import Sequence

import pytest

from app.adapters.spool import SpoolFolder
from app.adapters.spool_format import encode_record
from app.domain.errors import StoreUnavailable
from app.domain.ports import Receipt
from app.domain.types import Event, StoredIn
from app.events.drain import SpoolDrain
from tests.builders import event


class MemoryLog:
    """Takes `room` events until it is down; ids that begin with `bad` are more than it can take."""

    def __init__(self, room: int = 1_000) -> None:
        self.ids: list[str] = []
        self.room = room

    def append(self, events: Sequence[Event]) -> Receipt:
        if len(self.ids) + len(events) > self.room:
            raise StoreUnavailable("down")
        if any(event.event_id.startswith("bad") for event in events):
            raise ValueError("a bug")
        new = tuple(event.event_id for event in events if event.event_id not in self.ids)
        self.ids += new
        return Receipt(new, tuple({e.event_id for e in events} - set(new)), StoredIn.POSTGRES)


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


def test_while_another_process_drains_this_one_does_not(tmp_path, spool):
    spool.append([event("e1")])
    with SpoolFolder(tmp_path, 1 << 30).exclusive():
        assert SpoolDrain(spool, MemoryLog(), 10).run() == 0

    assert SpoolDrain(spool, MemoryLog(), 10).run() == 1
