"""The projector: folds the event log into feature rows, in Postgres and in the online store."""

import logging
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from app.domain.errors import ConfigurationError, StoreUnavailable
from app.domain.types import RecordedEvent
from app.features.covisits import CovisitRules, fold_positives, touched_neighbours
from app.features.fold import (
    BEGINNING,
    Counters,
    FeatureRow,
    States,
    counter_keys,
    fold_events,
    latest_rows,
)
from app.features.recent import recent_keys

log = logging.getLogger(__name__)


class OnlineWriter(Protocol):
    """Where the newest rows are served from. May be lost: then `projected` is None and all is written again."""

    def write(self, rows) -> None: ...
    def write_facts(self) -> None: ...
    def projected(self) -> str | None: ...
    def set_projected(self, mark: str) -> None: ...


class Tables(Protocol):
    """See `app.adapters.feature_tables.FeatureTables`."""

    def batch(self) -> AbstractContextManager: ...
    def rebuild_batch(self) -> AbstractContextManager: ...
    def final_rebuild_batch(self) -> AbstractContextManager: ...
    def start_rebuild(self) -> None: ...
    def latest(self, after: datetime | None) -> list[FeatureRow]: ...
    def progress(self): ...


class StateCache:
    """States by key, so that not every batch asks Postgres for them. Bounded."""

    def __init__(self, max_entries: int) -> None:
        self._states: dict[Hashable, Any] = {}
        self._max_entries = max_entries

    def fetch(self, wanted: Collection[Hashable], load: Callable[[Collection], dict]) -> dict:
        """A mapping with all wanted states that there are; the fold may change it and them."""
        if len(self._states) + len(wanted) > self._max_entries:
            self._states = {key: self._states[key] for key in wanted if key in self._states}
        unknown = [key for key in wanted if key not in self._states]
        if unknown:
            self._states.update(load(unknown))
        return self._states

    def forget(self) -> None:
        self._states = {}


class FoldCache:
    """What the fold knows of recent entities. The neighbours of a proposition weigh some kilobytes."""

    def __init__(self) -> None:
        self.states = StateCache(max_entries=500_000)
        self.neighbours = StateCache(max_entries=50_000)

    def forget(self) -> None:
        self.states.forget()
        self.neighbours.forget()


class Projector:
    """Folds each event once, in the order of its receipt, and resumes where it was stopped.

    Rows and progress are committed to Postgres together. The online store is written after that and
    says itself how far it has got, so whatever is lost between the two, or later, is written again.
    """

    def __init__(
        self,
        tables: Tables,
        online: OnlineWriter | None,
        half_lives_s: Sequence[float],
        covisit_rules: CovisitRules,
        batch_events: int,
    ) -> None:
        self._tables = tables
        self._online = online
        self._half_lives_s = half_lives_s
        self._covisit_rules = covisit_rules
        self._batch_events = batch_events
        self._cache = FoldCache()
        self._folded_until = BEGINNING

    @property
    def has_online_store(self) -> bool:
        return self._online is not None

    def run(self) -> int:
        """Folds everything that is in the log now; returns the number of events."""
        total = 0
        while count := self._run_batch():
            total += count
        self._catch_up_online()
        return total

    def rebuild(self) -> int:
        """Replays the whole log into new tables and swaps them in; readers see the old ones until then."""
        self._tables.start_rebuild()
        cache, folded_until, total = FoldCache(), BEGINNING, 0
        while True:
            with self._tables.rebuild_batch() as batch:
                events = self._fold(batch, folded_until, cache)[0]
            if not events:
                break
            folded_until, total = events[-1].received_at, total + len(events)
        with self._tables.final_rebuild_batch() as batch:
            while events := self._fold(batch, folded_until, cache)[0]:
                folded_until, total = events[-1].received_at, total + len(events)
            batch.swap_in_rebuild(folded_until)
        self._cache.forget()
        self._catch_up_online()
        return total

    def _run_batch(self) -> int:
        try:
            with self._tables.batch() as (batch, progress):
                if progress.needs_rebuild:
                    events = None
                else:
                    if progress.folded_until != self._folded_until:
                        self._cache.forget()  # somebody else has folded since
                    events, rows = self._fold(batch, progress.folded_until, self._cache)
                    if events:
                        batch.set_folded_until(events[-1].received_at)
        except BaseException:
            # Undone, or committed without our knowing: either way the cache may be ahead of the tables.
            self._cache.forget()
            raise
        if events is None:
            log.info("not all that is folded is in the tables (an import, or an upgrade): replaying all")
            return self.rebuild()
        if events:
            self._folded_until = events[-1].received_at
            self._write_online(rows, _mark(progress), _mark(self._tables.progress()))
        return len(events)

    def _fold(self, batch, after: datetime, cache: FoldCache) -> tuple[list[RecordedEvent], list[FeatureRow]]:
        events = batch.events_after(after, self._batch_events)
        if not events:
            return [], []
        touched = recent_keys(events).union(*map(counter_keys, events))
        states = cache.states.fetch(touched, lambda keys: self._checked(batch.load_states(keys)))
        neighbours = cache.neighbours.fetch(
            touched_neighbours(events, states, self._covisit_rules.window_s), batch.load_neighbours
        )
        rows = fold_events(events, states, self._half_lives_s)
        recent_rows, neighbour_rows = fold_positives(events, states, neighbours, self._covisit_rules)
        rows += recent_rows
        batch.append(rows)
        batch.replace_neighbours(neighbour_rows)
        return events, rows

    def _checked(self, states: States) -> States:
        for state in states.values():
            if isinstance(state, Counters) and state.counts.shape[1] != len(self._half_lives_s):
                raise ConfigurationError("HALF_LIVES_S has changed: run `propositions rebuild-features`")
        return states

    def _write_online(self, rows: Sequence[FeatureRow], before: str, after: str) -> None:
        """Writes a batch's newest rows, if the online store has everything before them."""
        if self._online is None:
            return
        try:
            if self._online.projected() == before:
                self._online.write(latest_rows(rows))
                self._online.set_projected(after)
        except StoreUnavailable as error:
            log.warning("the online store lags: %s", error)

    def _catch_up_online(self) -> None:
        """Writes to the online store what it lacks, all of it if it lost its data."""
        if self._online is None:
            return
        try:
            progress = self._tables.progress()
            mark, known = _mark(progress), self._online.projected()
            if known == mark:
                return
            known_until = _known_until(known, progress.generation)
            rows = self._tables.latest(known_until)
            self._online.write(latest_rows(rows))
            if known_until is None:
                self._online.write_facts()
            self._online.set_projected(mark)
            log.info("wrote %d rows to the online store, which was behind", len(rows))
        except StoreUnavailable as error:
            log.warning("the online store lags: %s", error)


def _mark(progress) -> str:
    return f"{progress.generation} {progress.folded_until.isoformat()}"


def _known_until(mark: str | None, generation: str) -> datetime | None:
    """The moment up to which the online store has the rows of this generation; None: it has none."""
    if mark is None or not mark.startswith(f"{generation} "):
        return None
    return datetime.fromisoformat(mark.partition(" ")[2])
