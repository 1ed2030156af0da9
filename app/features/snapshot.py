"""What a worker knows about candidates without asking anyone: the catalog and its counters in memory.

A snapshot never changes. `with_changes` makes the next one and shares the columns that stayed the same,
so that publishing it costs as much as there is news, and a request keeps the snapshot it began with.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from app.domain.rules import RulesWeights, score_by_rules
from app.domain.types import EventType, Proposition
from app.features.affinity import Traits
from app.features.candidate_lists import CandidateLists, best_of, best_per_group
from app.features.catalog import Catalog, extended
from app.features.columns import RaggedColumn, updated
from app.features.fold import EVENT_ROW, Counters, decay_to
from app.features.rates import learn_prior_strength, pooled_rate, smoothed_rate
from app.features.rows import NUMBER_PREFIX, Rows
from app.features.snapshot_columns import ContextCounters, CounterColumn, Neighbours, TextColumn

# Of catalogs with more categories than this, the largest are looked up for each user.
MAX_CATEGORIES = 64


@dataclass(frozen=True, slots=True)
class SnapshotVersion:
    """How much of the stores a snapshot holds.

    `generation` names the database and the last rebuild of its counters; the times say up to which commit
    of the catalog and of the projectors' rows it has read all. `progress` is another one whenever any
    projector got further, also if the hindmost did not.
    """

    generation: str | None
    catalog_at: datetime | None
    counters_at: datetime | None
    progress: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotChanges:
    """News, by proposition id (`context_performance`: by crossed key).

    `attributes` are the model's catalog fields, `traits` what propositions have in common, `neighbours` the ids of the propositions most often
    visited together with one, nearest first.
    """

    propositions: Sequence[Proposition] = ()
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    traits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    performance: Mapping[str, Counters] = field(default_factory=dict)
    context_performance: Mapping[str, Counters] = field(default_factory=dict)
    neighbours: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClickPrior:
    rate: float
    strength: float


@dataclass(frozen=True)
class Snapshot:
    version: SnapshotVersion
    half_lives_s: tuple[float, ...]
    catalog: Catalog
    attributes: Mapping[str, np.ndarray | TextColumn]
    trait_codes: RaggedColumn
    trait_names: tuple[str, ...]
    performance: CounterColumn
    contexts: ContextCounters
    neighbours: Neighbours
    click_prior: ClickPrior
    lists: CandidateLists

    @cached_property
    def traits(self) -> Traits:
        """Traits by position in the catalog."""
        numbers = {
            name.removeprefix(NUMBER_PREFIX): column
            for name, column in self.attributes.items()
            if name.startswith(NUMBER_PREFIX)
        }
        return Traits(self.trait_codes, len(self.trait_names), numbers)

    @cached_property
    def largest_categories(self) -> tuple[list[int], list[str]]:
        """Numbers and names of at most MAX_CATEGORIES categories, the largest first. What has none is in no category."""
        names = self.catalog.category_names
        numbers = list(islice((n for n in self.lists.categories if names[n]), MAX_CATEGORIES))
        return [int(n) for n in numbers], [names[n] for n in numbers]

    def attribute_rows(self, names: Iterable[str], positions: np.ndarray) -> Rows:
        """Catalog fields of the candidates at `positions`; NaN for a field that no proposition has."""
        return Rows(None, None, {name: self._attribute(name, positions) for name in names})

    def _attribute(self, name: str, positions: np.ndarray) -> np.ndarray:
        match self.attributes.get(name):
            case None:
                return np.full(len(positions), np.nan)
            case TextColumn() as texts:
                return texts.take(positions)
            case numbers:
                return numbers[positions]

    def click_rates(
        self, context_key: str, positions: np.ndarray, now_s: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Smoothed click rates over the longest half-life, float64 (n,): everywhere, and in one context."""
        everywhere = self._click_rate(self.performance, positions, self.click_prior.rate, now_s)
        pairs, is_known = self.contexts.find(context_key, positions)
        in_context = everywhere.copy()
        in_context[is_known] = self._click_rate(self.contexts.counters, pairs, everywhere[is_known], now_s)
        return everywhere, in_context

    def _click_rate(self, column: CounterColumn, chosen, prior_rate, now_s: float) -> np.ndarray:
        longest = column.counts[chosen, :, -1:].astype(np.float64)
        half_life_s = np.asarray(self.half_lives_s[-1:])
        counts = decay_to(longest, column.as_of_s[chosen], now_s, half_life_s)[:, :, 0]
        return smoothed_rate(
            counts[:, EVENT_ROW[EventType.CLICK]],
            counts[:, EVENT_ROW[EventType.IMPRESSION]],
            prior_rate,
            self.click_prior.strength,
        )

    def with_changes(self, changes: SnapshotChanges) -> "Snapshot":
        """The next snapshot, of the same version. Known propositions keep their positions; new ones are appended."""
        catalog = self.catalog.with_propositions(changes.propositions)
        performance = self._performance(changes.performance, catalog)
        trait_codes, trait_names = self._updated_traits(changes.traits, catalog)
        return replace(
            self,
            catalog=catalog,
            attributes=_updated_attributes(self.attributes, changes.attributes, catalog),
            trait_codes=trait_codes,
            trait_names=trait_names,
            performance=performance,
            contexts=self.contexts.with_changes(changes.context_performance, catalog),
            neighbours=self.neighbours.with_changes(changes.neighbours, catalog),
            click_prior=(
                self.click_prior if performance is self.performance else _learn_click_prior(performance)
            ),
        )

    def _updated_traits(
        self, changes: Mapping[str, Sequence[str]], catalog: Catalog
    ) -> tuple[RaggedColumn, tuple[str, ...]]:
        rows: dict[int, Sequence[str]] = dict.fromkeys(range(len(self.catalog), len(catalog)), ())
        found = zip(catalog.positions_of(changes).tolist(), changes.values(), strict=True)
        rows.update({position: texts for position, texts in found if position >= 0})
        names, codes = extended(self.trait_names, list(rows.values()))
        return self.trait_codes.with_rows(np.array(list(rows), np.int64), codes, len(catalog)), names

    def with_lists(
        self, weights: RulesWeights, new_below_impressions: float, length: int, now_s: float
    ) -> "Snapshot":
        """The snapshot with lists of at most `length` candidates as they rank now."""
        catalog, performance = self.catalog, self.performance
        eligible = np.flatnonzero(catalog.is_open(now_s))
        rates = self._click_rate(performance, slice(None), self.click_prior.rate, now_s)
        scores = score_by_rules(rates, rates, now_s - performance.as_of_s, weights)[eligible]
        impressions = performance.counts[eligible, EVENT_ROW[EventType.IMPRESSION], -1]
        is_new = impressions < new_below_impressions
        new, created_s = eligible[is_new], np.nan_to_num(catalog.created_s[eligible[is_new]], nan=-np.inf)
        return replace(
            self,
            lists=CandidateLists(
                popular=best_of(eligible, scores, length),
                new=best_of(new, created_s, length),
                by_category=best_per_group(
                    catalog.categories[eligible], eligible, scores, len(catalog.category_names), length
                ),
                trending=self._trending(rates, eligible, weights, length, now_s),
                categories=_largest_first(catalog.categories[eligible], len(catalog.category_names)),
            ),
        )

    def _trending(self, rates: np.ndarray, eligible: np.ndarray, weights: RulesWeights, length: int, now_s):
        pairs = self.contexts
        positions = (pairs.keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        is_eligible = np.zeros(len(self.catalog), bool)
        is_eligible[eligible] = True
        kept = np.flatnonzero(is_eligible[positions])
        positions = positions[kept]
        in_context = self._click_rate(pairs.counters, kept, rates[positions], now_s)
        age_s = now_s - pairs.counters.as_of_s[kept]
        scores = score_by_rules(rates[positions], in_context, age_s, weights)
        numbers = (pairs.keys[kept] >> np.uint64(32)).astype(np.int64)
        return best_per_group(numbers, positions, scores, len(pairs.contexts), length)

    def _performance(self, changes: Mapping[str, Counters], catalog: Catalog) -> CounterColumn:
        positions = catalog.positions_of(changes)
        fitting = [
            (position, counters)
            for position, counters in zip(positions, changes.values(), strict=True)
            if position >= 0 and counters.counts.shape[1] == len(self.half_lives_s)
        ]
        return self.performance.with_rows(
            [position for position, _ in fitting], [counters for _, counters in fitting], len(catalog)
        )


def empty_snapshot(half_lives_s: Sequence[float]) -> Snapshot:
    no_counters = CounterColumn.empty(0, len(half_lives_s))
    return Snapshot(
        version=SnapshotVersion(generation=None, catalog_at=None, counters_at=None),
        half_lives_s=tuple(half_lives_s),
        catalog=Catalog.empty(),
        attributes={},
        trait_codes=RaggedColumn.empty(np.int32),
        trait_names=(),
        performance=no_counters,
        contexts=ContextCounters((), np.zeros(0, np.uint64), no_counters),
        neighbours=Neighbours.empty(),
        click_prior=ClickPrior(rate=0.1, strength=20.0),
        lists=CandidateLists.empty(),
    )


def _largest_first(categories: np.ndarray, category_count: int) -> np.ndarray:
    return np.argsort(-np.bincount(categories, minlength=category_count), kind="stable").astype(np.int32)


def _updated_attributes(
    columns: Mapping[str, np.ndarray | TextColumn],
    changes: Mapping[str, Mapping[str, Any]],
    catalog: Catalog,
) -> Mapping[str, np.ndarray | TextColumn]:
    old_count = next((len(c.codes if isinstance(c, TextColumn) else c) for c in columns.values()), 0)
    if not changes and old_count == len(catalog):
        return columns
    positions = catalog.positions_of(changes)
    records = [record for record, position in zip(changes.values(), positions, strict=True) if position >= 0]
    positions = positions[positions >= 0]
    names = {name for record in records for name in record} | set(columns)
    return {
        name: _updated_attribute(
            columns.get(name), positions, [record.get(name) for record in records], len(catalog)
        )
        for name in sorted(names)
    }


def _updated_attribute(
    column: np.ndarray | TextColumn | None, positions: np.ndarray, values: Sequence[Any], row_count: int
) -> np.ndarray | TextColumn:
    if isinstance(column, TextColumn) or any(isinstance(value, str) for value in values):
        old = column if isinstance(column, TextColumn) else TextColumn(np.array([""]), np.zeros(0, np.int32))
        codes = {name: code for code, name in enumerate(old.names.tolist())}
        new_codes = [codes.setdefault(value or "", len(codes)) for value in values]
        return TextColumn(
            np.array(list(codes)), updated(old.codes, positions, new_codes, row_count, codes[""])
        )
    numbers = [np.nan if value is None else value for value in values]
    return updated(np.zeros(0) if column is None else column, positions, numbers, row_count, np.nan)


def _learn_click_prior(performance: CounterColumn) -> ClickPrior:
    clicks = performance.counts[:, EVENT_ROW[EventType.CLICK], -1].astype(np.float64)
    impressions = performance.counts[:, EVENT_ROW[EventType.IMPRESSION], -1].astype(np.float64)
    return ClickPrior(pooled_rate(clicks, impressions), learn_prior_strength(clicks, impressions))
