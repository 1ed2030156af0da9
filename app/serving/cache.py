"""Slates that were ranked before, for the same user, context and parameters, while nothing has changed."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import blake2b

import numpy as np

from app.domain.budget import TimeBudget
from app.domain.errors import StoreUnavailable
from app.domain.ports import Kept, Ranker, SlateStore
from app.domain.types import RankedProposition, Slate, SuggestRequest
from app.features.catalog import Catalog
from app.features.ports import Model
from app.features.snapshot import Snapshot

log = logging.getLogger(__name__)


# Of the remaining time, what looking for a kept slate may take: ranking must fit into the rest.
LOOKUP_SHARE = 0.25


class CacheOutcome(StrEnum):
    HIT = "hit"
    MISS = "miss"
    STALE = "stale"  # found, but too old, or made before an event of the user
    COLLAPSED = "collapsed"  # taken from an equal request that was being ranked
    DOWN = "down"


class _Flight:
    """A slate that is being ranked, and those who wait for it."""

    def __init__(self) -> None:
        self.is_done = threading.Event()
        self.slate: Slate | None = None


class CachedRanker:
    """Answers from the store while it can; equal requests at the same time are ranked once per process.

    A kept slate counts for `ttl`, for one model and one state of the catalog, and until the next event of
    its user. Without a store that answers, everything is ranked.
    """

    def __init__(
        self,
        ranker: Ranker,
        store: SlateStore,
        current_model: Callable[[], Model | None],
        current_snapshot: Callable[[], Snapshot],
        ttl: timedelta,
        on_outcome: Callable[[CacheOutcome], None],
    ) -> None:
        self._ranker = ranker
        self._store = store
        self._current_model = current_model
        self._current_snapshot = current_snapshot
        self._ttl = ttl
        self._on_outcome = on_outcome
        self._flights: dict[tuple[str | None, str], _Flight] = {}

    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        model, snapshot = self._current_model(), self._current_snapshot()
        if model is None:
            return self._ranker.rank(request, request_id, now, budget)
        key = slate_key(request, model.version, snapshot)
        try:
            kept = self._store.find(request.user_id, key, LOOKUP_SHARE * budget.remaining_s)
        except StoreUnavailable as error:
            log.debug("ranking without the cache: %s", error)
            self._on_outcome(CacheOutcome.DOWN)
            return self._ranker.rank(request, request_id, now, budget)
        finally:
            budget.finish("cache")
        if self._is_current(kept, now):
            again = _again(kept.slate, request_id, snapshot.catalog, now)
            if again is not None:
                self._on_outcome(CacheOutcome.HIT)
                return again
        self._on_outcome(CacheOutcome.MISS if kept.slate is None else CacheOutcome.STALE)
        return self._rank_once(request, request_id, now, budget, key, kept.epoch)

    def _is_current(self, kept: Kept, now: datetime) -> bool:
        if kept.slate is None or kept.is_outdated:
            return False
        return timedelta(0) <= now - kept.slate.decided_at < self._ttl

    def _rank_once(
        self,
        request: SuggestRequest,
        request_id: str,
        now: datetime,
        budget: TimeBudget,
        key: str,
        epoch: int,
    ) -> Slate:
        name = (request.user_id, f"{epoch} {key}")
        flight = self._flights.get(name)
        if flight is not None and flight.is_done.wait(max(budget.remaining_s / 2, 0.0)) and flight.slate:
            self._on_outcome(CacheOutcome.COLLAPSED)
            budget.finish("cache")
            return replace(flight.slate, request_id=request_id, is_cached=True)
        flight = self._flights[name] = _Flight()
        try:
            flight.slate = slate = self._ranker.rank(request, request_id, now, budget)
        finally:
            flight.is_done.set()
            if self._flights.get(name) is flight:
                del self._flights[name]
        self._store.keep(request.user_id, key, epoch, slate)
        return slate

    def flush(self) -> None:
        """Stores the slates that were ranked since the last time, off the requests' path."""
        try:
            self._store.flush()
        except StoreUnavailable as error:
            log.debug("slates are not kept: %s", error)


def slate_key(request: SuggestRequest, model_version: str, snapshot: Snapshot) -> str:
    """Equal for requests of one user that must get the same slate."""
    filters = request.filters
    parts = (
        model_version,
        snapshot.version.generation,
        snapshot.version.catalog_at,
        request.context_key,
        request.limit,
        None if request.candidate_ids is None else sorted(request.candidate_ids),
        sorted(request.excluded_ids),
        sorted(filters.categories),
        sorted(filters.tags),
        filters.min_value,
    )
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _again(slate: Slate, request_id: str, catalog: Catalog, now: datetime) -> Slate | None:
    """The slate as the answer to another request; None if a proposition of it may not be shown any more."""
    found = catalog.positions_of([ranked.proposition_id for ranked in slate.propositions])
    positions = found.tolist()
    if -1 in positions or np.count_nonzero(catalog.is_open(now.timestamp(), found)) < len(positions):
        return None
    return replace(
        slate,
        request_id=request_id,
        is_cached=True,
        propositions=tuple(
            RankedProposition(r.proposition_id, r.rank, r.score, r.sources, details)
            for r, (_, details) in zip(slate.propositions, catalog.shown(positions), strict=True)
        ),
    )
