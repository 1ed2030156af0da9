"""The projector: folds the event log into feature rows, in Postgres and in the online store."""

import logging
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from app.domain.errors import ConfigurationError, StoreUnavailable
from app.domain.types import RecordedEvent
from app.events.metrics import ProjectorMetrics, part_of
from app.features.covisits import CovisitRules, fold_positives, touched_neighbours
from app.features.fold import (
    BEGINNING,
    Counters,
    FeatureRow,
    States,
    counter_keys,
    fold_counters,
    fold_histories,
    history_keys,
    latest_rows,
)
from app.features.recent import is_positive, recent_keys
from app.features.slots import ALL_SLOTS, COVISIT_SLOT, Progress, chooser

log = logging.getLogger(__name__)

FACTS_MARK = "facts"


class OnlineWriter(Protocol):
    """Where the newest rows are served from. May be lost: then it knows no marks, and all is written again."""

    def write(self, rows: Mapping[str, Sequence[FeatureRow]], over_newer: bool = False) -> None: ...
    def fact_views(self) -> Collection[str]: ...
    def write_facts(self, view: str, after: datetime | None, until: datetime) -> None: ...
    def marks(self) -> Mapping[str, str]: ...
    def set_marks(self, marks: Mapping[str, str]) -> None: ...


class Tables(Protocol):
    """See `app.adapters.feature_tables.FeatureTables`."""

    def batch(self, slots: Collection[int]) -> AbstractContextManager: ...
    def rebuilding(self) -> AbstractContextManager[bool]: ...
    def rebuild_batch(self) -> AbstractContextManager: ...
    def final_rebuild_batch(self) -> AbstractContextManager: ...
    def start_rebuild(self) -> int: ...
    def latest(self, after: datetime | None) -> list[FeatureRow]: ...
    def progress(self) -> Progress: ...
    def facts_at(self) -> Mapping[str, datetime]: ...


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
    """What the fold knows of recent entities. A history, or the neighbours of a proposition, weighs some kilobytes."""

    def __init__(self) -> None:
        self.states = StateCache(max_entries=500_000)
        self.histories = StateCache(max_entries=50_000)
        self.neighbours = StateCache(max_entries=50_000)
        self._left: Progress | None = None

    def forget(self) -> None:
        self.states.forget()
        self.histories.forget()
        self.neighbours.forget()
        self._left = None

    def forget_if_outdated(self, found: Progress) -> None:
        """Keeps what it knows only if nobody has folded these slots, or changed states, since it left them."""
        left = self._left
        if left is not None and not (
            (found.generation, found.states_version) == (left.generation, left.states_version)
            and all(
                left.folded_until.get(slot, moment) == moment for slot, moment in found.folded_until.items()
            )
        ):
            self.forget()

    def leave(self, at: Progress) -> None:
        known = {} if self._left is None else self._left.folded_until
        self._left = replace(at, folded_until={**known, **at.folded_until})


@dataclass(frozen=True, slots=True)
class Folded:
    """What one batch did: from where to where, which events, and which rows came of them."""

    before: Progress
    after: Progress
    events: Sequence[RecordedEvent]
    rows: Sequence[FeatureRow]
    has_more: bool


class Projector:
    """Folds each event once, in the order of its receipt, and resumes where it was stopped.

    Any number of processes may fold, each some slots. Rows and progress are committed to Postgres together,
    by whoever holds the slots' rows. The online store is written after that and says itself how far
    it has got in each slot, so whatever is lost between the two, or later, is written again.

    `on_folded` is told of each stretch of the log, between two moments of receipt, that was committed for the last
    slot: of each event once, over all processes. What a replay folds is not told.
    """

    def __init__(
        self,
        tables: Tables,
        online: OnlineWriter | None,
        half_lives_s: Sequence[float],
        covisit_rules: CovisitRules,
        batch_events: int,
        metrics: ProjectorMetrics | None = None,
        on_folded: Callable[[datetime, datetime], None] = lambda after, until: None,
    ) -> None:
        self._tables = tables
        self._online = online
        self._half_lives_s = half_lives_s
        self._covisit_rules = covisit_rules
        self._batch_events = batch_events
        self._metrics = metrics or ProjectorMetrics(CollectorRegistry())
        self._on_folded = on_folded
        self._cache = FoldCache()

    @property
    def has_online_store(self) -> bool:
        return self._online is not None

    def run(self) -> int:
        """Folds everything that is in the log now; returns the number of events."""
        total, has_more = 0, True
        while has_more:
            count, has_more = self.step(ALL_SLOTS)
            total += count
        self.write_facts()
        return total

    def step(self, slots: Collection[int]) -> tuple[int, bool]:
        """Folds one batch into some slots, and brings the online store up to it.

        Slots that are behind the others come first. Returns the number of events, and whether there are more.
        """
        began_s = time.monotonic()
        folded = self._fold_batch(slots)
        if folded.before.needs_rebuild:
            log.info("not all that is folded is in the tables (an import, or an upgrade): replaying all")
            return self._rebuild_if_needed(slots), False
        self._bring_online(folded)
        if folded.events:
            self._metrics.batch_done(part_of(slots), len(folded.events), time.monotonic() - began_s)
        if not folded.has_more:
            self._metrics.waits(part_of(slots), None)
        return len(folded.events), folded.has_more

    def write_facts(self) -> None:
        """Brings what is not folded but entered (profiles, catalog) to the online store, if it has changed."""
        if self._online is None:
            return
        try:
            progress, facts_at = self._tables.progress(), self._tables.facts_at()
            marks = self._online.marks()
            for view in self._online.fact_views():
                name, changed_at = f"{FACTS_MARK} {view}", facts_at.get(view, BEGINNING)
                mark = f"{progress.generation} {changed_at.isoformat()}"
                if marks.get(name) != mark:
                    self._online.write_facts(view, progress.known_until(marks.get(name)), changed_at)
                    self._online.set_marks({name: mark})
        except StoreUnavailable as error:
            log.warning("the online store lags: %s", error)

    def rebuild(self) -> int:
        """Replays the whole log into new tables and swaps them in; readers see the old ones until then.

        Raises:
            ConfigurationError: another process is at it.
        """
        with self._tables.rebuilding() as is_free:
            if not is_free:
                raise ConfigurationError("another process replays all events already: let it finish")
            return self._rebuild()

    def bring_online(self, slots: Collection[int]) -> None:
        """Writes to the online store what it lacks of some slots."""
        progress = self._tables.progress()
        progress = replace(progress, folded_until={slot: progress.folded_until[slot] for slot in slots})
        self._bring_online(Folded(progress, progress, (), (), has_more=False))

    def _rebuild_if_needed(self, slots: Collection[int]) -> int:
        """Zero while another process does it, or has done it."""
        with self._tables.rebuilding() as is_free:
            if not is_free or not self._tables.progress().needs_rebuild:
                return 0
            count = self._rebuild()
        self.bring_online(slots)
        return count

    def _rebuild(self) -> int:
        states_version = self._tables.start_rebuild()
        cache, folded_until, total = FoldCache(), BEGINNING, 0
        while True:
            with self._tables.rebuild_batch() as batch:
                events = batch.events_after(folded_until, self._batch_events)
                self._fold(batch, events, cache, ALL_SLOTS)
            if not events:
                break
            folded_until, total = events[-1].received_at, total + len(events)
        with self._tables.final_rebuild_batch() as batch:
            while events := batch.events_after(folded_until, self._batch_events):
                self._fold(batch, events, cache, ALL_SLOTS)
                folded_until, total = events[-1].received_at, total + len(events)
            batch.swap_in_rebuild(folded_until, states_version)
        self._metrics.rebuilt()
        return total

    def _fold_batch(self, slots: Collection[int]) -> Folded:
        try:
            with self._tables.batch(slots) as (batch, before):
                if before.needs_rebuild:
                    return Folded(before, before, (), (), has_more=False)
                self._cache.forget_if_outdated(before)
                folded = self._fold_next(batch, before)
        except BaseException:
            # Undone, or committed without our knowing: either way the cache may be ahead of the tables.
            self._cache.forget()
            raise
        self._cache.leave(folded.after)
        after, until = (progress.folded_until.get(COVISIT_SLOT) for progress in (folded.before, folded.after))
        if after != until:
            self._on_folded(after, until)
        return folded

    def _fold_next(self, batch, before: Progress) -> Folded:
        """Folds the next events into the slots that are hindmost, up to where the next ones are."""
        group, after, until = before.hindmost()
        events = batch.events_after(after, self._batch_events, until)
        if not events and until is not None:
            # They differ by nothing: all that lies between was removed from the log.
            batch.set_folded_until(group, until)
            return Folded(before, before.moved(group, until), (), (), has_more=True)
        if not events:
            return Folded(before, before, (), (), has_more=False)
        # Until this batch, or one after it, is done.
        self._metrics.waits(part_of(before.folded_until), events[0].received_at)
        rows = self._fold(batch, events, self._cache, group)
        batch.set_folded_until(group, events[-1].received_at)
        has_more = until is not None or len(events) >= self._batch_events
        return Folded(before, before.moved(group, events[-1].received_at), events, rows, has_more)

    def _fold(
        self, batch, events: Sequence[RecordedEvent], cache: FoldCache, slots: Collection[int]
    ) -> list[FeatureRow]:
        counter_slots = set(slots) - {COVISIT_SLOT}
        is_wanted = chooser(counter_slots | {COVISIT_SLOT})  # where no counter lies
        counted = events if counter_slots else ()
        positives = list(filter(is_positive, events)) if COVISIT_SLOT in slots else []
        touched = {
            entity
            for event in counted
            for entity in counter_keys(event)
            if is_wanted is None or is_wanted(*entity)
        }
        touched |= recent_keys(positives)
        states = cache.states.fetch(touched, lambda keys: self._checked(batch.load_states(keys)))
        histories = cache.histories.fetch(history_keys(counted, is_wanted), batch.load_states)
        neighbours = cache.neighbours.fetch(
            touched_neighbours(positives, states, self._covisit_rules.window_s), batch.load_neighbours
        )
        rows = fold_counters(counted, states, self._half_lives_s, is_wanted)
        rows += fold_histories(counted, histories, is_wanted)
        recent_rows, neighbour_rows = fold_positives(positives, states, neighbours, self._covisit_rules)
        rows += recent_rows
        batch.append(rows)
        batch.replace_neighbours(neighbour_rows)
        return rows

    def _checked(self, states: States) -> States:
        for state in states.values():
            if isinstance(state, Counters) and state.counts.shape[1] != len(self._half_lives_s):
                raise ConfigurationError("HALF_LIVES_S has changed: run `propositions rebuild-features`")
        return states

    def _bring_online(self, folded: Folded) -> None:
        """Writes a batch's newest rows, and of slots that the online store has not got that far in, the rest."""
        if self._online is None or not folded.after.folded_until:
            return
        try:
            known = self._online.marks()
            behind = {s for s in folded.before.folded_until if known.get(str(s)) != folded.before.mark(s)}
            if behind:
                self._catch_up(folded.after, {slot: known.get(str(slot)) for slot in behind})
            self._online.write(latest_rows(folded.rows))
            after = {str(slot): folded.after.mark(slot) for slot in folded.after.folded_until}
            if after.items() - known.items():
                self._online.set_marks(after)
                received_at = {event.received_at for event in folded.events}
                self._metrics.served(part_of(folded.after.folded_until), received_at, datetime.now(UTC))
        except StoreUnavailable as error:
            log.warning("the online store lags: %s", error)

    def _catch_up(self, progress: Progress, marks: Mapping[int, str | None]) -> None:
        """Writes what the online store lacks of slots whose marks it knows, all of them if it lost its data."""
        moments = {progress.known_until(mark) for mark in marks.values()}
        after = None if None in moments else min(moments)
        is_lacking = chooser(marks)
        rows = [
            row for row in self._tables.latest(after) if is_lacking is None or is_lacking(row.view, row.key)
        ]
        # What another database or the time before a rebuild left there may bear a later time.
        self._online.write(latest_rows(rows), over_newer=after is None)
        log.info("wrote %d rows to the online store, which was behind", len(rows))
