"""What a worker knows about candidates without asking anyone: the catalog and its counters in memory.

A snapshot never changes. `with_changes` makes the next one and shares what stayed the same, so that a
refresh costs as much as there is news, and a request keeps the snapshot it began with.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from app.domain.catalog import Catalog
from app.domain.context import KEY_SEPARATOR
from app.domain.types import EventType, Proposition
from app.features.fold import EVENT_ROW, Counters, decay_to
from app.features.rates import learn_prior_strength, pooled_rate, smoothed_rate
from app.features.rows import Rows


@dataclass(frozen=True, slots=True)
class SnapshotVersion:
    """How much of the stores a snapshot holds.

    `generation` names the database and the last rebuild of its counters; the times say up to which commit of the catalog and of
    the projector's rows it has read.
    """

    generation: str | None
    catalog_at: datetime | None
    counters_at: datetime | None


@dataclass(frozen=True, slots=True)
class SnapshotChanges:
    """News since a version. `attributes` are the model's catalog fields per proposition id."""

    version: SnapshotVersion
    propositions: Sequence[Proposition]
    attributes: Mapping[str, Mapping[str, Any]]
    performance: Mapping[str, Counters]
    context_performance: Mapping[str, Counters]


@dataclass(frozen=True, slots=True)
class ContextCounters:
    """The counters of the candidates that have any in one context: positions ascending, int64."""

    positions: np.ndarray
    rows: Rows


@dataclass(frozen=True, slots=True)
class ClickPrior:
    rate: float
    strength: float


@dataclass(frozen=True)
class Snapshot:
    version: SnapshotVersion
    half_lives_s: tuple[float, ...]
    catalog: Catalog
    attributes: Rows
    performance: Rows
    contexts: Mapping[str, ContextCounters]
    click_prior: ClickPrior

    def attribute_rows(self, names: Iterable[str], positions: np.ndarray) -> Rows:
        """Catalog fields of the candidates at `positions`; NaN for a field that no proposition has."""
        unknown = np.full(len(positions), np.nan)
        known = self.attributes.values
        return Rows(None, None, {n: known[n][positions] if n in known else unknown for n in names})

    def context_performance(self, context_key: str, positions: np.ndarray) -> Rows:
        """Counters of the candidates at `positions` in one context: zeros where there are none."""
        rows = no_counters(len(positions), len(self.half_lives_s))
        known = self.contexts.get(context_key)
        if known is not None and len(known.positions):
            found = np.minimum(np.searchsorted(known.positions, positions), len(known.positions) - 1)
            here = known.positions[found] == positions
            rows.counts[here] = known.rows.counts[found[here]]
            rows.as_of_s[here] = known.rows.as_of_s[found[here]]
        return rows

    def click_rates(
        self, context_key: str, positions: np.ndarray, now_s: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Smoothed click rates over the longest half-life, float64 (n,): everywhere, and in one context."""
        everywhere = self._smoothed(self.performance.take(positions), self.click_prior.rate, now_s)
        return everywhere, self._smoothed(self.context_performance(context_key, positions), everywhere, now_s)

    def _smoothed(self, rows: Rows, prior_rate, now_s: float) -> np.ndarray:
        counts = decay_to(rows.counts, rows.as_of_s, now_s, np.asarray(self.half_lives_s))[:, :, -1]
        return smoothed_rate(
            counts[:, EVENT_ROW[EventType.CLICK]],
            counts[:, EVENT_ROW[EventType.IMPRESSION]],
            prior_rate,
            self.click_prior.strength,
        )

    def with_changes(self, changes: SnapshotChanges) -> "Snapshot":
        """The next snapshot. Known propositions keep their positions; new ones are appended."""
        catalog = self.catalog
        if changes.propositions:
            current = {p.proposition_id: p for p in catalog.propositions}
            current.update({p.proposition_id: p for p in changes.propositions})
            catalog = Catalog(list(current.values()))
        performance = _updated(self.performance, changes.performance, catalog.index, len(catalog))
        return replace(
            self,
            version=changes.version,
            catalog=catalog,
            attributes=_updated_attributes(self.attributes, changes.attributes, catalog),
            performance=performance,
            contexts=_updated_contexts(
                self.contexts, changes.context_performance, catalog.index, len(self.half_lives_s)
            ),
            click_prior=_learn_click_prior(performance),
        )


def empty_snapshot(half_lives_s: Sequence[float]) -> Snapshot:
    return Snapshot(
        version=SnapshotVersion(generation=None, catalog_at=None, counters_at=None),
        half_lives_s=tuple(half_lives_s),
        catalog=Catalog(()),
        attributes=Rows(None, None, {}),
        performance=no_counters(0, len(half_lives_s)),
        contexts={},
        click_prior=ClickPrior(rate=0.1, strength=20.0),
    )


def no_counters(row_count: int, half_life_count: int) -> Rows:
    counts = np.zeros((row_count, len(EVENT_ROW), half_life_count))
    return Rows(counts, np.full(row_count, np.nan), {})


def _updated(rows: Rows, changes: Mapping[str, Counters], index: Mapping[str, int], row_count: int) -> Rows:
    """A copy of `rows`, grown to `row_count`, with the changed counters written in."""
    updated = no_counters(row_count, rows.counts.shape[2])
    updated.counts[: len(rows.counts)] = rows.counts
    updated.as_of_s[: len(rows.as_of_s)] = rows.as_of_s
    for key, counters in changes.items():
        position = index.get(key)
        if position is not None and counters.counts.shape == updated.counts.shape[1:]:
            updated.counts[position] = counters.counts
            updated.as_of_s[position] = counters.as_of_s
    return updated


def _updated_attributes(rows: Rows, changes: Mapping[str, Mapping[str, Any]], catalog: Catalog) -> Rows:
    old_count = len(next(iter(rows.values.values()), ()))
    if not changes and old_count == len(catalog):
        return rows
    values = {}
    for name in {name for record in changes.values() for name in record} | set(rows.values):
        is_text = any(isinstance(record.get(name), str) for record in changes.values()) or (
            name in rows.values and rows.values[name].dtype.kind == "U"
        )
        column: list[Any] = list(rows.values[name]) if name in rows.values else [None] * old_count
        column += [None] * (len(catalog) - old_count)
        for key, record in changes.items():
            if key in catalog.index and name in record:
                column[catalog.index[key]] = record[name]
        values[name] = np.array(
            [("" if is_text else np.nan) if value is None else value for value in column],
            dtype=np.str_ if is_text else np.float64,
        )
    return Rows(None, None, values)


def _updated_contexts(
    contexts: Mapping[str, ContextCounters],
    changes: Mapping[str, Counters],
    index: Mapping[str, int],
    half_life_count: int,
) -> Mapping[str, ContextCounters]:
    if not changes:
        return contexts
    by_context: dict[str, dict[int, Counters]] = {}
    for key, counters in changes.items():
        context_key, _, proposition_id = key.rpartition(KEY_SEPARATOR)
        if proposition_id in index and counters.counts.shape[1] == half_life_count:
            by_context.setdefault(context_key, {})[index[proposition_id]] = counters
    return {
        **contexts,
        **{
            context_key: _merged(contexts.get(context_key), changed, half_life_count)
            for context_key, changed in by_context.items()
        },
    }


def _merged(
    known: ContextCounters | None, changed: Mapping[int, Counters], half_life_count: int
) -> ContextCounters:
    positions = np.array(sorted(changed), dtype=np.int64)
    if known is not None:
        positions = np.union1d(known.positions, positions)
    rows = no_counters(len(positions), half_life_count)
    if known is not None:
        kept = np.searchsorted(positions, known.positions)
        rows.counts[kept] = known.rows.counts
        rows.as_of_s[kept] = known.rows.as_of_s
    for position, counters in changed.items():
        row = int(np.searchsorted(positions, position))
        rows.counts[row] = counters.counts
        rows.as_of_s[row] = counters.as_of_s
    return ContextCounters(positions, rows)


def _learn_click_prior(performance: Rows) -> ClickPrior:
    clicks = performance.counts[:, EVENT_ROW[EventType.CLICK], -1]
    impressions = performance.counts[:, EVENT_ROW[EventType.IMPRESSION], -1]
    return ClickPrior(pooled_rate(clicks, impressions), learn_prior_strength(clicks, impressions))
