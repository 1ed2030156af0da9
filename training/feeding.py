"""Parts of a dataset, assembled once and kept on disk, as XGBoost reads them: one at a time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost

from app.features.assembly import MatrixSpec
from training.dataset import Dataset
from training.matrix import matrix
from training.positions import PositionCounts, PositionOffsets

# Whatever fits models reads the same parts as often as it calls this.
Parts = Callable[[], Iterable[Dataset]]


@dataclass(frozen=True)
class Part:
    """What is known of n impressions of m slates beside their matrix.

    `relevance` int64 (n,), `positions` float64 (n,), NaN unknown, and `slate_sizes` int64 (m,) as in `Dataset`.
    `first_slate`: how many slates the parts before hold.
    """

    relevance: np.ndarray
    positions: np.ndarray
    slate_sizes: np.ndarray
    first_slate: int

    @classmethod
    def of(cls, dataset: Dataset, first_slate: int) -> "Part":
        return cls(dataset.relevance, dataset.positions, dataset.slate_sizes, first_slate)


@dataclass(frozen=True)
class Labels:
    """What is known of all impressions that a model learns from, beside their matrix of these columns."""

    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    offsets: PositionOffsets

    @property
    def row_count(self) -> int:
        return sum(len(part.relevance) for part in self.parts)

    @property
    def relevance_counts(self) -> np.ndarray:
        """Impressions of relevance 0, 1 and 2, int64 (3,)."""
        return sum((np.bincount(part.relevance, minlength=3) for part in self.parts), np.zeros(3, np.int64))


@dataclass(frozen=True)
class AssembledParts:
    """Labels, and the files of the parts' matrices, float32 (n, columns)."""

    labels: Labels
    paths: tuple[Path, ...]


def assemble_parts(spec: MatrixSpec, parts: Iterable[Dataset], folder: Path) -> AssembledParts:
    """Assembles each part once and writes it into `folder` (4 bytes per row and column).

    XGBoost reads everything four times to find and apply its bins, and assembling takes longer than reading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts, labels, paths, slate_count = PositionCounts(), [], [], 0
    for number, part in enumerate(parts):
        counts.add(part)
        paths.append(folder / f"{number}.npy")
        np.save(paths[-1], np.ascontiguousarray(matrix(spec, part)))
        labels.append(Part.of(part, slate_count))
        slate_count += part.slate_count
    return AssembledParts(Labels(spec.columns, tuple(labels), counts.offsets()), tuple(paths))


class PartIterator(xgboost.DataIter):
    """Hands over part after part; `targets` says what XGBoost is to know of a part's rows beside the matrix.

    With `cache` XGBoost keeps its bins in files of names that begin so.
    """

    def __init__(
        self,
        assembled: AssembledParts,
        targets: Callable[[Part], dict[str, np.ndarray]],
        cache: Path | None = None,
    ) -> None:
        self._columns = list(assembled.labels.columns)
        self._parts = list(zip(assembled.labels.parts, assembled.paths, strict=True))
        self._targets = targets
        self._next = 0
        super().__init__(cache_prefix=None if cache is None else str(cache))

    def reset(self) -> None:
        self._next = 0

    def next(self, input_data: Callable) -> bool:
        if self._next == len(self._parts):
            return False
        part, path = self._parts[self._next]
        input_data(data=np.load(path), feature_names=self._columns, **self._targets(part))
        self._next += 1
        return True
