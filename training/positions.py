"""How much more a proposition is clicked for the place it was shown at, and not for what it is.

A slate's first place is seen by everyone and its last by few. The log-odds of a click are taken as the sum of a part of the
position and a part of everything else; models learn the second, given the first. Positions are no feature: when a slate is
made they are not known yet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from training.dataset import Dataset

# Positions beyond are taken as the last of these: few are shown so far down.
MAX_POSITION = 50
# Precision of the prior that a position, or a proposition, is as any other: their log-odds differ by about 1/2, or by 1.
_POSITION_PRECISION, _PROPOSITION_PRECISION = 4.0, 1.0
_MAX_STEPS, _TOLERANCE = 100, 1e-5


@dataclass(frozen=True)
class PositionOffsets:
    """Log-odds of a click at positions 1, 2, ... relative to the mean impression; empty where nothing is known."""

    by_position: tuple[float, ...]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The offsets at `positions` float (n,), NaN unknown, as float64 (n,): 0 where the position is unknown."""
        offsets = np.append(self.by_position, 0.0)
        return offsets[np.where(np.isnan(positions), -1, _index(positions, len(self.by_position)))]


NO_OFFSETS = PositionOffsets(())


class PositionCounts:
    """Impressions and clicks of each proposition at each position, added up over parts of a dataset."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._cells = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros((0, 2))

    def add(self, dataset: Dataset) -> None:
        is_known = ~np.isnan(dataset.positions)
        ids, number_of_row = np.unique(dataset.proposition_ids[is_known], return_inverse=True)
        numbers = np.array(
            [self._numbers.setdefault(name, len(self._numbers)) for name in ids.tolist()], np.int64
        )
        cells = numbers[number_of_row] * MAX_POSITION + _index(dataset.positions[is_known], MAX_POSITION)
        events = np.stack([np.ones(len(cells)), dataset.relevance[is_known] > 0], axis=1)
        self._cells, cell_of = np.unique(np.concatenate([self._cells, cells]), return_inverse=True)
        counts = np.concatenate([self._counts, events])
        self._counts = np.stack(
            [np.bincount(cell_of, column, len(self._cells)) for column in counts.T], axis=1
        )

    def offsets(self) -> PositionOffsets:
        """The positions' part of the log-odds in a logistic model of positions and propositions.

        Comparing a proposition with itself at other positions matters where rankers put good ones first: there the plain
        click rates by position credit positions with the taste of the ranker. Penalized maximum likelihood, by Newton
        steps for positions and propositions in turn.
        """
        if not len(self._cells):
            return NO_OFFSETS
        propositions, positions = np.divmod(self._cells, MAX_POSITION)
        impressions, clicks = self._counts.T
        rate = (clicks.sum() + 1.0) / (impressions.sum() + 2.0)
        of_position, of_proposition = np.zeros(positions.max() + 1), np.zeros(len(self._numbers))
        base = np.log(rate / (1.0 - rate))

        def step(numbers: np.ndarray, effects: np.ndarray, precision: float) -> np.ndarray:
            expected = 1.0 / (1.0 + np.exp(-base - of_position[positions] - of_proposition[propositions]))
            slope = np.bincount(numbers, clicks - impressions * expected, len(effects)) - precision * effects
            curvature = (
                np.bincount(numbers, impressions * expected * (1.0 - expected), len(effects)) + precision
            )
            return np.clip(slope / curvature, -1.0, 1.0)

        for _ in range(_MAX_STEPS):
            change = step(positions, of_position, _POSITION_PRECISION)
            of_position += change
            of_proposition += step(propositions, of_proposition, _PROPOSITION_PRECISION)
            if np.abs(change).max() < _TOLERANCE:
                break
        weights = np.bincount(positions, impressions, len(of_position))
        return PositionOffsets(tuple((of_position - np.average(of_position, weights=weights)).tolist()))


def position_offsets(parts: Iterable[Dataset]) -> PositionOffsets:
    """What the logged positions were worth in these slates."""
    counts = PositionCounts()
    for part in parts:
        counts.add(part)
    return counts.offsets()


def _index(positions: np.ndarray, count: int) -> np.ndarray:
    """Position 1 at index 0; all from `count` on at the last. 0 for NaN."""
    return np.clip(np.nan_to_num(positions, nan=1.0), 1, max(count, 1)).astype(np.int64) - 1
