"""Columns of Arrow, as databases return them, into the rows and traits that assembly reads; no Python object per number."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.features.affinity import Traits
from app.features.columns import RaggedColumn
from app.features.rows import EMPTY_STRING, Rows
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, FieldKind, ViewSchema

# Of propositions: known from all of their versions instead of from a column of the join.
TIMELINE_KINDS = (FieldKind.TRAITS, FieldKind.NUMBER_NAMES, FieldKind.NUMBER_VALUES)


def joined_fields(view: ViewSchema) -> tuple[str, ...]:
    """The fields of a view that a join has to find."""
    return tuple(field.name for field in view.fields if field.kind not in TIMELINE_KINDS)


def joined_column(view: ViewSchema, field: str) -> str:
    """The name of a field among the columns of a join, as Feast gives it."""
    return f"{view.name}__{field}"


def rows_from_table(view: ViewSchema, table: pa.Table, half_life_count: int) -> Rows:
    """The rows of a view from the columns of a join; null where an entity has no row."""
    counts = as_of_s = None
    if view.has_counters:
        counts = np.empty((table.num_rows, len(COUNTER_FIELDS), half_life_count))
        for position, name in enumerate(COUNTER_FIELDS):
            counts[:, position, :] = arrays(table[joined_column(view, name)], half_life_count)
        as_of_s = floats(table[joined_column(view, AS_OF_FIELD)])
    values = {
        field.name: values_of(field.dtype, table[joined_column(view, field.name)])
        for field in view.fields
        if field.kind not in (FieldKind.COUNTER, *TIMELINE_KINDS)
    }
    return Rows(counts, as_of_s, values)


def values_of(dtype: str, column: pa.ChunkedArray) -> np.ndarray:
    """The values of a field of Feast's type `dtype`, as in `Rows.values`."""
    if dtype == "String":
        return texts(column)
    return _tuples(column) if dtype.startswith("Array(") else floats(column)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """float64 (n,), NaN for null."""
    return column.cast(pa.float64()).to_numpy()


def texts(column: pa.ChunkedArray) -> np.ndarray:
    """str (n,), "" for null. Each distinct text is made once."""
    encoded = _whole(column.cast(pa.string())).fill_null(EMPTY_STRING).dictionary_encode()
    distinct = np.array(encoded.dictionary.to_pylist(), dtype=np.str_)
    return distinct[encoded.indices.to_numpy()] if len(distinct) else np.zeros(0, np.str_)


def arrays(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """float64 (n, width) of a column of lists; zeros for null, and for a list of another length."""
    lists = _whole(column)
    starts, lengths = _spans(lists)
    values = np.zeros((len(lists), width))
    is_right = lengths == width
    items = lists.values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    values[is_right] = items[starts[is_right, None] + np.arange(width)]
    return values


def ragged(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """How long each list is, int64 (n,), with 0 for null, and the items of all lists one after the other."""
    lists = _whole(column)
    return _spans(lists)[1], lists.flatten()


def traits_from_columns(
    traits: pa.ChunkedArray, number_names: pa.ChunkedArray, number_values: pa.ChunkedArray
) -> Traits:
    """What propositions are like, from lists of texts, of names and of numbers."""
    lengths, items = ragged(traits)
    encoded = items.dictionary_encode()
    codes = RaggedColumn(
        (encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32),),
        np.cumsum(lengths) - lengths,
        lengths.astype(np.int32),
    )
    return Traits(codes, len(encoded.dictionary), _numbers(number_names, number_values))


def _numbers(names: pa.ChunkedArray, values: pa.ChunkedArray) -> dict[str, np.ndarray]:
    lengths, flat_names = ragged(names)
    _, flat_values = ragged(values)
    encoded = flat_names.dictionary_encode()
    number_of_item = encoded.indices.to_numpy(zero_copy_only=False)
    row_of_item = np.repeat(np.arange(len(lengths)), lengths)
    numbers = flat_values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    columns = np.full((len(encoded.dictionary), len(lengths)), np.nan)
    columns[number_of_item, row_of_item] = numbers
    return dict(zip(encoded.dictionary.to_pylist(), columns, strict=True))


def _spans(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each list starts among `lists.values`, and its length, int64 (n,); what null hides does not count."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    if lists.null_count:
        lengths[pc.is_null(lists).to_numpy(zero_copy_only=False)] = 0
    return offsets[:-1], lengths


def _tuples(column: pa.ChunkedArray) -> np.ndarray:
    tuples = np.empty(len(column), dtype=object)
    for row, value in enumerate(column.to_pylist()):
        tuples[row] = () if value is None else tuple(value)
    return tuples


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) and whole.num_chunks else whole
