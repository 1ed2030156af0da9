"""All versions of all propositions, and which of them could be seen at a moment."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.features.affinity import Traits
from app.features.columns import RaggedColumn
from app.features.rows import NUMBER_PREFIX, Rows
from app.features.schema import FeatureSchema, FieldKind, ViewSchema
from training.arrow_rows import TIMELINE_KINDS, traits_from_columns

UNKNOWN = -1
VERSION_SCHEMA = pa.schema(
    [
        ("proposition_id", pa.string()),
        ("event_us", pa.int64()),
        ("created_us", pa.int64()),
        ("traits", pa.list_(pa.string())),
        ("number_names", pa.list_(pa.string())),
        ("number_values", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Timeline:
    """v versions of propositions, each valid from its moment on: version i is row i of `traits`.

    `distinct_ids` are the propositions, `distinct_us` the moments, ascending. `keys` int64 (v,), ascending: the number
    of a version's proposition and that of its moment in one number.
    """

    distinct_ids: pa.Array
    distinct_us: np.ndarray
    keys: np.ndarray
    ttl_us: int
    traits: Traits

    def rows_at(self, proposition_ids: pa.Array, moments_us: np.ndarray) -> np.ndarray:
        """The newest version of each proposition (n,) at or before its moment, int64 (n,): a row of traits.

        -1 where there is none, or where it is older than the time to live.
        """
        if not len(self.keys):
            return np.full(len(proposition_ids), UNKNOWN)
        found = pc.index_in(proposition_ids, value_set=self.distinct_ids).fill_null(UNKNOWN)
        numbers = found.to_numpy(zero_copy_only=False).astype(np.int64)
        width = len(self.distinct_us)
        before = np.searchsorted(self.distinct_us, moments_us, side="right")
        rows = np.searchsorted(self.keys, numbers * width + before, side="left") - 1
        newest = self.keys[rows]
        is_known = (numbers >= 0) & (rows >= 0) & (newest // width == numbers)
        is_known &= self.distinct_us[newest % width] >= moments_us - self.ttl_us
        return np.where(is_known, rows, UNKNOWN)

    def with_numbers(self, rows: Rows, trait_rows: np.ndarray) -> Rows:
        """The rows of the catalog's view with a value per number that any proposition has, NaN where unknown."""
        columns = {
            NUMBER_PREFIX + name: np.where(trait_rows >= 0, numbers[trait_rows], np.nan)
            for name, numbers in self.traits.numbers.items()
        }
        return Rows(rows.counts, rows.as_of_s, {**rows.values, **columns})


def traits_view(schema: FeatureSchema) -> ViewSchema | None:
    """The view that says what propositions are like; None in a feature repo without one."""
    views = (view for view in schema.views if any(f.kind is FieldKind.TRAITS for f in view.fields))
    return next(views, None)


def timeline_fields(view: ViewSchema) -> list[str]:
    """The names of the view's traits, of the names of its numbers and of the numbers."""
    return [next(f.name for f in view.fields if f.kind is kind) for kind in TIMELINE_KINDS]


def timeline_of(view: ViewSchema, versions: pa.Table) -> Timeline:
    """From all versions that were ever written, in the columns of VERSION_SCHEMA."""
    # Of two versions of one moment the one that was written last counts: the last of equal keys is found.
    order = [(name, "ascending") for name in VERSION_SCHEMA.names[:3]]
    versions = versions.take(pc.sort_indices(versions, sort_keys=order))
    ids, moments = versions["proposition_id"], versions["event_us"].to_numpy()
    distinct_ids, (distinct_us, moment_numbers) = ids.unique(), np.unique(moments, return_inverse=True)
    numbers = pc.index_in(ids, value_set=distinct_ids).to_numpy().astype(np.int64)
    return Timeline(
        distinct_ids=distinct_ids,
        distinct_us=distinct_us,
        keys=numbers * len(distinct_us) + moment_numbers,
        ttl_us=round(view.ttl_s * 1_000_000),
        traits=traits_from_columns(*(versions[name] for name in VERSION_SCHEMA.names[3:])),
    )


NO_TIMELINE = Timeline(
    pa.array([], pa.string()),
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
    0,
    Traits(RaggedColumn.empty(np.int32), 0, {}),
)
