"""Decisions wait in a bounded queue and are stored in batches, so that no request waits for Postgres."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from app.domain.errors import StoreUnavailable
from app.domain.ports import DecisionLog
from app.domain.types import Slate, SuggestRequest

log = logging.getLogger(__name__)


class DecisionQueue:
    """Holds at most `size` decisions; further ones are dropped and reported to `on_drop`."""

    def __init__(self, decision_log: DecisionLog, size: int, on_drop: Callable[[int], None]) -> None:
        self._log = decision_log
        self._size = size
        self._on_drop = on_drop
        self._waiting: deque[tuple[SuggestRequest, Slate]] = deque()
        self._settled_count = 0  # of those that wait, from the front: their features are computed
        self._flushing = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: SuggestRequest, slate: Slate) -> None:
        if len(self._waiting) >= self._size:
            self._on_drop(1)
        else:
            self._waiting.append((request, slate))

    def flush(self, batch_size: int = 500) -> None:
        """Stores what waits, in batches. What cannot be stored now keeps waiting.

        The last one, when a worker ends, waits for one that is under way.
        """
        with self._flushing:
            while self._waiting:
                self._settle()
                batch = [self._waiting[i] for i in range(min(batch_size, len(self._waiting)))]
                try:
                    self._log.append(batch)
                except StoreUnavailable as error:
                    log.warning("decisions wait: %s", error)
                    return
                for _ in batch:
                    self._waiting.popleft()
                self._settled_count -= len(batch)

    def _settle(self) -> None:
        """Computes features also while nothing can be stored: until then they hold on to all that serving knew."""
        while self._settled_count < len(self._waiting):
            request, slate = self._waiting[self._settled_count]
            if slate.features is not None:
                self._waiting[self._settled_count] = request, _with_features(slate)
            self._settled_count += 1


def _with_features(slate: Slate) -> Slate:
    """The slate with its features computed; without, if it was ranked for an earlier request."""
    features = None
    if callable(slate.features) and not slate.is_cached:
        try:
            features = slate.features()
        except Exception:
            # A bug there costs a sample of the audit and gets into the error log; the decision is stored.
            log.exception("the features of a decision are not logged")
    return replace(slate, features=features)
