"""Which columns of the matrix a model gets: not those that tell its trees nothing that another column does not tell.

A tree reads the order of a column and nothing else, so what matters is which pairs of impressions a column orders, and how.
A column that orders them as another one does only takes that one's place where trees draw columns at random, and each
column more is one more chance to believe in noise. Left out are

- columns with one value,
- rates of outcomes that never happened, which are volumes in other words,
- the clock: columns that order impressions as time does. No later slate has values that they had before,
- columns that agree with one that is kept on nearly all pairs that they order at all. Coarser ones, and copies,
- the trend between two rates that agree: what is left of it is noise.

Which of two equals is kept: that of the view from which the other one's rates come, and of the longest half-life.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from app.features.assembly import RATES, TREND, MatrixSpec, half_life_label, learn_spec
from app.features.fold import EVENT_ROW
from app.features.schema import FeatureSchema
from training.dataset import Dataset
from training.matrix import matrix

# Columns agree if, of the pairs that one orders, the share that the other orders alike exceeds the share that it orders
# otherwise by this: 97.5 % against 2.5 %.
AGREEMENT = 0.95
# Of so many pairs of impressions, from slates with so many impressions in all.
PAIRS, SAMPLED_ROWS = 20_000, 50_000
# A column that orders fewer of them is rare: it may agree with any other one by chance, and is kept.
MIN_ORDERED_PAIRS = 50
# Beside the columns.
_CLOCK = ""


def learn_columns(schema: FeatureSchema, half_lives_s: Sequence[float], dataset: Dataset) -> MatrixSpec:
    """The spec of a model, with constants and columns learned from slates (to fit on only); the same ones give the same."""
    spec = learn_spec(schema, half_lives_s, dataset.rows)
    return replace(spec, dropped=needless_columns(spec, dataset))


def needless_columns(spec: MatrixSpec, dataset: Dataset) -> tuple[str, ...]:
    """The columns of `spec` that are left out, see above, in their order.

    What compares a user with a candidate is one block and kept as it is. Codes of texts have no order: they are left out
    only if all are equal.
    """
    sample = _sample(dataset)
    agreements = _Agreements(spec.columns, matrix(spec, sample), _moments_s(sample))
    block = {name for view in spec.views if view.has_history for name in spec.all_columns[view.name]}
    never = set(_rates_of_nothing(spec, sample))
    kept, compared = set(block), [_CLOCK]
    for name in _best_first(spec):
        if name in block | never or not agreements.varies(name) or _is_noise(name, spec, agreements):
            continue
        if name in spec.vocabularies:
            kept.add(name)
        elif not any(agreements.is_known_from(name, other) for other in compared):
            kept.add(name)
            compared.append(name)
    return tuple(name for name in spec.columns if name not in kept)


class _Agreements:
    """How columns order random pairs of impressions; what is not known comes before everything."""

    def __init__(self, names: Sequence[str], rows: np.ndarray, moments_s: np.ndarray) -> None:
        values = np.column_stack([np.where(np.isnan(rows), -np.inf, rows), moments_s])
        one, other = np.random.default_rng(0).integers(len(values), size=(2, PAIRS))
        # float32 holds sums of so many ones exactly.
        orders = (values[one] > values[other]).astype(np.float32) - (values[one] < values[other])
        self._place_of = {name: place for place, name in enumerate((*names, _CLOCK))}
        self._varies = (values != values[:1]).any(axis=0)
        self._ordered_counts = np.abs(orders).sum(axis=0)
        self._surplus = np.abs(orders.T @ orders)

    def varies(self, name: str) -> bool:
        return bool(self._varies[self._place_of[name]])

    def is_known_from(self, name: str, other: str) -> bool:
        """True if `other` orders alike, or in reverse, nearly all the pairs that `name` orders."""
        place = self._place_of[name]
        ordered_count = self._ordered_counts[place]
        surplus = self._surplus[place, self._place_of[other]]
        return bool(ordered_count >= MIN_ORDERED_PAIRS and surplus >= AGREEMENT * ordered_count)


def _sample(dataset: Dataset) -> Dataset:
    """Slates at equal distances, about as many as hold SAMPLED_ROWS impressions."""
    count = max(1, min(dataset.slate_count, dataset.slate_count * SAMPLED_ROWS // max(len(dataset), 1)))
    return dataset.select(np.linspace(0, dataset.slate_count - 1, count).astype(np.int64))


def _moments_s(dataset: Dataset) -> np.ndarray:
    return dataset.slates.decided_at_s[dataset.slate_of_row]


def _best_first(spec: MatrixSpec) -> Iterator[str]:
    """All columns: view by view, those of the longest half-life first and those of none last."""
    labels = [f"_{half_life_label(half_life_s)}" for half_life_s in reversed(spec.half_lives_s)]

    def place(name: str) -> int:
        return next((place for place, label in enumerate(labels) if name.endswith(label)), len(labels))

    for view in spec.views:
        columns = spec.all_columns[view.name]
        yield from sorted(columns, key=place) if view.has_counters else columns


def _rates_of_nothing(spec: MatrixSpec, dataset: Dataset) -> Iterator[str]:
    for view in spec.views:
        for rate, outcome in RATES if view.has_counters else ():
            if not dataset.rows[view.name].counts[:, EVENT_ROW[outcome]].any():
                yield from (n for n in spec.all_columns[view.name] if n.startswith(f"{view.name}.{rate}_"))


def _is_noise(name: str, spec: MatrixSpec, agreements: _Agreements) -> bool:
    """True for the trend between two rates that agree."""
    if not name.endswith(TREND):
        return False
    shortest, longest = (
        f"{name.removesuffix(TREND)}_{half_life_label(spec.half_lives_s[end])}" for end in (0, -1)
    )
    return agreements.is_known_from(shortest, longest)
