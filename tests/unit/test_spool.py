"""The spool on a real disk: what it holds after torn writes, damage, full disks and removals."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.spool import Loss, SpoolFolder
from app.adapters.spool_format import MARKER, decode_event, encode_record, scan_records
from app.domain.errors import StoreUnavailable
from app.domain.types import Event, EventType, StoredIn
from tests.builders import event

MANY_BYTES = 1 << 30
TEXT = st.text(min_size=1, max_size=20).filter(str.isprintable)
EVENTS = st.builds(
    Event,
    event_id=TEXT,
    event_type=st.sampled_from(EventType),
    proposition_id=TEXT,
    occurred_at=st.datetimes(datetime(1900, 1, 1), datetime(8999, 1, 1), timezones=st.just(UTC)),
    user_id=st.none() | TEXT,
    context=st.dictionaries(TEXT, TEXT, max_size=3),
    request_id=st.none() | TEXT,
    position=st.none() | st.integers(1, 10_000),
    value=st.none() | st.floats(-1e12, 1e12),
)


@pytest.fixture
def losses() -> list[tuple[Loss, int]]:
    return []


@pytest.fixture
def spool(tmp_path, losses) -> SpoolFolder:
    return SpoolFolder(tmp_path, MANY_BYTES, lambda kind, count: losses.append((kind, count)))


def drained(spool: SpoolFolder, refused=()) -> list[str]:
    """The ids of all events, oldest first; the spool is empty afterwards."""
    ids = []
    with spool.exclusive() as is_mine:
        assert is_mine
        while (segment := spool.oldest()) is not None:
            ids += [event.event_id for event in segment.events]
            spool.remove(segment, refused)
    return ids


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.segment"))


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=4))
def test_events_come_back_as_they_were(events):
    scan = scan_records(b"".join(map(encode_record, events)))

    assert [decode_event(payload) for _, payload in scan.records] == events
    assert scan.damaged == []


NOISE = st.binary(max_size=40) | st.sampled_from([MARKER, MARKER + bytes(8), MARKER + b"\xff" * 8])


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=3), NOISE, st.lists(EVENTS, max_size=3), NOISE)
def test_whatever_bytes_lie_around_them_whole_records_are_found(before, noise, after, tail):
    first = b"".join(map(encode_record, before))
    data = first + noise + b"".join(map(encode_record, after)) + tail

    scan = scan_records(data)

    assert [decode_event(payload) for _, payload in scan.records] == before + after
    assert scan.end >= len(first)


@settings(deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=3), st.data())
def test_of_a_write_that_was_cut_off_the_whole_records_are_left(events, data):
    records = [encode_record(event) for event in events]
    cut = data.draw(st.integers(0, sum(map(len, records)) - 1))

    scan = scan_records(b"".join(records)[:cut])

    whole = [payload for _, payload in scan.records]
    assert [decode_event(payload) for payload in whole] == events[: len(whole)]
    assert scan.end == sum(map(len, records[: len(whole)])) <= cut


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_events_and_raise_nothing_but_value_errors(payload):
    assert scan_records(payload).records == []
    with pytest.raises(ValueError, match=r".+"):
        decode_event(payload)


def test_events_are_given_back_in_order_and_only_once(spool):
    first = spool.append([event("e1"), event("e2"), event("e1")])
    spool.append([event("e3")])

    assert (first.recorded_ids, first.duplicate_ids, first.stored_in) == (
        ("e1", "e2"),
        ("e1",),
        StoredIn.SPOOL,
    )
    assert drained(spool) == ["e1", "e2", "e3"]
    assert drained(spool) == [] and spool.is_empty()


def test_events_that_come_while_it_is_drained_are_drained_next(spool):
    spool.append([event("e1")])
    with spool.exclusive():
        segment = spool.oldest()
        spool.append([event("e2")])
        spool.remove(segment, ())

    assert drained(spool) == ["e2"]


def test_a_torn_end_is_cut_off_by_the_next_writer_and_nothing_before_it_is_lost(tmp_path, spool, losses):
    SpoolFolder(tmp_path, MANY_BYTES).append([event("e1")])
    with segments(tmp_path)[-1].open("ab") as file:
        file.write(encode_record(event("torn"))[:-5])

    spool.append([event("e2")])

    assert losses == [(Loss.TORN, len(encode_record(event("torn"))) - 5)]
    assert drained(spool) == ["e1", "e2"]


def test_a_torn_end_is_cut_off_when_it_is_drained(tmp_path, spool, losses):
    spool.append([event("e1")])
    with segments(tmp_path)[-1].open("ab") as file:
        file.write(MARKER)

    assert drained(spool) == ["e1"]
    assert losses == [(Loss.TORN, len(MARKER))]


def test_damage_is_skipped_and_kept_aside(tmp_path, spool, losses):
    spool.append([event("e1"), event("e2"), event("e3")])
    (path,) = segments(tmp_path)
    data, size = bytearray(path.read_bytes()), len(encode_record(event("e1")))
    data[size + 30] ^= 0xFF
    path.write_bytes(data)

    assert drained(spool) == ["e1", "e3"]
    assert losses == [(Loss.DAMAGED, size)]
    assert [file.read_bytes() for file in (tmp_path / "aside").iterdir()] == [data[size : 2 * size]]


def test_events_that_were_refused_are_kept_aside(tmp_path, spool, losses):
    spool.append([event("e1"), event("e2")])

    drained(spool, refused=[event("e2")])

    (file,) = (tmp_path / "aside").iterdir()
    assert file.read_bytes() == encode_record(event("e2"))
    assert losses == [(Loss.REFUSED, len(file.read_bytes()))]


def test_a_full_spool_takes_nothing_until_it_is_drained(tmp_path):
    spool = SpoolFolder(tmp_path, 2 * len(encode_record(event("e1"))))
    spool.append([event("e1"), event("e2")])

    with pytest.raises(StoreUnavailable, match="SPOOL_MAX_BYTES"):
        spool.append([event("e3")])

    assert drained(spool) == ["e1", "e2"]
    assert spool.append([event("e3")]).recorded_ids == ("e3",)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a full disk: a write past `size` bytes of a file is cut short, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_does_not_fit_on_the_disk_leaves_no_trace(tmp_path, spool, losses):
    spool.append([event("e1")])
    size = segments(tmp_path)[0].stat().st_size

    with files_up_to(size + 100), pytest.raises(StoreUnavailable, match="cannot be written"):
        spool.append([event("e2")])

    assert segments(tmp_path)[0].stat().st_size == size
    spool.append([event("e3")])
    assert drained(spool) == ["e1", "e3"] and losses == []


def test_writers_in_many_threads_and_processes_lose_nothing(tmp_path, spool, monkeypatch):
    monkeypatch.setattr("app.adapters.spool.SEGMENT_BYTES", 1_000)  # so that they start segments, too
    program = """
import sys
from pathlib import Path
from app.adapters.spool import SpoolFolder
from tests.builders import event
spool = SpoolFolder(Path(sys.argv[1]), 1 << 30)
for number in range(50):
    spool.append([event(f"process-{number}")])
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: spool.append([event(f"thread-{n}")]), range(400)))
    assert process.wait(60) == 0

    ids = drained(spool)

    assert len(ids) == len(set(ids)) == 450


def test_what_a_killed_writer_acknowledged_is_there(tmp_path, spool):
    program = """
import itertools, sys
from pathlib import Path
from app.adapters.spool import SpoolFolder
from tests.builders import event
spool = SpoolFolder(Path(sys.argv[1]), 1 << 30)
for number in itertools.count():
    spool.append([event(f"{number}-{n}") for n in range(50)])
    print(number, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        acknowledged = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]

    spool.append([event("after")])

    assert {f"{number}-{n}" for number in acknowledged for n in range(50)} <= set(drained(spool))


def test_large_spools_lie_in_several_segments_and_stay_in_order(tmp_path, spool, monkeypatch):
    monkeypatch.setattr("app.adapters.spool.SEGMENT_BYTES", 1_000)

    for number in range(20):
        spool.append([event(f"e{number}")])

    assert len(segments(tmp_path)) > 3
    assert drained(spool) == [f"e{number}" for number in range(20)]


def test_its_depth_counts_what_waits_and_what_others_added(tmp_path, spool):
    spool.append([event("e1")])
    before = spool.depth()
    SpoolFolder(tmp_path, MANY_BYTES).append([event("e2"), event("e3")])

    assert (before.events, spool.depth().events) == (1, 3)
    assert spool.depth().bytes == 3 * len(encode_record(event("e1")))
    drained(spool)
    assert (spool.depth().bytes, spool.depth().events) == (0, 0)


def test_only_one_drains_at_a_time(tmp_path, spool):
    with spool.exclusive() as first, SpoolFolder(tmp_path, MANY_BYTES).exclusive() as second:
        assert (first, second) == (True, False)


def test_a_forgotten_user_is_gone_and_the_others_stay(tmp_path, spool, losses):
    other = SpoolFolder(tmp_path, MANY_BYTES)
    spool.append([event("e1", user_id="ann"), event("e2", user_id="bob"), event("e3", user_id=None)])
    other.append([event("e4", user_id="ann", proposition_id="bob"), event("e5", proposition_id="ann")])
    assert spool.depth().events == 5

    removed = spool.forget_user("ann")

    assert removed == 2 and spool.depth().events == 3
    assert all(b'"user_id":"ann"' not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    other.append([event("e6", user_id="bob")])
    assert drained(spool) == ["e2", "e3", "e5", "e6"] and losses == []


def test_a_forgotten_user_is_gone_from_what_was_kept_aside(tmp_path, spool):
    spool.append([event("e1", user_id="ann"), event("e2", user_id="ann"), event("e3", user_id="bob")])
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    data[5] ^= 0xFF
    path.write_bytes(data)
    drained(spool, refused=[event("e2", user_id="ann"), event("e3", user_id="bob")])

    assert spool.forget_user("ann") == 1

    kept = b"".join(file.read_bytes() for file in (tmp_path / "aside").iterdir())
    assert b"ann" not in kept and b"bob" in kept


def test_while_it_is_drained_nobody_is_forgotten_and_nobody_waits(tmp_path, spool):
    spool.append([event("e1", user_id="ann")])

    with SpoolFolder(tmp_path, MANY_BYTES).exclusive():
        assert spool.forget_user("ann") is None

    assert spool.depth().events == 1
    assert spool.forget_user("ann") == 1


def test_a_new_folder_is_on_disk_as_its_events_are(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file)
    )
    spool = SpoolFolder(tmp_path / "data" / "spool", MANY_BYTES)

    spool.append([event("e1")])
    new, synced[:] = set(synced), []
    spool.append([event("e2")])

    assert {str(tmp_path), str(tmp_path / "data"), str(tmp_path / "data" / "spool")} <= new
    assert synced == [str(*segments(tmp_path / "data" / "spool"))]


def test_a_spool_that_was_never_used_is_empty_and_leaves_no_folder(tmp_path):
    spool = SpoolFolder(tmp_path / "spool", MANY_BYTES)

    assert spool.is_empty() and spool.depth().events == 0
    assert not os.path.exists(tmp_path / "spool")
