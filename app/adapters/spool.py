"""The spool: events on local disk while the primary event log is down, shared by all workers of a machine.

Segments are files with ascending numbers; only the last one grows. Whoever changes anything holds a lock,
and what a writer that was killed left unfinished is cut off by the next one.
"""

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from pathlib import Path

import orjson

from app.adapters.spool_format import HEADER, Scan, decode_event, encode_record, scan_records
from app.domain.errors import StoreUnavailable
from app.domain.ports import Receipt
from app.domain.types import Event, StoredIn

# Read as a whole when it is drained or checked.
SEGMENT_BYTES = 8_388_608


class Loss(StrEnum):
    """Why bytes of the spool are no events."""

    TORN = "torn"  # the end of a write that was never acknowledged: cut off
    DAMAGED = "damaged"  # changed on disk: kept aside
    REFUSED = "refused"  # events that the event log cannot take: kept aside


@dataclass(frozen=True, slots=True)
class SpoolDepth:
    bytes: int
    events: int


@dataclass(frozen=True, slots=True)
class SpooledSegment:
    """A segment that nothing is added to any more; `unreadable` are its bytes that are no events."""

    path: Path
    events: Sequence[Event]
    unreadable: Sequence[bytes]


class SpoolFolder:
    """Implements `EventLog`: events are fsynced when `append` returns. Every call waits for the disk.

    Args:
        folder: of this machine's own disk, made when it is needed. `aside/` holds what was no event.
        max_bytes: bound of everything in the folder together.
        on_loss: is told the kind and the number of bytes.
    """

    def __init__(
        self, folder: Path, max_bytes: int, on_loss: Callable[[Loss, int], None] = lambda kind, count: None
    ) -> None:
        self._folder = folder
        self._aside = folder / "aside"
        self._max_bytes = max_bytes
        self._on_loss = on_loss
        # How much of the last segment is known to be whole, and how many records that are.
        self._checked = _Checked(None, 0, 0)
        self._counted: dict[str, _Checked] = {}

    def append(self, events: Sequence[Event]) -> Receipt:
        """Makes all events durable, or none. Only ids that repeat within the call are told as duplicates.

        Raises:
            StoreUnavailable: the spool or the disk is full, or the disk fails.
        """
        first_by_id = {event.event_id: event for event in reversed(events)}
        recorded = dict.fromkeys(event.event_id for event in events)
        data = b"".join(encode_record(first_by_id[event_id]) for event_id in recorded)
        if data:
            try:
                with self._locked():
                    self._write(data)
            except OSError as error:
                raise StoreUnavailable(f"the spool cannot be written: {error}") from error
        return Receipt(tuple(recorded), _repeated(events), StoredIn.SPOOL)

    def is_empty(self) -> bool:
        return not any(map(_size, self._segments()))

    def depth(self) -> SpoolDepth:
        """What waits to be drained. Costs as much as was added since the last call."""
        known, self._counted = self._counted, {}
        for path in self._segments():
            with suppress(FileNotFoundError):  # drained meanwhile
                self._counted[path.name] = _check(path, known.get(path.name))[0]
        return SpoolDepth(
            sum(checked.end for checked in self._counted.values()),
            sum(checked.count for checked in self._counted.values()),
        )

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Whether the spool's events are this process's to move while the block runs. Never waits."""
        with self._lock_file("drain.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def oldest(self) -> SpooledSegment | None:
        """The first segment with anything in it, closed to writers; None if there is none.

        Only in an `exclusive` block.

        Raises:
            StoreUnavailable: the disk fails.
        """
        try:
            path = self._close_oldest()
            return None if path is None else _read_segment(path)
        except OSError as error:
            raise StoreUnavailable(f"the spool cannot be read: {error}") from error

    def remove(self, segment: SpooledSegment, refused: Sequence[Event]) -> None:
        """Deletes a segment whose events are elsewhere; what is no event, or refused, is kept aside.

        Only in an `exclusive` block.

        Raises:
            StoreUnavailable: the disk fails; the segment may still be there.
        """
        try:
            self._keep_aside(segment.path.name, Loss.DAMAGED, b"".join(segment.unreadable))
            self._keep_aside(segment.path.name, Loss.REFUSED, b"".join(map(encode_record, refused)))
            segment.path.unlink()
            _sync_folder(self._folder)
        except OSError as error:
            raise StoreUnavailable(f"the spool cannot be changed: {error}") from error

    def forget_user(self, user_id: str) -> int | None:
        """Removes a person's events, also from what was kept aside; returns how many there were.

        None while others move events, such as a drain: try again. It is not waited for, because the thread that
        waits here may be the one that the drain needs to go on.

        Raises:
            StoreUnavailable: the disk fails; some of them may still be there.
        """
        try:
            with self.exclusive() as is_mine:
                if not is_mine:
                    return None
                with self._locked():
                    return self._remove_user(user_id)
        except OSError as error:
            raise StoreUnavailable(f"the spool cannot be changed: {error}") from error

    def _remove_user(self, user_id: str) -> int:
        for draft in self._folder.rglob(".*"):  # of a process that was killed here
            draft.unlink()
        # Writers know how much of the last segment is whole: it must not change under them.
        self._start_segment()
        return sum(_without_user(path, user_id) for path in (*self._segments(), *self._aside.glob("*")))

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob("*.segment"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock_file("write.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _lock_file(self, name: str) -> Iterator[int]:
        """A descriptor of its own, so that threads exclude each other as processes do."""
        _make_folder(self._folder)
        lock = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield lock
        finally:
            os.close(lock)

    def _write(self, data: bytes) -> None:
        used = sum(map(_size, self._folder.rglob("*")))
        if used + len(data) > self._max_bytes:
            raise StoreUnavailable(f"the spool is full: it holds {used} bytes; raise SPOOL_MAX_BYTES")
        path = self._last_segment()
        if path.stat().st_size + len(data) > SEGMENT_BYTES:
            path = self._start_segment()
        _append_durably(path, data)
        self._checked = _check(path, self._checked)[0]

    def _last_segment(self) -> Path:
        """The segment that grows, ending with a whole record."""
        segments = self._segments()
        if not segments:
            return self._start_segment()
        self._cut_torn_end(segments[-1])
        return segments[-1]

    def _start_segment(self) -> Path:
        """An empty last segment. The one before is left with a whole record at its end."""
        segments = self._segments()
        if segments:
            self._cut_torn_end(segments[-1])
        number = int(segments[-1].stem) + 1 if segments else 1
        path = self._folder / f"{number:012}.segment"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _sync_folder(self._folder)
        return path

    def _cut_torn_end(self, path: Path) -> None:
        self._checked, torn = _check(path, self._checked)
        if torn:
            os.truncate(path, self._checked.end)
            self._on_loss(Loss.TORN, torn)

    def _close_oldest(self) -> Path | None:
        with self._locked():
            segments = self._segments()
            for path in segments[:-1]:
                if path.stat().st_size:
                    return path
                path.unlink()
            if not segments:
                return None
            self._cut_torn_end(segments[-1])
            if segments[-1].stat().st_size == 0:
                return None
            self._start_segment()
            return segments[-1]

    def _keep_aside(self, segment: str, kind: Loss, data: bytes) -> None:
        if data:
            _make_folder(self._aside)
            # The same name, should a process be killed before the segment is deleted.
            _replace_durably(self._aside / f"{segment}.{kind}", data)
            self._on_loss(kind, len(data))


@dataclass(frozen=True, slots=True)
class _Checked:
    """The first `end` bytes of a file, by its name, that hold `count` whole records."""

    name: str | None
    end: int
    count: int


def _check(path: Path, known: _Checked | None) -> tuple[_Checked, int]:
    """Goes on from what is known of the file; also tells how many bytes follow its last whole record."""
    size = path.stat().st_size
    if known is None or known.name != path.name or known.end > size:
        known = _Checked(path.name, 0, 0)
    if known.end == size:
        return known, 0
    with path.open("rb") as file:
        file.seek(known.end)
        scan = scan_records(file.read(size - known.end))
    checked = _Checked(path.name, known.end + scan.end, known.count + len(scan.records))
    return checked, size - checked.end


def _size(path: Path) -> int:
    """In bytes; 0 for a folder, and for what another process has deleted meanwhile."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _read_segment(path: Path) -> SpooledSegment:
    data = path.read_bytes()
    scan = scan_records(data)
    events: list[Event] = []
    unreadable = [data[start:end] for start, end in (*scan.damaged, (scan.end, len(data))) if end > start]
    for start, payload in scan.records:
        try:
            events.append(decode_event(payload))
        except ValueError:
            unreadable.append(data[start : start + HEADER.size + len(payload)])
    return SpooledSegment(path, events, unreadable)


def _append_durably(path: Path, data: bytes) -> None:
    """Appends all of it, or none.

    Raises:
        OSError: it was cut back; should that fail too, the next writer does it.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        end = os.fstat(file).st_size
        try:
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[os.write(file, remaining) :]
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, end)
            raise
    finally:
        os.close(file)


def _without_user(path: Path, user_id: str) -> int:
    """Rewrites a file without a user's events; damaged stretches go as well if the id stands in them."""
    data = path.read_bytes()
    scan: Scan = scan_records(data)
    written_id = orjson.dumps(user_id)
    unwanted = [
        (start, start + HEADER.size + len(payload))
        for start, payload in scan.records
        if _is_of_user(payload, user_id, written_id)
    ]
    count = len(unwanted)
    unwanted += [
        (start, end) for start, end in (*scan.damaged, (scan.end, len(data))) if written_id in data[start:end]
    ]
    if unwanted:
        _replace_durably(path, _without(data, sorted(unwanted)))
    return count


def _is_of_user(payload: bytes, user_id: str, written_id: bytes) -> bool:
    if written_id not in payload:
        return False
    try:
        return decode_event(payload).user_id == user_id
    except ValueError:
        return True


def _without(data: bytes, stretches: Sequence[tuple[int, int]]) -> bytes:
    kept, at = [], 0
    for start, end in stretches:
        kept.append(data[at:start])
        at = end
    return b"".join((*kept, data[at:]))


def _replace_durably(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with draft.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Makes it and those above it if need be. A new folder is only as durable as its entry in the one above."""
    new = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in new:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _repeated(events: Sequence[Event]) -> tuple[str, ...]:
    """Ids that come more than once, each once, in order."""
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for event in events:
        if event.event_id in seen:
            repeated[event.event_id] = None
        seen.add(event.event_id)
    return tuple(repeated)
