"""Feature rows as columns: what stores return and what assembly reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, FieldKind, ViewSchema

EMPTY_STRING = ""
# Before the names of numbers that only some propositions have, among the values of their rows.
NUMBER_PREFIX = "numbers."


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows of one feature view.

    `counts` is float64 (n, event types, half-lives) with `as_of_s` float64 (n,), or None for a view
    without counters: zeros and NaN where an entity has no row. `values` has a float64 or str array
    (n,) per other field: NaN and "" where there is no value; for a field of arrays an object array of
    tuples, () where there is none.
    """

    counts: np.ndarray | None
    as_of_s: np.ndarray | None
    values: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())) if self.as_of_s is None else self.as_of_s)

    def take(self, indices: np.ndarray) -> "Rows":
        """The rows at `indices` (int array), in that order."""
        return Rows(
            counts=None if self.counts is None else self.counts[indices],
            as_of_s=None if self.as_of_s is None else self.as_of_s[indices],
            values={name: column[indices] for name, column in self.values.items()},
        )

    def followed_by(self, others: "Rows") -> "Rows":
        """These rows and then those of `others`, of the same view."""
        return Rows(
            counts=None if self.counts is None else np.concatenate([self.counts, others.counts]),
            as_of_s=None if self.as_of_s is None else np.concatenate([self.as_of_s, others.as_of_s]),
            values={n: np.concatenate([column, others.values[n]]) for n, column in self.values.items()},
        )

    def without_older_than(self, moment_s: float) -> "Rows":
        """Counters that nothing was added to since `moment_s` (seconds since the epoch) read as no row."""
        is_expired = self.as_of_s < moment_s
        return Rows(
            counts=np.where(is_expired[:, None, None], 0.0, self.counts),
            as_of_s=np.where(is_expired, np.nan, self.as_of_s),
            values=self.values,
        )


def rows_from_columns(
    view: ViewSchema, columns: Mapping[str, Sequence[Any]], row_count: int, half_life_count: int
) -> Rows:
    """Rows of a view from one sequence per field, each with `row_count` values (None: no value)."""
    counts = as_of_s = None
    if view.has_counters:
        counts = np.zeros((row_count, len(COUNTER_FIELDS), half_life_count))
        for position, name in enumerate(COUNTER_FIELDS):
            _fill_arrays(counts[:, position, :], columns[name])
        as_of_s = _as_floats(columns[AS_OF_FIELD])
    values = {
        field.name: column(field.dtype, columns[field.name])
        for field in view.fields
        if field.kind is not FieldKind.COUNTER
    }
    return Rows(counts, as_of_s, values)


def column(dtype: str, values: Sequence[Any]) -> np.ndarray:
    """The values (None: no value) of a field of Feast's type `dtype`, as in `Rows.values`."""
    if dtype == "String":
        return _as_strings(values)
    return _as_tuples(values) if dtype.startswith("Array(") else _as_floats(values)


def rows_from_records(
    view: ViewSchema, records: Sequence[Mapping[str, Any] | None], half_life_count: int
) -> Rows:
    """Rows of a view from one mapping per entity (None: no row)."""
    columns = {
        name: [None if record is None else record.get(name) for record in records]
        for name in view.field_names
    }
    return rows_from_columns(view, columns, len(records), half_life_count)


def _fill_arrays(target: np.ndarray, arrays: Sequence[Any]) -> None:
    """Writes one array per row; a row without one, or of another number of half-lives, stays zero."""
    for row, array in enumerate(arrays):
        if array is not None and len(array) == target.shape[1]:
            target[row] = array


def _as_floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _as_strings(values: Sequence[Any]) -> np.ndarray:
    return np.array([EMPTY_STRING if value is None else value for value in values], dtype=np.str_)


def _as_tuples(values: Sequence[Any]) -> np.ndarray:
    tuples = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        tuples[row] = () if value is None else tuple(value)
    return tuples
