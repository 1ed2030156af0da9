"""The matrix that serving would have assembled when each slate was decided."""

import numpy as np

from app.features.affinity import PAIR_COLUMNS
from app.features.assembly import MatrixSpec
from training.dataset import Dataset


def matrix(spec: MatrixSpec, dataset: Dataset) -> np.ndarray:
    """float32 (n, columns) of the dataset's n impressions, in their order."""
    return spec.assemble(
        dataset.rows,
        dataset.slates.decided_at_s,
        len(dataset),
        pairs=pair_columns(spec, dataset),
        group_of_row=dataset.slate_of_row,
    )


def pair_columns(spec: MatrixSpec, dataset: Dataset) -> np.ndarray:
    """What each slate's user has in common with its candidates, float32 (n, 2)."""
    affinity = spec.affinity(dataset.traits)
    columns = np.empty((len(dataset), len(PAIR_COLUMNS)), np.float32)
    ends = dataset.slates.starts + dataset.slate_sizes
    for number, (first, last) in enumerate(zip(dataset.slates.starts, ends, strict=True)):
        columns[first:last] = affinity.columns(dataset.histories[number], dataset.trait_rows[first:last])
    return columns
