"""The keeper of the snapshot: reads what changed, ranks the candidate lists anew, publishes for all workers."""

import logging
from typing import Protocol

import numpy as np

from app.domain.errors import StoreUnavailable
from app.domain.rules import RulesWeights
from app.features.snapshot import Snapshot, empty_snapshot

log = logging.getLogger(__name__)

# Of the keeper's time, the part that it works at most: what it takes from the requests on this machine.
MAX_DUTY = 0.25


class SnapshotSource(Protocol):
    def refresh(self, snapshot: Snapshot) -> Snapshot: ...


class SnapshotFolder(Protocol):
    def open(self, half_lives_s: tuple[float, ...]) -> Snapshot | None: ...
    def publish(self, snapshot: Snapshot) -> None: ...


class SnapshotKeeper:
    """Makes snapshots from news, beginning with the last one on disk.

    `list_length` is the length of each candidate list; a proposition with fewer impressions than
    `new_below_impressions` is new.
    """

    def __init__(
        self,
        source: SnapshotSource,
        folder: SnapshotFolder,
        half_lives_s: tuple[float, ...],
        weights: RulesWeights,
        new_below_impressions: float,
        list_length: int,
    ) -> None:
        self._source = source
        self._folder = folder
        self._weights = weights
        self._new_below_impressions = new_below_impressions
        self._list_length = list_length
        self._snapshot = folder.open(half_lives_s) or empty_snapshot(half_lives_s)
        self._listed_at_s = -np.inf
        self.problem: str | None = None

    @property
    def size(self) -> int:
        """Propositions in the snapshot."""
        return len(self._snapshot.catalog)

    def refresh(self, now_s: float) -> None:
        """Publishes a snapshot if there are news, or a proposition's window has opened or closed.

        While PostgreSQL does not answer, the last one stays, and `problem` says why.
        """
        try:
            fresh = self._source.refresh(self._snapshot)
        except StoreUnavailable as error:
            if self.problem is None:
                log.warning("the last good snapshot serves: %s", error)
            self.problem, fresh = str(error), self._snapshot
        else:
            self.problem = None
        if fresh is self._snapshot and not self._has_window_turned(now_s):
            return
        listed = fresh.with_lists(self._weights, self._new_below_impressions, self._list_length, now_s)
        try:
            self._folder.publish(listed)
        except OSError as error:
            self.problem = f"the snapshot cannot be written: {error}"
            log.error("%s", self.problem)
        else:
            self._snapshot, self._listed_at_s = listed, now_s

    def _has_window_turned(self, now_s: float) -> bool:
        catalog, since_s = self._snapshot.catalog, self._listed_at_s
        return any(
            bool(((since_s < times) & (times <= now_s)).any()) for times in (catalog.starts_s, catalog.ends_s)
        )


def pause_s(interval_s: float, worked_s: float) -> float:
    """Seconds to rest after `worked_s` of work, so that the keeper works at most `MAX_DUTY` of its time."""
    return max(interval_s, worked_s * (1 / MAX_DUTY - 1))
