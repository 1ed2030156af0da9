"""Shares a listener's connections out among workers: each goes to the worker that has fewest."""

import mmap
import time
from collections.abc import Callable

import gevent
from gevent.select import select
from gevent.server import StreamServer

# Four times as many as there may be workers, for those who come while others leave.
SLOTS = 256
# How often who left a connection to the others looks whether it was taken, and how long it leaves it to them at most.
TURN_S, PATIENCE_S = 0.001, 0.01
# How many it accepts in one round of the event loop while it has fewest.
_AT_ONCE = 100
# As many connections as a worker that is strained seems to have more than it has.
_STRAIN = 2


class ConnectionCounts:
    """How many connections each worker has, in memory that all of them see; to be made before they are forked."""

    def __init__(self) -> None:
        # In the slot of a worker that takes part: one more than it has. Nobody else writes there while it lives.
        self._taken = memoryview(mmap.mmap(-1, 4 * SLOTS)).cast("i")
        self._given_out: set[int] = set()

    def new_share(self, is_strained: Callable[[], bool] = lambda: False) -> "Share":
        """For a worker that begins. To be asked, like `take_back`, by the process that forks them."""
        slot = min(set(range(SLOTS)) - self._given_out)
        self._given_out.add(slot)
        return Share(self._taken, slot, is_strained)

    def take_back(self, share: "Share") -> None:
        """When its worker is gone."""
        share.leave()
        self._given_out.discard(share.slot)


class Share:
    """What one worker has of the connections. Until it joins, and when it has left, all others come first.

    One that is strained and gives a connection away counts as if it had some more: it should not get that back.
    """

    def __init__(self, taken: memoryview, slot: int, is_strained: Callable[[], bool]) -> None:
        self._taken, self.slot = taken, slot
        self._is_strained = is_strained
        self._count = 0

    def join(self) -> None:
        self._taken[self.slot] = 1 + self._count + (_STRAIN if self._is_strained() else 0)

    def leave(self) -> None:
        self._taken[self.slot] = 0

    def add(self, connections: int) -> None:
        self._count += connections
        if self._taken[self.slot]:
            self.join()

    def have_others_fewer(self) -> bool:
        ours = self._taken[self.slot] or float("inf")
        return any(0 < theirs < ours for theirs in self._taken)


class SharingServer(StreamServer):
    """Leaves each connection to those who have fewer, if they come for it.

    When many clients connect at once, as after a deployment, the worker that is awake would take most of them, and with
    them most of the load for as long as they stay. When nobody came in `PATIENCE_S`, because the others hang or all of them are
    busy, it makes up for the time that it waited: else clients would wait while workers look at each other.
    """

    share: Share
    _overdue = 0

    def start(self) -> None:
        self.max_accept = _AT_ONCE  # gunicorn lets a worker that has others beside it accept one
        super().start()

    def do_read(self) -> tuple | None:
        if self._overdue:
            self._overdue -= 1
        elif self.share.have_others_fewer():
            self.stop_accepting()
            gevent.spawn(self._wait_for_others)
            return None
        accepted = super().do_read()
        if accepted is None:
            self._overdue = 0
        return accepted

    def do_handle(self, *args) -> None:
        self.share.add(1)
        super().do_handle(*args)

    def do_close(self, *args) -> None:
        self.share.add(-1)
        super().do_close(*args)

    def _wait_for_others(self) -> None:
        began_s, waited_s = time.monotonic(), 0.0
        while (
            waited_s < PATIENCE_S and self.started and self.share.have_others_fewer() and self._has_pending()
        ):
            gevent.sleep(TURN_S)
            waited_s = time.monotonic() - began_s
        if waited_s >= PATIENCE_S:
            self._overdue = 1 + int(waited_s / TURN_S)
        if self.started:
            self.start_accepting()

    def _has_pending(self) -> bool:
        return bool(select([self.socket], [], [], 0)[0])
