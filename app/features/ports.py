"""What ranking needs from the outside: a model, and the online rows to feed it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np

from app.domain.types import FeatureState
from app.features.assembly import MatrixSpec
from app.features.forest import Forest
from app.features.rows import Rows
from app.features.schema import ViewSchema


class Model(Protocol):
    """A trained ranker with everything needed to feed it.

    `forest` are its trees, where they can be evaluated part by part; else None.
    """

    version: str
    spec: MatrixSpec
    forest: Forest | None

    def score(self, matrix: np.ndarray) -> np.ndarray:
        """Scores, float (n,), for a float32 matrix (n, columns of `spec`). Higher is better."""


@dataclass(frozen=True, slots=True)
class OnlineRows:
    """Rows of one view as read online, and the state of each: fresh, stale or missing.

    `age_s` is that of the newest of them, also of a stale one; None if all are missing.
    """

    rows: Rows
    states: Sequence[FeatureState]
    age_s: float | None = None


class OnlineReader(Protocol):
    def read(
        self,
        keys: Mapping[ViewSchema, Sequence[str]],
        half_life_count: int,
        now: datetime,
        timeout_s: float | None = None,
    ) -> Mapping[str, OnlineRows]:
        """The rows of the views by name, one per key; a stale row reads as no row.

        `timeout_s`, what is left of the request's time, lowers the store's own timeout.

        Raises:
            FeaturesUnavailable: the online store did not answer in time.
        """
