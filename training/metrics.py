"""How good a ranking is, slate by slate, and how sure that can be said.

All metrics order each slate by descending score; equal scores are ordered at random, never in the order of the data, or a
ranker that cannot tell candidates apart would be credited with the order in which they were logged. `scores` float (n,) and
`relevance` int (n,) hold one slate after the other, `starts` int64 (m,) the first row of each; the results are float64 (m,).
They are NaN for slates without a click, where every order is as good. Where everything was clicked they count: no ranking
can lose there.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

NDCG_DEPTHS = (1, 3, 5, 10)
PRECISION_DEPTHS = (1, 3, 5, 10)
RECALL_DEPTHS = (3, 5, 10)
HIT_RATE_DEPTHS = (1, 3, 10)
SLATE_METRICS = (
    *(f"ndcg@{k}" for k in NDCG_DEPTHS),
    *(f"precision@{k}" for k in PRECISION_DEPTHS),
    *(f"recall@{k}" for k in RECALL_DEPTHS),
    *(f"hit_rate@{k}" for k in HIT_RATE_DEPTHS),
    "mrr",
    "auc",
)
# Probabilities are kept this far from 0 and 1, so that one wrong certainty does not cost everything.
SMALLEST_PROBABILITY = 1e-7
Name = TypeVar("Name", bound=Hashable)
# A table of slates may have this many places per candidate.
MAX_PADDING = 4
# More slates than this are summed in as many groups before they are resampled.
MAX_RESAMPLED = 10_000
# Weights of resampled slates in memory at once.
MAX_WEIGHTS = 2_000_000


@dataclass(frozen=True)
class Ranking:
    """Slates in the order of their scores.

    `order` int64 (n,): the rows, best first within each slate; `slates` int64 (n,) and `ranks` int64 (n,), from 0, say whose
    and which place each of them has. `relevance` int64 (n,) is in this order too.
    """

    order: np.ndarray
    slates: np.ndarray
    ranks: np.ndarray
    relevance: np.ndarray
    starts: np.ndarray

    @cached_property
    def clicked(self) -> np.ndarray:
        return self.relevance > 0

    @cached_property
    def click_counts(self) -> np.ndarray:
        """Clicked candidates of each slate, float64 (m,)."""
        return self.sums(self.clicked)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` (n,) over each slate, float64 (m,)."""
        return np.bincount(self.slates, values, len(self.starts))

    def clicks_within(self, k: int) -> np.ndarray:
        """Clicked candidates among the first k, float64 (m,): 0 where there are none."""
        return self.sums(self.clicked & (self.ranks < k))

    def where_clicked(self, values: np.ndarray) -> np.ndarray:
        """`values` (m,), NaN for slates without a click."""
        return np.where(self.click_counts > 0, values, np.nan)

    def ndcg(self, k: int) -> np.ndarray:
        """Gains 2 ** relevance - 1, discounts 1 / log2(rank + 1) with ranks from 1 (Burges et al. 2005)."""
        is_within = self.ranks < k
        discounts = 1.0 / np.log2(self.ranks[is_within] + 2.0)
        slates = self.slates[is_within]

        def dcg(relevance: np.ndarray) -> np.ndarray:
            gains = np.exp2(relevance[is_within]) - 1.0
            return np.bincount(slates, gains * discounts, len(self.starts))

        return _ratio(dcg(self.relevance), dcg(self._best_relevance))

    @cached_property
    def _best_relevance(self) -> np.ndarray:
        return self.relevance[_order_within(self.starts, self.slates, -self.relevance)]

    def precision(self, k: int) -> np.ndarray:
        """Clicked candidates among the first k, divided by k, also where a slate is shorter."""
        return self.where_clicked(self.clicks_within(k) / k)

    def recall(self, k: int) -> np.ndarray:
        """The share of the clicked candidates that is among the first k."""
        return _ratio(self.clicks_within(k), self.click_counts)

    def hit_rate(self, k: int) -> np.ndarray:
        """1 where anything among the first k was clicked, else 0."""
        return self.where_clicked(self.clicks_within(k) > 0)

    def mrr(self) -> np.ndarray:
        """1 / rank of the first clicked candidate."""
        best = np.zeros(len(self.starts))
        np.maximum.at(best, self.slates[self.clicked], 1.0 / (self.ranks[self.clicked] + 1.0))
        return self.where_clicked(best)

    def auc(self) -> np.ndarray:
        """The share of pairs of a clicked and another candidate in the right order; NaN where everything was clicked."""
        counts = np.bincount(self.slates, minlength=len(self.starts))
        pairs = self.click_counts * (counts - self.click_counts)
        # Of a slate's candidates behind a clicked one, those that were clicked are no pairs.
        behind = self.sums(self.clicked * (counts[self.slates] - 1 - self.ranks))
        return _ratio(behind - self.click_counts * (self.click_counts - 1) / 2, pairs)


def rank(scores: np.ndarray, relevance: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> Ranking:
    """Orders every slate by descending score, equal scores at random and NaN last."""
    sizes = np.diff(np.append(starts, len(scores)))
    slates = np.repeat(np.arange(len(starts)), sizes)
    descending = -np.nan_to_num(np.asarray(scores, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    order = _order_within(starts, slates, rng.random(len(scores)), descending)
    ranks = np.arange(len(scores)) - np.repeat(starts, sizes)
    return Ranking(order, slates, ranks, np.asarray(relevance)[order], np.asarray(starts))


def _order_within(starts: np.ndarray, slates: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """`np.lexsort((*keys, slates))`, int64 (n,), of keys without NaN.

    Rows of a padded table are sorted, which takes a tenth of the time; not if slates differ so much in length that the
    table would be mostly padding.
    """
    sizes = np.bincount(slates, minlength=len(starts))
    width = int(sizes.max(initial=0))
    if width * len(starts) > MAX_PADDING * len(slates):
        return np.lexsort((*keys, slates))
    is_row = np.arange(width) < sizes[:, None]
    order = np.broadcast_to(np.arange(width), is_row.shape)
    for key in keys:
        padded = np.full(is_row.shape, np.nan)  # sorts last
        padded[is_row] = key
        by_key = np.argsort(np.take_along_axis(padded, order, axis=1), axis=1, kind="stable")
        order = np.take_along_axis(order, by_key, axis=1)
    return (order + starts[:, None])[is_row]


def ndcg(
    scores: np.ndarray, relevance: np.ndarray, starts: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Normalized discounted cumulative gain of the first k, float64 (m,): see `Ranking.ndcg`.

    >>> ndcg(np.array([3.0, 2.0, 1.0]), np.array([0, 1, 0]), np.array([0]), 10, np.random.default_rng(0)).round(4)
    array([0.6309])
    """
    return rank(scores, relevance, starts, rng).ndcg(k)


def slate_metrics(
    scores: np.ndarray, relevance: np.ndarray, starts: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """All of SLATE_METRICS, each float64 (m,)."""
    return ranking_metrics(rank(scores, relevance, starts, rng))


def ranking_metrics(ranking: Ranking) -> dict[str, np.ndarray]:
    """All of SLATE_METRICS of slates that are ranked already, each float64 (m,)."""
    return {
        **{f"ndcg@{k}": ranking.ndcg(k) for k in NDCG_DEPTHS},
        **{f"precision@{k}": ranking.precision(k) for k in PRECISION_DEPTHS},
        **{f"recall@{k}": ranking.recall(k) for k in RECALL_DEPTHS},
        **{f"hit_rate@{k}": ranking.hit_rate(k) for k in HIT_RATE_DEPTHS},
        "mrr": ranking.mrr(),
        "auc": ranking.auc(),
    }


def log_loss(probabilities: np.ndarray, clicked: np.ndarray) -> float:
    """Mean negative log likelihood, in nats, of the clicks (bool (n,)) of all slates together; NaN if there are none."""
    if not len(clicked):
        return np.nan
    sure = np.clip(np.asarray(probabilities, np.float64), SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
    return float(-np.log(np.where(clicked, sure, 1.0 - sure)).mean())


def pooled_auc(scores: np.ndarray, clicked: np.ndarray) -> float:
    """The chance that a clicked candidate scores above another one of any slate; equal scores count half.

    NaN if everything was clicked, or nothing.
    """
    clicks = int(clicked.sum())
    others = len(clicked) - clicks
    if not clicks or not others:
        return np.nan
    _, number_of_score, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2.0
    return float(
        (mean_ranks[number_of_score[clicked]].sum() - clicks * (clicks + 1) / 2.0) / (clicks * others)
    )


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: np.ndarray, rng: np.random.Generator, rounds: int = 1_000) -> Interval:
    """The mean of `values` float64 (m,) with its percentile interval over resampled slates; NaN ones do not count.

    Of the difference of two rankers' values it is the paired interval.
    """
    return bootstrap_means({"": values}, rng, rounds)[""]


def bootstrap_means(
    values: Mapping[Name, np.ndarray], rng: np.random.Generator, rounds: int = 1_000
) -> dict[Name, Interval]:
    """As `bootstrap_mean`, for many values (m,) of the same slates, which are resampled once for all.

    Beyond MAX_RESAMPLED slates, groups of slates drawn at random are resampled instead: the mean of independent groups
    varies as the mean of their slates does, and the cost no longer grows with m times `rounds`.
    """
    table = np.column_stack([np.asarray(column, np.float64) for column in values.values()])
    is_defined = ~np.isnan(table)
    sums, counts = np.where(is_defined, table, 0.0), is_defined.astype(np.float64)
    with np.errstate(invalid="ignore"):
        means = sums.sum(axis=0) / counts.sum(axis=0)
        resampled = _resampled_means(*_grouped(sums, counts, rng), rng, rounds)
    # A resample without any defined value says nothing; if all are, the mean is NaN and so are the limits.
    low, high = np.full((2, len(means)), np.nan)
    for column in np.flatnonzero(counts.any(axis=0)):
        low[column], high[column] = np.nanpercentile(resampled[:, column], [2.5, 97.5])
    return {
        name: Interval(float(means[column]), float(low[column]), float(high[column]))
        for column, name in enumerate(values)
    }


def _grouped(sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same totals in at most MAX_RESAMPLED rows, each the sum over slates drawn at random."""
    if len(sums) <= MAX_RESAMPLED:
        return sums, counts
    order = rng.permutation(len(sums))
    firsts = np.linspace(0, len(sums), MAX_RESAMPLED, endpoint=False).astype(np.int64)
    return np.add.reduceat(sums[order], firsts), np.add.reduceat(counts[order], firsts)


def _resampled_means(
    sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator, rounds: int
) -> np.ndarray:
    """Means (rounds, columns) over rows that are drawn with replacement: NaN where none of a column's was drawn."""
    means = np.full((rounds, sums.shape[1]), np.nan)
    if not len(sums):
        return means
    # Most metrics are defined for the same slates, so few of the counts differ.
    different, count_of = _different_columns(counts)
    step = max(1, MAX_WEIGHTS // len(sums))
    for first in range(0, rounds, step):
        last = min(first + step, rounds)
        weights = _draw_weights(len(sums), last - first, rng)
        means[first:last] = (weights @ sums) / (weights @ different)[:, count_of]
    return means


def _different_columns(table: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The table without columns that repeat another, and for each of its columns the number of the one to take."""
    numbers: dict[bytes, int] = {}
    number_of = [numbers.setdefault(column.tobytes(), len(numbers)) for column in table.T]
    firsts = [number_of.index(number) for number in range(len(numbers))]
    return table[:, firsts], number_of


def _draw_weights(size: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `size` rows is drawn if as many are drawn with replacement, float64 (rounds, size)."""
    drawn = rng.integers(0, size, (rounds, size)) + size * np.arange(rounds)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * rounds).reshape(rounds, size).astype(np.float64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0)
