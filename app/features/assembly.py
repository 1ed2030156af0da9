"""Feature rows into the model's matrix: the one function that training and serving share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from app.domain.types import EventType
from app.features.fold import EVENT_ROW, decay_to
from app.features.rates import learn_prior_strength, pooled_rate, smoothed_rate
from app.features.rows import EMPTY_STRING, Rows
from app.features.schema import FeatureSchema, FieldKind, ViewSchema

SECONDS_PER_DAY = 86_400.0

# The rates of a counter view: name, and the event type that counts as a success.
RATES = (
    ("click_rate", EventType.CLICK),
    ("conversion_rate", EventType.CONVERSION),
    ("dismiss_rate", EventType.DISMISS),
)


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
    strength per counter view and rate name; `vocabularies` the known texts per "view.field".
    """

    schema: FeatureSchema
    half_lives_s: tuple[float, ...]
    base_rates: Mapping[str, float]
    prior_strengths: Mapping[str, Mapping[str, float]]
    vocabularies: Mapping[str, tuple[str, ...]]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the matrix columns, in order."""
        no_rows = {view.name: _empty_rows(view, len(self.half_lives_s)) for view in self.schema.views}
        return tuple(name for name, _ in self._columns(no_rows, 0.0))

    @cached_property
    def category_columns(self) -> tuple[str, ...]:
        """The columns that hold codes of texts, where only equality has a meaning."""
        return tuple(self.vocabularies)

    def assemble(self, rows: Mapping[str, Rows], now_s: float | np.ndarray, row_count: int) -> np.ndarray:
        """The matrix, float32 (row_count, columns).

        `rows` holds every view of the schema, with `row_count` rows or with one that stands for all.
        `now_s` is the moment to which counters decay, in seconds since the epoch: one for all rows, or
        float64 (row_count,). Missing numbers and unknown texts are NaN.
        """
        matrix = np.empty((row_count, len(self.columns)), dtype=np.float32, order="F")
        for position, (_, column) in enumerate(self._columns(rows, now_s)):
            matrix[:, position] = column
        return matrix

    def _columns(self, rows: Mapping[str, Rows], now_s) -> Iterator[tuple[str, np.ndarray]]:
        rates_of: dict[str, dict[str, np.ndarray]] = {}
        for view in self._parents_first():
            view_rows = rows[view.name]
            if view.has_counters:
                counts = decay_to(view_rows.counts, view_rows.as_of_s, now_s, np.asarray(self.half_lives_s))
                rates_of[view.name] = self._rates(view, counts, rates_of)
                yield from self._counter_columns(view, counts, rates_of[view.name])
                yield f"{view.name}.idle_days", _days_between(view_rows.as_of_s, now_s)
            for field in view.fields:
                name = f"{view.name}.{field.name}"
                if field.kind is FieldKind.NUMBER:
                    yield name, view_rows.values[field.name]
                elif field.kind is FieldKind.CATEGORY:
                    yield name, encode(view_rows.values[field.name], self.vocabularies[name])
                elif field.kind is FieldKind.TIME:
                    yield (
                        f"{view.name}.{field.name.removesuffix('_s')}_days",
                        _days_between(view_rows.values[field.name], now_s),
                    )

    def _parents_first(self) -> list[ViewSchema]:
        """The views, each after the one that its rates shrink towards."""

        def depth(view: ViewSchema) -> int:
            return 0 if view.prior_view is None else 1 + depth(self.schema.view(view.prior_view))

        return sorted(self.schema.views, key=depth)

    def _rates(self, view: ViewSchema, counts: np.ndarray, rates_of) -> dict[str, np.ndarray]:
        """Smoothed rates by name, float64 (n, half-lives)."""
        trials = counts[:, EVENT_ROW[EventType.IMPRESSION], :]
        return {
            name: smoothed_rate(
                counts[:, EVENT_ROW[success], :],
                trials,
                rates_of[view.prior_view][name] if view.prior_view else self.base_rates[name],
                self.prior_strengths[view.name][name],
            )
            for name, success in RATES
        }

    def _counter_columns(self, view: ViewSchema, counts: np.ndarray, rates: Mapping[str, np.ndarray]):
        """Volume and click rate for every half-life, rarer rates for the longest only."""
        last = len(self.half_lives_s) - 1
        for position, half_life_s in enumerate(self.half_lives_s):
            label = half_life_label(half_life_s)
            yield (
                f"{view.name}.log_impressions_{label}",
                np.log1p(counts[:, EVENT_ROW[EventType.IMPRESSION], position]),
            )
            for name, _ in RATES if position == last else RATES[:1]:
                yield f"{view.name}.{name}_{label}", rates[name][:, position]

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
        )


def learn_spec(
    schema: FeatureSchema,
    half_lives_s: Sequence[float],
    rows: Mapping[str, Rows],
    max_vocabulary: int = 64,
) -> MatrixSpec:
    """The spec whose constants are learned from sample rows (training data only).

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
    )


def encode(texts: np.ndarray, vocabulary: Sequence[str]) -> np.ndarray:
    """Position of each text in the sorted vocabulary as float64; NaN for any other text,
    and for a column in which nothing is known.

    >>> encode(np.array(["b", "x", ""]), ["a", "b"]).tolist()
    [1.0, nan, nan]
    """
    if not vocabulary or texts.dtype.kind != "U":
        return np.full(len(texts), np.nan)
    known = np.asarray(vocabulary)
    positions = np.minimum(np.searchsorted(known, texts), len(known) - 1)
    return np.where(known[positions] == texts, positions, np.nan)


def _days_between(then_s: np.ndarray, now_s) -> np.ndarray:
    return (now_s - then_s) / SECONDS_PER_DAY


def _distinct_states(rows: Rows) -> np.ndarray:
    """Longest-half-life counts (n, event types) of the distinct states in a sample of rows."""
    known = ~np.isnan(rows.as_of_s)
    return np.unique(rows.counts[known][:, :, -1], axis=0)


def _vocabulary(texts: np.ndarray, max_size: int) -> tuple[str, ...]:
    known, frequency = np.unique(texts[texts != EMPTY_STRING], return_counts=True)
    most_frequent = known[np.argsort(-frequency, kind="stable")[:max_size]]
    return tuple(sorted(most_frequent.tolist()))


def _empty_rows(view: ViewSchema, half_life_count: int) -> Rows:
    counts = np.zeros((0, len(EVENT_ROW), half_life_count)) if view.has_counters else None
    as_of_s = np.zeros(0) if view.has_counters else None
    values = {
        field.name: np.zeros(0, dtype=np.str_ if field.dtype == "String" else np.float64)
        for field in view.fields
    }
    return Rows(counts, as_of_s, values)
