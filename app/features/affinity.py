"""How much a proposition is like what its user liked before: the columns of a pair of a user and a candidate.

Propositions have traits, which are texts (tags, genres, an author), and numbers. A user's history says what was shown to
the user and what was clicked. Two columns tell what that means for a candidate. The first takes each trait for itself, and
counts it as much as it was clicked more often than the user clicks at all:

    trait affinity = sum over the candidate's traits t of log((clicks_t + S r) / ((shown_t + S) r))

with r the user's smoothed click rate and S the strength of the prior that nothing is special: naive Bayes for one user. It
counts twice what two traits say together, and knows no numbers. The second compares with whole propositions, which share
what they explain:

    likeness = k(candidate, history) (k(history, history) + N / shown)^-1 (clicks / shown - r) / sqrt(r (1 - r))
    k(a, b)  = traits in common / sqrt(traits of a * traits of b) + W exp(-mean over numbers of (z_a - z_b)^2 / 2)

with z a number's rank among all propositions scaled to unit variance, N the noise of one impression and W the weight of the
numbers: kernel ridge regression (a Gaussian process' mean) for one user, from a hundred rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.features import kernels
from app.features.columns import RaggedColumn

PAIR_COLUMNS = ("trait_affinity", "likeness")
# How many impressions of a trait weigh as much as the prior.
TRAIT_STRENGTH = 2.0
# Of the likeness: noise of one impression, and weight of the numbers, both relative to the traits.
NOISE, NUMBER_WEIGHT = 3.0, 0.3
_LOG_NUMBER_WEIGHT = np.float32(np.log(NUMBER_WEIGHT))
# Steps of conjugate gradients towards the solution. More gain nothing (RankLens, a logistic regression that reads it instead of
# both columns, log loss on later slates of the training part: 0.4019 after one step, 0.4006, 0.3990, solved 0.3990).
LIKENESS_STEPS = 3
# Of the user's click rate, in impressions.
RATE_STRENGTH = 5.0
# Uniform ranks on [-1, 1] times this have variance 1.
_UNIT_VARIANCE = 3.0**0.5
# Below this a square is taken for 0.
_SMALLEST = 1e-12
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
        self._ranks = np.empty((row_count, len(self._numbers)), np.float32)
        self._half_squares = np.empty(row_count, np.float32)
        self._is_ranked = np.zeros(row_count, bool)
        # Of the compiled comparison, which leaves it as it was.
        self._numbers_of_codes = np.full(traits.code_count, -1, np.int32)

    def columns(self, history: History, rows: np.ndarray) -> np.ndarray:
        """The pair columns, float32 (n, 2) in the order of PAIR_COLUMNS, of candidates at `rows` int64 (n,).

        A row of -1 is a proposition of which nothing is known. NaN everywhere for a user without history: nothing is
        known, which is not the same as no preference.
        """
        if not len(history):
            return np.full((len(rows), len(PAIR_COLUMNS)), np.nan, np.float32)
        shown = np.maximum(history.impressions, history.clicks)
        rate = (history.clicks.sum() + RATE_STRENGTH * self._base_rate) / (shown.sum() + RATE_STRENGTH)
        is_known = (history.rows >= 0) & (shown > 0)
        known = History(history.rows[is_known], shown[is_known], history.clicks[is_known])
        columns = np.zeros((len(rows), len(PAIR_COLUMNS)), np.float32)
        places = (rows >= 0).nonzero()[0]
        if len(known):
            seen_and_candidates = np.concatenate([known.rows, rows[places]], dtype=np.int64)
            nearness = self._nearness(seen_and_candidates, len(known))
            compare = self._compared if kernels.compiled is None else self._compared_by_compiled
            columns[places] = compare(known, rate, seen_and_candidates, nearness)
        return columns

    def _compared(self, history: History, rate: float, rows: np.ndarray, nearness: np.ndarray) -> np.ndarray:
        """The pair columns (n, 2) of the last n of `rows` int64 (h + n,), the first h of which are those of the history."""
        comparison = _Comparison(self.traits, rows, len(history))
        of_traits = _trait_affinity(history, rate, comparison)
        return np.column_stack([of_traits, _likeness(history, rate, comparison, nearness)])

    def _compared_by_compiled(
        self, history: History, rate: float, rows: np.ndarray, nearness: np.ndarray
    ) -> np.ndarray:
        columns = np.empty((len(rows) - len(history), len(PAIR_COLUMNS)), np.float32)
        codes = self.traits.codes
        kernels.compiled.pair_columns(
            codes.blocks,
            codes.starts,
            codes.lengths,
            self._numbers_of_codes,
            rows,
            np.asarray(history.impressions, np.float64),
            np.asarray(history.clicks, np.float64),
            nearness,
            rate,
            TRAIT_STRENGTH,
            NOISE,
            _SMALLEST,
            LIKENESS_STEPS,
            columns,
        )
        return columns

    def _nearness(self, rows: np.ndarray, seen_count: int) -> np.ndarray:
        """The part of the numbers in k, float32 (n, h), of rows (n,) the first h of which are seen; 0 without numbers.

        |a - b|^2 / 2 = |a|^2 / 2 + |b|^2 / 2 - a b, so that a product of matrices does most of it.
        """
        if not self._numbers:
            return np.zeros((len(rows), seen_count), np.float32)
        if kernels.compiled is not None:
            nearness = np.empty((len(rows), seen_count), np.float32)
            arrays = (
                self._ranks,
                self._half_squares,
                self._is_ranked.view(np.uint8),
                rows,
                _LOG_NUMBER_WEIGHT,
                nearness,
            )
            if not kernels.compiled.exponents(*arrays):
                self._rank(rows[~self._is_ranked[rows]])
                kernels.compiled.exponents(*arrays)
            return np.exp(nearness, out=nearness)
        self._rank(rows[~self._is_ranked[rows]])
        ranks, half_squares = self._ranks[rows], self._half_squares[rows]
        nearness = ranks @ ranks[:seen_count].T
        nearness -= half_squares[:, None]
        nearness -= half_squares[:seen_count] - _LOG_NUMBER_WEIGHT
        return np.exp(nearness, out=nearness)

    def _rank(self, rows: np.ndarray) -> None:
        """Keeps the numbers of these rows as ranks with mean 0 whose variances add up to 1; 0 where one is not known."""
        if not len(rows):
            return
        most = _UNIT_VARIANCE / len(self._numbers) ** 0.5
        for column, (values, points) in enumerate(self._numbers):
            scale = np.linspace(-most, most, len(points))
            self._ranks[rows, column] = np.nan_to_num(np.interp(values[rows], points, scale))
        self._half_squares[rows] = np.square(self._ranks[rows]).sum(axis=1) / 2.0
        self._is_ranked[rows] = True


class _Comparison:
    """The traits that candidates have in common with what was seen: rows (h + n,) of `traits`, the h seen ones first."""

    def __init__(self, traits: Traits, rows: np.ndarray, seen_count: int) -> None:
        codes, row_of_item = traits.codes.rows(rows)
        item_counts = traits.codes.lengths[rows]
        of_seen = item_counts[:seen_count].sum()
        self._seen_of_item, self._candidate_of_item = (
            row_of_item[:of_seen],
            row_of_item[of_seen:] - seen_count,
        )
        self._codes, self._code_of_item = _numbered(codes[:of_seen], traits.code_count)
        self._candidate_codes = codes[of_seen:]
        self._code_count, self._seen_count = traits.code_count, seen_count
        units = 1.0 / np.sqrt(np.maximum(item_counts, 1))
        self.seen_unit, self.candidate_unit = units[:seen_count], units[seen_count:]

    def sums(self, of_seen: np.ndarray) -> np.ndarray:
        """By trait: sums, float64, of what each seen one has, float64 (h,)."""
        return np.bincount(self._code_of_item, of_seen[self._seen_of_item], len(self._codes))

    def of_seen(self, of_traits: np.ndarray) -> np.ndarray:
        """float64 (h,): the sum over the traits of each seen one."""
        return np.bincount(self._seen_of_item, of_traits[self._code_of_item], self._seen_count)

    def of_candidates(self, of_traits: np.ndarray) -> np.ndarray:
        """float64 (n,): the sum over the traits of each candidate; those of traits not seen are 0."""
        weights = np.zeros(self._code_count)
        weights[self._codes] = of_traits
        return np.bincount(self._candidate_of_item, weights[self._candidate_codes], len(self.candidate_unit))


def _trait_affinity(history: History, rate: float, comparison: _Comparison) -> np.ndarray:
    shown, clicks = comparison.sums(history.impressions), comparison.sums(history.clicks)
    prior = TRAIT_STRENGTH * rate
    return comparison.of_candidates(np.log((clicks + prior) / (rate * shown + prior)))


def _likeness(history: History, rate: float, comparison: _Comparison, nearness: np.ndarray) -> np.ndarray:
    """`nearness` (h + n, h): how near the seen ones, and the candidates behind them, are to those that were seen."""
    seen_count, unit = len(history), comparison.seen_unit
    near, near_candidates = nearness[:seen_count], nearness[seen_count:]
    # Scaled by the square root of what each one tells, noise is 1 everywhere, and few steps are enough.
    scale = np.sqrt(history.impressions / NOISE)
    surprise = (history.clicks / history.impressions - rate) / np.sqrt(max(rate * (1.0 - rate), _SMALLEST))

    def with_noise(values: np.ndarray) -> np.ndarray:
        scaled = scale * values
        in_common = unit * comparison.of_seen(comparison.sums(unit * scaled))
        return values + scale * (in_common + near @ scaled.astype(np.float32))

    weights = scale * _solve(with_noise, scale * surprise, LIKENESS_STEPS)
    in_common = comparison.candidate_unit * comparison.of_candidates(comparison.sums(unit * weights))
    return in_common + near_candidates @ weights.astype(np.float32)


def _solve(matrix: Callable[[np.ndarray], np.ndarray], target: np.ndarray, steps: int) -> np.ndarray:
    """The x, float64 (h,), that a positive definite matrix turns into `target`, by conjugate gradients."""
    solution, rest, direction = np.zeros(len(target)), target, target
    size = rest @ rest
    for _ in range(steps):
        if size < _SMALLEST:
            break
        image = matrix(direction)
        step = size / (direction @ image)
        solution, rest = solution + step * direction, rest - step * image
        size, before = rest @ rest, size
        direction = rest + (size / before) * direction
    return solution


def _numbered(codes: np.ndarray, code_count: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes that occur, ascending, and for each given one its place among them."""
    if code_count > _FEW_CODES:
        return np.unique(codes, return_inverse=True)
    occurs = np.zeros(code_count, np.bool_)
    occurs[codes] = True
    occurring = occurs.nonzero()[0]
    number_of = np.empty(code_count, np.intp)
    number_of[occurring] = np.arange(len(occurring))
    return occurring, number_of[codes]
