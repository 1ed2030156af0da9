"""Parts of candidates, computed for one request or beforehand, that serve the next ones."""

from typing import NamedTuple

import numpy as np

from app.features.columns import grown

# A candidate that was not asked for during as many renewals is not prepared any more, unless a whole catalog is.
MAX_IDLE_RENEWALS = 10
# Candidates whose parts are kept per context, half of them from renewal to renewal: large catalogs have a long tail
# of candidates that are asked for once.
MAX_KEPT = 20_000
# Where this part of a catalog was asked for lately, the rest soon will be: a catalog of up to half of what is kept is
# prepared as a whole then.
WHOLE_SHARE = 0.25

# Parts of rows (m, w), and for each of n candidates which of them is its, intp (n,).
Pool = tuple[np.ndarray, np.ndarray]


class Computed(NamedTuple):
    """Parts of candidates (n, w), and what tells whether they still hold: the intervals of their values (n, k)."""

    parts: np.ndarray
    intervals: np.ndarray


class ContextParts:
    """Parts of candidates in one context: those that were asked for, or all. Slots are rows of the parts.

    `room` is for how many there is place from the beginning.
    """

    def __init__(self, catalog_size: int, room: int = 0) -> None:
        self._slots = np.full(catalog_size, -1, np.int32)
        self._parts: np.ndarray | None = None
        self._intervals = np.empty((0, 0), np.int32)
        self._room = room
        self._positions = np.empty(0, np.int64)
        self._idle_renewals = np.empty(0, np.uint8)  # since a slot was asked for
        self._count = 0

    @property
    def size_bytes(self) -> int:
        return (
            self._slots.nbytes + self._intervals.nbytes + (0 if self._parts is None else self._parts.nbytes)
        )

    def wanted(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions that were asked for lately, or all that are kept where these are much of the catalog.

        Also how many renewals ago, this one counted, at most MAX_IDLE_RENEWALS.
        """
        # A copy: requests go on changing it, and what numpy sorts must hold still.
        idle_renewals = self._idle_renewals[: self._count].copy()
        wanted = idle_renewals.argsort(kind="stable")[: MAX_KEPT // 2]
        was_asked_lately = idle_renewals[wanted] < MAX_IDLE_RENEWALS
        if not self._deserves_all(was_asked_lately.sum()):
            wanted = wanted[was_asked_lately]
        return self._positions[wanted], np.minimum(idle_renewals[wanted] + 1, MAX_IDLE_RENEWALS)

    @property
    def is_worth_completing(self) -> bool:
        return self._count < len(self._slots) and self._deserves_all(self._count)

    @property
    def completed_bytes(self) -> int:
        """The size that it has with all candidates, if it has any yet."""
        per_candidate = 0 if self._parts is None else self._parts[:1].nbytes + self._intervals[:1].nbytes
        return self._slots.nbytes + len(self._slots) * per_candidate

    def idle_renewals_by_position(self) -> np.ndarray:
        """Of every candidate, uint8 (catalog,): how many renewals ago it was asked for, at most MAX_IDLE_RENEWALS."""
        renewals = np.full(len(self._slots), MAX_IDLE_RENEWALS, np.uint8)
        renewals[self._positions[: self._count]] = self._idle_renewals[: self._count]
        return renewals

    def _deserves_all(self, asked_count: int) -> bool:
        size = len(self._slots)
        return WHOLE_SHARE * size <= asked_count and size <= MAX_KEPT // 2

    def missing(self, positions: np.ndarray) -> np.ndarray:
        return positions[self._slots[positions] < 0]

    def add(self, positions: np.ndarray, computed: Computed) -> None:
        first, last = self._count, self._count + len(positions)
        if self._parts is None:
            self._parts = computed.parts[:0]
            self._intervals = computed.intervals[:0]
        if last > len(self._parts):
            room = min(max(last, 2 * len(self._parts), self._room), len(self._slots))
            self._parts = grown(self._parts, room, 0)
            self._intervals = grown(self._intervals, room, 0)
            self._positions = grown(self._positions, room, 0)
            self._idle_renewals = grown(self._idle_renewals, room, 0)
        self._parts[first:last] = computed.parts
        self._intervals[first:last] = computed.intervals
        self._positions[first:last] = positions
        self._slots[positions] = np.arange(first, last)
        self._count = last

    def of(self, positions: np.ndarray) -> Computed:
        """Copies of what is kept of these, none of which is missing."""
        slots = self._slots[positions]
        return Computed(self._parts[slots], self._intervals[slots])

    def has_room_for(self, count: int) -> bool:
        return self._parts is None or self._count + count <= MAX_KEPT

    def set_idle(self, positions: np.ndarray, renewals: np.ndarray) -> None:
        self._idle_renewals[self._slots[positions]] = renewals

    def pool(self, positions: np.ndarray) -> Pool:
        slots = self._slots[positions].astype(np.intp)
        self._idle_renewals[slots] = 0
        return self._parts, slots

    def pool_with(self, positions: np.ndarray, computed: np.ndarray) -> Pool:
        """A pool of these positions alone; `computed` are the parts of those that are missing here."""
        slots = self._slots[positions]
        is_kept = slots >= 0
        kept = slots[is_kept]
        self._idle_renewals[kept] = 0
        rows = np.empty(len(positions), np.intp)
        rows[is_kept] = np.arange(len(kept))
        rows[~is_kept] = len(kept) + np.arange(len(computed))
        return np.concatenate([self._parts[kept], computed]), rows
