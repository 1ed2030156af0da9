"""Feature rows into the model's matrix: the one function that training and serving share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from app.domain.types import EventType
from app.features import kernels
from app.features.affinity import PAIR_COLUMNS, Affinity, Traits, learn_ranks
from app.features.fold import EVENT_ROW, decay_to
from app.features.rates import learn_prior_strength, pooled_rate, smoothed_rate
from app.features.rows import EMPTY_STRING, NUMBER_PREFIX, Rows
from app.features.schema import EntityName, FeatureSchema, FieldKind, FieldSchema, ViewSchema

SECONDS_PER_DAY = 86_400.0
SECONDS_PER_HOUR = 3_600.0

# The rates of a counter view: name, and the event type that counts as a success.
RATES = (
    ("click_rate", EventType.CLICK),
    ("conversion_rate", EventType.CONVERSION),
    ("dismiss_rate", EventType.DISMISS),
)
# After the name of a rate: how it has changed.
TREND = "_trend"

# Kinds of fields that fill no column by themselves.
_NO_COLUMN = (FieldKind.COUNTER, FieldKind.IDS, FieldKind.TRAITS, FieldKind.NUMBER_VALUES)
# The entities that are the same for every candidate of a request.
REQUEST_ENTITIES = (EntityName.USER, EntityName.CONTEXT)

# Where trials and successes lie in a counter array, in the order of RATES.
_TRIALS = slice(EVENT_ROW[EventType.IMPRESSION], EVENT_ROW[EventType.IMPRESSION] + 1)
_SUCCESSES = slice(EVENT_ROW[RATES[0][1]], EVENT_ROW[RATES[-1][1]] + 1)


def half_life_label(half_life_s: float) -> str:
    """A half-life as people write it.

    >>> [half_life_label(s) for s in (90.0, 3600.0, 604800.0)]
    ['90s', '1h', '7d']
    """
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if half_life_s % unit_s == 0:
            return f"{half_life_s / unit_s:g}{unit}"
    return f"{half_life_s:g}s"


@dataclass(frozen=True)
class MatrixSpec:
    """Which columns a model reads, in which order, and the constants that their values depend on.

    `base_rates` are the pooled rates of the training data by rate name; `prior_strengths` the learned
    strength per counter view and rate name; `vocabularies` the known texts per "view.field"; `ranks` the points of the
    distribution of each number of propositions that is read. `dropped` names the columns that the model does without.
    """

    schema: FeatureSchema
    half_lives_s: tuple[float, ...]
    base_rates: Mapping[str, float]
    prior_strengths: Mapping[str, Mapping[str, float]]
    vocabularies: Mapping[str, tuple[str, ...]]
    ranks: Mapping[str, tuple[float, ...]]
    dropped: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the matrix columns, in order."""
        return tuple(name for view in self.views for name in self._kept_columns(view))

    @cached_property
    def columns_of(self) -> Mapping[str, range]:
        """The columns that a view's block fills, by the name of the view."""
        ranges, first = {}, 0
        for view in self.views:
            width = len(self._kept_columns(view))
            ranges[view.name] = range(first, first + width)
            first += width
        return ranges

    @cached_property
    def category_columns(self) -> tuple[str, ...]:
        """The columns that hold codes of texts, where only equality has a meaning."""
        return tuple(name for name in self.vocabularies if name not in self.dropped)

    @cached_property
    def views(self) -> tuple[ViewSchema, ...]:
        """The views, each after the one that its rates shrink towards: the order of the blocks."""

        def depth(view: ViewSchema) -> int:
            return 0 if view.prior_view is None else 1 + depth(self.schema.view(view.prior_view))

        return tuple(sorted(self.schema.views, key=depth))

    def assemble(
        self,
        rows: Mapping[str, Rows],
        now_s: float | np.ndarray,
        row_count: int,
        pairs: np.ndarray | None = None,
        group_of_row: np.ndarray | None = None,
    ) -> np.ndarray:
        """The matrix, float32 (row_count, columns).

        `rows` holds every view of the schema, with `row_count` rows or with one that stands for all.
        `now_s` is the moment to which counters decay, in seconds since the epoch: one for all rows, or
        float64 (row_count,). `pairs` are the columns of user and candidate, see `affinity`; None: nothing is known.
        Missing numbers and unknown texts are NaN.

        With `group_of_row` int64 (row_count,) the views of REQUEST_ENTITIES have a row, and `now_s` a moment, per group.
        """
        matrix = np.empty((row_count, len(self.columns)), dtype=np.float32, order="F")
        rates: dict[str, np.ndarray | None] = {}
        for view in self.views:
            columns = self.columns_of[view.name]
            if view.has_history:
                block = np.float32(np.nan) if pairs is None else pairs
            elif group_of_row is None:
                block, rates[view.name] = self.block(view, rows[view.name], now_s, rates.get(view.prior_view))
            elif view.entity in REQUEST_ENTITIES:
                block, of_groups = self.block(view, rows[view.name], now_s, rates.get(view.prior_view))
                block = block[group_of_row]
                rates[view.name] = None if of_groups is None else of_groups[group_of_row]
            else:
                prior = rates.get(view.prior_view)
                block, rates[view.name] = self.block(view, rows[view.name], now_s[group_of_row], prior)
            matrix[:, columns.start : columns.stop] = block
        return matrix

    def affinity(self, traits: Traits) -> Affinity:
        """What compares users with propositions that have these traits: its columns are those of the pairs."""
        return Affinity(traits, self.base_rates[RATES[0][0]], self.ranks)

    def block(
        self, view: ViewSchema, rows: Rows, now_s: float | np.ndarray, prior_rates: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The columns of one view, float32 (n, k), and for a counter view its rates (n, rates, half-lives).

        `prior_rates` are the rates of the view's prior view, with n rows or one; None where it has none.
        """
        if view.name not in self._read_views:
            return np.empty((len(rows), 0), dtype=np.float32), None
        block, rates = self._whole_block(view, rows, now_s, prior_rates)
        kept = self._kept_places[view.name]
        return (block if len(kept) == block.shape[1] else block.take(kept, axis=1)), rates

    def _whole_block(
        self, view: ViewSchema, rows: Rows, now_s: float | np.ndarray, prior_rates: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As `block`, with all columns of the view."""
        block = np.empty((len(rows), len(self.all_columns[view.name])), dtype=np.float32)
        rates, filled = None, 0
        if view.has_counters:
            rates, filled = self._fill_counters(block, view, rows, now_s, prior_rates)
        for field in self._column_fields[view.name]:
            if field.kind is FieldKind.NUMBER_NAMES:
                for name in self.ranks:
                    block[:, filled] = rows.values.get(NUMBER_PREFIX + name, np.nan)
                    filled += 1
                continue
            if field.kind is FieldKind.NUMBER:
                column = rows.values[field.name]
            elif field.kind is FieldKind.CATEGORY:
                column = encode(rows.values[field.name], self._codes[f"{view.name}.{field.name}"])
            else:
                column = np.floor((now_s - rows.values[field.name]) / SECONDS_PER_DAY)
            block[:, filled] = column
            filled += 1
        return block, rates

    def _fill_counters(self, block, view: ViewSchema, rows: Rows, now_s, prior_rates):
        """Volume and click rate for every half-life, rarer rates for the longest only, the click rate's trend, time since."""
        half_life_count = len(self.half_lives_s)
        last = 2 * half_life_count
        if kernels.compiled is not None:
            rates = np.empty((len(rows), len(RATES), half_life_count))
            kernels.compiled.counter_columns(
                rows.counts,
                rows.as_of_s,
                np.ascontiguousarray(now_s, np.float64).reshape(-1),
                self._half_lives,
                self._base_rates if prior_rates is None else prior_rates,
                self._strengths[view.name],
                _TRIALS.start,
                _SUCCESSES.start,
                block,
                rates,
            )
            return rates, last + len(RATES) + 1
        counts = decay_to(rows.counts, rows.as_of_s, now_s, self._half_lives)
        rates = self._smoothed(view, counts, prior_rates)
        block[:, 0:last:2] = np.log1p(counts[:, _TRIALS.start, :])
        block[:, 1:last:2] = rates[:, 0, :]
        block[:, last : last + len(RATES) - 1] = rates[:, 1:, -1]
        block[:, last + len(RATES) - 1] = np.log(rates[:, 0, 0] / rates[:, 0, -1])
        block[:, last + len(RATES)] = recency(rows.as_of_s, now_s)
        return rates, last + len(RATES) + 1

    def rates(
        self, view: ViewSchema, rows: Rows, now_s: float | np.ndarray, prior_rates: np.ndarray | None
    ) -> np.ndarray:
        """The smoothed rates of a counter view, float64 (n, rates, half-lives), as `block` has them."""
        return self._smoothed(view, decay_to(rows.counts, rows.as_of_s, now_s, self._half_lives), prior_rates)

    def _smoothed(self, view: ViewSchema, counts: np.ndarray, prior_rates: np.ndarray | None) -> np.ndarray:
        return smoothed_rate(
            counts[:, _SUCCESSES, :],
            counts[:, _TRIALS, :],
            self._base_rates if prior_rates is None else prior_rates,
            self._strengths[view.name][:, None],
        )

    @cached_property
    def _half_lives(self) -> np.ndarray:
        return np.asarray(self.half_lives_s, dtype=np.float64)

    @cached_property
    def _column_fields(self) -> Mapping[str, tuple[FieldSchema, ...]]:
        """By view, its fields that fill columns, but for counters."""
        return {
            view.name: tuple(field for field in view.fields if field.kind not in _NO_COLUMN)
            for view in self.views
        }

    @cached_property
    def _codes(self) -> Mapping[str, Mapping[str, float]]:
        return {name: codes_of(texts) for name, texts in self.vocabularies.items()}

    @cached_property
    def _base_rates(self) -> np.ndarray:
        """(1, rates, half-lives)."""
        rates = np.array([self.base_rates[name] for name, _ in RATES], np.float64)
        return np.tile(rates[None, :, None], (1, 1, len(self.half_lives_s)))

    @cached_property
    def _strengths(self) -> Mapping[str, np.ndarray]:
        return {
            view: np.array([strengths[name] for name, _ in RATES], np.float64)
            for view, strengths in self.prior_strengths.items()
        }

    @cached_property
    def _read_views(self) -> frozenset[str]:
        """Of the other views neither the model nor the rates of another view need anything."""
        priors = {view.prior_view for view in self.views}
        return frozenset(v.name for v in self.views if len(self._kept_places[v.name]) or v.name in priors)

    @cached_property
    def _kept_places(self) -> Mapping[str, np.ndarray]:
        """By view, which of all its columns are kept, intp ascending."""
        return {
            view: np.flatnonzero(~np.isin(columns, self.dropped))
            for view, columns in self.all_columns.items()
        }

    @cached_property
    def all_columns(self) -> Mapping[str, tuple[str, ...]]:
        """By view, the names of its columns, dropped or not."""
        return {view.name: tuple(self._view_columns(view)) for view in self.views}

    def _kept_columns(self, view: ViewSchema) -> list[str]:
        return [name for name in self.all_columns[view.name] if name not in self.dropped]

    def _view_columns(self, view: ViewSchema) -> list[str]:
        names = []
        if view.has_counters:
            labels = [half_life_label(half_life_s) for half_life_s in self.half_lives_s]
            first, *rarer = (name for name, _ in RATES)
            for label in labels:
                names += [f"log_impressions_{label}", f"{first}_{label}"]
            names += [f"{name}_{labels[-1]}" for name in rarer] + [f"{first}{TREND}", "idle"]
        if view.has_history:
            return [f"{view.name}.{name}" for name in PAIR_COLUMNS]
        for field in view.fields:
            if field.kind is FieldKind.TIME:
                names.append(f"{field.name.removesuffix('_s')}_days")
            elif field.kind is FieldKind.NUMBER_NAMES:
                names += [NUMBER_PREFIX + name for name in self.ranks]
            elif field.kind not in _NO_COLUMN:
                names.append(field.name)
        return [f"{view.name}.{name}" for name in names]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "MatrixSpec":
        return cls(
            schema=FeatureSchema.from_json(data["schema"]),
            half_lives_s=tuple(data["half_lives_s"]),
            base_rates=data["base_rates"],
            prior_strengths=data["prior_strengths"],
            vocabularies={name: tuple(texts) for name, texts in data["vocabularies"].items()},
            ranks={name: tuple(points) for name, points in data["ranks"].items()},
            dropped=tuple(data.get("dropped", ())),
        )


def learn_spec(
    schema: FeatureSchema,
    half_lives_s: Sequence[float],
    rows: Mapping[str, Rows],
    max_vocabulary: int = 64,
    max_numbers: int = 32,
) -> MatrixSpec:
    """The spec whose constants are learned from sample rows (training data only).

    Of the numbers of propositions it reads the `max_numbers` that most rows have, if they differ at all.

    Base rates and strengths come from the longest half-life's counters, one sample per distinct
    entity state; vocabularies hold the `max_vocabulary` most frequent texts, sorted.
    """
    counter_views = [view for view in schema.views if view.has_counters]
    longest = {view.name: _distinct_states(rows[view.name]) for view in counter_views}
    impressions = EVENT_ROW[EventType.IMPRESSION]
    roots = [longest[view.name] for view in counter_views if view.prior_view is None]
    return MatrixSpec(
        schema=schema,
        half_lives_s=tuple(half_lives_s),
        base_rates={
            name: pooled_rate(
                np.concatenate([counts[:, EVENT_ROW[success]] for counts in roots]),
                np.concatenate([counts[:, impressions] for counts in roots]),
            )
            for name, success in RATES
        },
        prior_strengths={
            view.name: {
                name: learn_prior_strength(
                    longest[view.name][:, EVENT_ROW[success]], longest[view.name][:, impressions]
                )
                for name, success in RATES
            }
            for view in counter_views
        },
        vocabularies={
            f"{view.name}.{field.name}": _vocabulary(rows[view.name].values[field.name], max_vocabulary)
            for view in schema.views
            for field in view.fields
            if field.kind is FieldKind.CATEGORY
        },
        ranks=_ranks(rows, max_numbers),
    )


def codes_of(vocabulary: Sequence[str]) -> Mapping[str, float]:
    return {text: float(position) for position, text in enumerate(vocabulary)}


def encode(texts: np.ndarray, codes: Mapping[str, float]) -> np.ndarray:
    """The code of each text as float64; NaN for any other, and for a column in which nothing is known.

    >>> encode(np.array(["b", "x", ""]), codes_of(["a", "b"])).tolist()
    [1.0, nan, nan]
    """
    return np.array([codes.get(text, np.nan) for text in texts.tolist()], dtype=np.float64)


def recency(then_s: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
    """How long ago something happened, from 0 for less than an hour, and one more each time that is about doubled.

    Coarse on purpose: the seconds between two events of a session say how fast somebody clicks, and a model that is shown
    them believes in them (RankLens: NDCG@10 0.6171 instead of 0.6191 on later slates of the training part).

    >>> recency(np.array([0.0, 3_599.0, 3_600.0, 86_400.0, np.nan]), 86_400.0).tolist()
    [4.0, 4.0, 4.0, 0.0, nan]
    """
    return np.floor(np.log2(1.0 + np.fmax(now_s - then_s, 0.0) / SECONDS_PER_HOUR) + 0.0 * then_s)


def _distinct_states(rows: Rows) -> np.ndarray:
    """Longest-half-life counts (n, event types) of the distinct states in a sample of rows."""
    known = ~np.isnan(rows.as_of_s)
    return np.unique(rows.counts[known][:, :, -1], axis=0)


def _ranks(rows: Mapping[str, Rows], max_numbers: int) -> dict[str, tuple[float, ...]]:
    numbers = {
        name.removeprefix(NUMBER_PREFIX): values
        for view_rows in rows.values()
        for name, values in view_rows.values.items()
        if name.startswith(NUMBER_PREFIX)
    }
    most_known = sorted(numbers, key=lambda name: (np.isnan(numbers[name]).sum(), name))[:max_numbers]
    ranks = {name: learn_ranks(numbers[name]) for name in sorted(most_known)}
    return {name: points for name, points in ranks.items() if points}


def _vocabulary(texts: np.ndarray, max_size: int) -> tuple[str, ...]:
    known, frequency = np.unique(texts[texts != EMPTY_STRING], return_counts=True)
    most_frequent = known[np.argsort(-frequency, kind="stable")[:max_size]]
    return tuple(sorted(most_frequent.tolist()))
