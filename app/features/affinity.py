"""How much a proposition is like what its user liked before: the columns of a pair of a user and a candidate.

Propositions have traits, which are texts (tags, genres, an author), and numbers. A user's history says what was shown to
the user and what was clicked. A trait counts as much as it was clicked more often than the user clicks at all:

    trait affinity  = sum over the candidate's traits t of log((clicks_t + S r) / ((shown_t + S) r))
    number affinity = sum over numbers of slope * z,  slope = sum((clicks - r shown) z) / (sum(r shown z^2) + P)

with r the user's smoothed click rate, z a number's rank among all propositions scaled to unit variance, and S, P
strengths of the prior that nothing is special. It is naive Bayes and ridge regression for one user, from a hundred rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.features.columns import RaggedColumn

PAIR_COLUMNS = ("trait_affinity", "number_affinity")
# Of the affinities: how many impressions of a trait weigh as much as the prior.
TRAIT_STRENGTH = 2.0
NUMBER_STRENGTH = 10.0
# Of the user's click rate, in impressions.
RATE_STRENGTH = 5.0
# Uniform ranks on [-1, 1] times this have variance 1.
_UNIT_VARIANCE = 3.0**0.5
# Below this, going through all codes costs less than sorting those that occur.
_FEW_CODES = 16_384
# Points at which ranks are kept.
RANK_POINTS = 17


@dataclass(frozen=True, slots=True)
class Traits:
    """What v propositions (or versions of them) are like, by row.

    `codes`: int32, the traits of each row as numbers below `code_count`; which text a code stands for does not matter,
    only that equal ones are equal. `numbers`: float64 (v,) by name, NaN where a proposition lacks it.
    """

    codes: RaggedColumn
    code_count: int
    numbers: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class History:
    """What one user was shown: `rows` int64 (h,) of traits, how often, and how often it was clicked, float64 (h,)."""

    rows: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


NO_HISTORY = History(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


@dataclass(frozen=True, slots=True)
class Histories:
    """Histories of m users: those of user i lie at [starts[i], starts[i + 1]). `starts` int64 (m + 1,)."""

    starts: np.ndarray
    rows: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> History:
        span = slice(self.starts[number], self.starts[number + 1])
        return History(self.rows[span], self.impressions[span], self.clicks[span])

    def select(self, chosen: np.ndarray) -> "Histories":
        """The histories with these numbers, int64 (k,), in that order."""
        lengths = np.diff(self.starts)[chosen]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        items = np.repeat(self.starts[chosen] - starts[:-1], lengths) + np.arange(starts[-1])
        return Histories(starts, self.rows[items], self.impressions[items], self.clicks[items])


def learn_ranks(values: np.ndarray) -> tuple[float, ...]:
    """Ascending points of a number's distribution, equally likely to lie between any two of them.

    Empty if all known values (float64, NaN unknown) are equal: then the number tells nothing.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return ()
    points = np.unique(np.quantile(known, np.linspace(0.0, 1.0, RANK_POINTS)))
    return tuple(points.tolist()) if len(points) > 1 else ()


class Affinity:
    """Compares users' histories with propositions, both by rows of `traits`.

    `base_rate` is the click rate of all users, `ranks` has the points of each number that counts. Ranks of numbers are
    computed when first asked for, and kept: most propositions of a large catalog are never candidates.
    """

    def __init__(self, traits: Traits, base_rate: float, ranks: Mapping[str, Sequence[float]]) -> None:
        self.traits = traits
        self._base_rate = base_rate
        self._numbers = [
            (traits.numbers[name], points) for name, points in ranks.items() if name in traits.numbers
        ]
        row_count = len(traits.codes.lengths)
        self._unit_ranks = np.empty((row_count, len(self._numbers)), np.float32)
        self._is_ranked = np.zeros(row_count, bool)

    def columns(self, history: History, rows: np.ndarray) -> np.ndarray:
        """The pair columns, float32 (n, 2) in the order of PAIR_COLUMNS, of candidates at `rows` int64 (n,).

        A row of -1 is a proposition of which nothing is known. NaN everywhere for a user without history: nothing is
        known, which is not the same as no preference.
        """
        if not len(history):
            return np.full((len(rows), len(PAIR_COLUMNS)), np.nan, np.float32)
        shown = np.maximum(history.impressions, history.clicks)
        rate = (history.clicks.sum() + RATE_STRENGTH * self._base_rate) / (shown.sum() + RATE_STRENGTH)
        is_known = history.rows >= 0
        known = History(history.rows[is_known], shown[is_known], history.clicks[is_known])
        columns = np.zeros((len(rows), len(PAIR_COLUMNS)), np.float32)
        places = np.flatnonzero(rows >= 0)
        columns[places, 0] = self._trait_affinity(known, rate, rows[places])
        if self._numbers:
            columns[places, 1] = self._number_affinity(known, rate, rows[places])
        return columns

    def _trait_affinity(self, history: History, rate: float, rows: np.ndarray) -> np.ndarray:
        items, item_rows = self.traits.codes.rows(history.rows)
        codes, item_numbers = _numbered(items, self.traits.code_count)
        shown = np.bincount(item_numbers, history.impressions[item_rows], len(codes))
        clicks = np.bincount(item_numbers, history.clicks[item_rows], len(codes))
        seen = np.flatnonzero(shown)
        weights = np.zeros(self.traits.code_count)
        prior = TRAIT_STRENGTH * rate
        weights[codes[seen]] = np.log((clicks[seen] + prior) / (rate * shown[seen] + prior))
        candidate_items, candidate_rows = self.traits.codes.rows(rows)
        return np.bincount(candidate_rows, weights[candidate_items], len(rows))

    def _number_affinity(self, history: History, rate: float, rows: np.ndarray) -> np.ndarray:
        seen, expected = self._ranked(history.rows), rate * history.impressions
        slopes = ((history.clicks - expected) @ seen) / (expected @ seen**2 + NUMBER_STRENGTH)
        return self._ranked(rows) @ slopes

    def _ranked(self, rows: np.ndarray) -> np.ndarray:
        """Numbers as ranks with mean 0 and variance 1, float32 (n, numbers); 0 where a number is not known."""
        new = rows[~self._is_ranked[rows]]
        if len(new):
            for column, (values, points) in enumerate(self._numbers):
                scale = np.linspace(-_UNIT_VARIANCE, _UNIT_VARIANCE, len(points))
                self._unit_ranks[new, column] = np.nan_to_num(np.interp(values[new], points, scale))
            self._is_ranked[new] = True
        return self._unit_ranks[rows]


def _numbered(codes: np.ndarray, code_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes that cover all given ones, and for each given one its place among them."""
    if code_count <= _FEW_CODES:
        return np.arange(code_count), codes
    return np.unique(codes, return_inverse=True)
