"""Counts that all workers share through Redis, and that nobody waits for.

A request counts in the memory of its process at once. Every now and then what has changed is exchanged with Redis in
the background: each process states its own counts and learns those of the others. Own counts are stated as a whole and
not as what came since, so an exchange whose answer was lost does no harm when it is repeated.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import hiredis

from app.adapters.redis_wire import Wire
from app.domain.errors import StoreUnavailable

log = logging.getLogger(__name__)

KEY_PREFIX = "propositions:rate:"
# Of one length of window. Who asks from more addresses than that within a window makes the oldest start anew.
MAX_COUNTS = 100_000
# What one round trip takes; the rest comes with the next ones.
MAX_EXCHANGED = 1_000
_COMMANDS_PER_COUNT = 3
# Redis keeps a window longer than it lasts, for clocks that differ.
_GRACE_S = 5


@dataclass(slots=True)
class _Count:
    """In one window. Only requests write `own` and only exchanges write `others`, so neither locks the other out."""

    own: int = 0
    others: int = 0


@dataclass(slots=True)
class _Window:
    """All counts of the windows of one length that go on now; they begin and end together."""

    number: int
    ends_s: float
    counts: dict[str, _Count] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)


class SharedCounts:
    """Counts by name in fixed windows. Windows of `length_s` begin at multiples of it since the epoch, everywhere.

    Args:
        wire: where the counts of all processes meet.
        now_s: seconds since the epoch.
        max_counts: names per length of window at most.
    """

    def __init__(
        self, wire: Wire, now_s: Callable[[], float] = time.time, max_counts: int = MAX_COUNTS
    ) -> None:
        self._wire = wire
        self._now_s = now_s
        self._max_counts = max_counts
        self._process = uuid.uuid4().hex.encode()
        self._windows: dict[int, _Window] = {}
        self._is_alone = False

    def add(self, name: str, length_s: int, amount: int = 1) -> int:
        """Counts, and returns the count of all processes as far as it is known here."""
        window = self._windows.get(length_s)
        if window is None or not window.ends_s - length_s <= self._now_s() < window.ends_s:
            window = self._begin(length_s)
        count = window.counts.get(name)
        if count is None:
            if len(window.counts) >= self._max_counts:
                oldest = next(iter(window.counts))
                del window.counts[oldest]
                window.changed.pop(oldest, None)
            count = window.counts[name] = _Count()
        count.own += amount
        window.changed[name] = None
        return count.own + count.others

    def get(self, name: str) -> int:
        """The count in the window that goes on now."""
        for window in self._windows.values():
            if name in window.counts and self._now_s() < window.ends_s:
                count = window.counts[name]
                return count.own + count.others
        return 0

    def ends_s(self, name: str) -> float:
        """When the window of a count ends, in seconds since the epoch; now, if nothing is counted."""
        now_s = self._now_s()
        ends = (w.ends_s for w in self._windows.values() if name in w.counts and now_s < w.ends_s)
        return next(ends, now_s)

    def clear(self, name: str) -> None:
        """Forgets what was counted here."""
        for window in self._windows.values():
            window.counts.pop(name, None)
            window.changed.pop(name, None)

    def __len__(self) -> int:
        return sum(len(window.counts) for window in self._windows.values())

    def exchange(self) -> None:
        """States what changed here since the last time, and learns what the other processes counted there.

        While Redis does not answer, what is known stays, and each process counts for itself.
        """
        for length_s, window in list(self._windows.items()):
            if window.ends_s <= self._now_s():
                if self._windows.get(length_s) is window:
                    del self._windows[length_s]
            elif window.changed:
                self._exchange(length_s, window)

    def _exchange(self, length_s: int, window: _Window) -> None:
        names = list(window.changed)[:MAX_EXCHANGED]
        for name in names:
            del window.changed[name]
        stated = {name: count.own for name in names if (count := window.counts.get(name)) is not None}
        packed = b"".join(self._commands(length_s, window.number, name, own) for name, own in stated.items())
        try:
            replies = self._wire.ask(packed, _COMMANDS_PER_COUNT * len(stated))
        except StoreUnavailable as error:
            window.changed.update(dict.fromkeys(stated))
            if not self._is_alone:
                log.warning("rate limits count per process until Redis is back: %s", error)
            self._is_alone = True
            return
        self._is_alone = False
        for (name, own), counts in zip(stated.items(), replies[2::_COMMANDS_PER_COUNT], strict=True):
            if (count := window.counts.get(name)) is not None:
                # Counts only grow within a window: if these do not, Redis has lost some.
                count.others = max(count.others, sum(map(int, counts)) - own)

    def _commands(self, length_s: int, number: int, name: str, own: int) -> bytes:
        key = f"{KEY_PREFIX}{length_s}:{number}:{name}".encode()
        return b"".join(
            hiredis.pack_command(command)
            for command in (
                (b"HSET", key, self._process, b"%d" % own),
                (b"EXPIRE", key, b"%d" % (length_s + _GRACE_S)),
                (b"HVALS", key),
            )
        )

    def _begin(self, length_s: int) -> _Window:
        number = int(self._now_s() // length_s)
        window = self._windows[length_s] = _Window(number, float((number + 1) * length_s))
        return window
