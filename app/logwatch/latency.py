"""Whether requests of a route take longer than they used to."""

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np

FIRST_MS, STEP, BINS = 0.01, 1.05, 360  # up to seven minutes, each bin 5 % wider than the one before
TAIL = 0.99
LEAST_REQUESTS = 20
# Of the history before a chart says anything, in requests and in windows.
LEAST_KNOWN, LEAST_WINDOWS = 1_000.0, 20.0
# In standard deviations: what a chart is to notice is twice the allowance, and no single window counts for more.
ALLOWANCE, MOST = 0.5, 6.0
MOST_COEFFICIENT = 0.9
# Of a value's distance from the mean, in standard deviations, what is learned: a shift that is not noticed yet must not be
# taken for irregularity.
MOST_LEARNED = 2.5


def bin_of(duration_ms: float) -> int:
    return min(max(int(math.log(max(duration_ms, FIRST_MS) / FIRST_MS) / math.log(STEP)), 0), BINS - 1)


def quantile_ms(histogram: np.ndarray, share: float) -> float:
    """The upper end of the bin in which the quantile lies. `histogram` has weights per bin (BINS,), not all zero."""
    reached = np.cumsum(histogram)
    position = int(np.searchsorted(reached, share * reached[-1]))
    return FIRST_MS * STEP ** (min(position, BINS - 1) + 1)


@cache
def threshold(windows_between_false_alarms: float) -> float:
    """Where a one-sided CUSUM of standard normal values has to stand so that it gets there by chance once in so many.

    Its average run length is about (exp(2 k b) - 1 - 2 k b) / (2 k^2) with the allowance k and b = h + 1.166, the
    threshold with a correction for its overshoot (D. Siegmund, *Sequential Analysis*, 1985, section 2.6).

    >>> round(threshold(10_000), 1)
    7.4
    """
    low, high = 0.0, 60.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        b = 2 * ALLOWANCE * (middle + 1.166)
        if (math.exp(b) - 1 - b) / (2 * ALLOWANCE**2) < windows_between_false_alarms:
            low = middle
        else:
            high = middle
    return high


@dataclass(slots=True)
class Cusum:
    """Page's cumulative sum (*Biometrika* 41, 1954) of values that are standardized with their own history.

    That takes what requests of one window have in common, such as a busy neighbour, for as usual as it is. Values that
    hang together over time are divided by their long-run deviation (Bagshaw and Johnson, *Technometrics* 17, 1975), as if
    they were noise and an autoregressive process: its coefficient is the ratio of the covariances at lags two and one.
    """

    sum: float = 0.0
    weight: float = 0.0
    mean: float = 0.0
    covariances: tuple[float, float, float] = (0.0, 0.0, 0.0)
    before: tuple[float, float] = (0.0, 0.0)

    def add(self, value: float) -> None:
        standardized = (value - self.mean) / self._deviation()
        self.sum = max(0.0, self.sum + max(-MOST, min(standardized, MOST)) - ALLOWANCE)

    def learn(self, value: float, keep: float) -> None:
        kept = self.weight * keep
        self.weight = kept + 1.0
        self.mean = (self.mean * kept + value) / self.weight
        most = MOST_LEARNED * max(1.0, math.sqrt(self.covariances[0]))
        here = max(-most, min(value - self.mean, most))
        at_lags = (here, *self.before)
        self.covariances = tuple(
            (known * kept + here * then) / self.weight
            for known, then in zip(self.covariances, at_lags, strict=True)
        )
        self.before = (here, self.before[0])

    def _deviation(self) -> float:
        at_once, after_one, after_two = self.covariances
        if after_one <= 0.0:
            return max(1.0, math.sqrt(at_once))
        coefficient = min(max(after_two / after_one, 0.0), MOST_COEFFICIENT)
        return max(1.0, math.sqrt(at_once + 2.0 * after_one / (1.0 - coefficient)))


@dataclass(frozen=True, slots=True)
class Shift:
    """`usual_ms` and `now_ms` are of the median, or of the tail's quantile."""

    share: float
    usual_ms: float
    now_ms: float
    sum: float


@dataclass(slots=True)
class LatencyChart:
    """Of a route. `usual` has the decayed number of requests per bin, `now` those of the present window."""

    usual: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    now: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    typical: Cusum = field(default_factory=Cusum)
    tail: Cusum = field(default_factory=Cusum)

    def add(self, duration_ms: float, count: float) -> None:
        self.now[bin_of(duration_ms)] += count

    def close(self, keep: float, run_length: float, least_ratio: float) -> list[Shift]:
        """Ends the window. `keep` is what the history weighs one window later; `run_length` how many windows are between
        two false alarms; smaller shifts than `least_ratio` are of no interest."""
        shifts: list[Shift] = []
        if self.now.sum() >= LEAST_REQUESTS:
            if self.usual.sum() >= LEAST_KNOWN:
                limit = threshold(run_length)
                for chart, share, value in (
                    (self.typical, 0.5, self._rank_score()),
                    (self.tail, TAIL, self._tail_score()),
                ):
                    shifts += self._judge(chart, share, value, keep, limit, least_ratio)
            self.usual = self.usual * keep + self.now
        else:
            self.usual = self.usual * keep
        self.now = np.zeros(BINS)
        return shifts

    def _judge(
        self, chart: Cusum, share: float, value: float, keep: float, limit: float, least_ratio: float
    ) -> list[Shift]:
        if chart.weight < LEAST_WINDOWS:
            chart.learn(value, keep)
            return []
        chart.add(value)
        usual_ms, now_ms = quantile_ms(self.usual, share), quantile_ms(self.now, share)
        if chart.sum <= limit:
            chart.learn(value, keep)
            return []
        if now_ms < least_ratio * usual_ms:
            chart.sum = 0.0
            chart.learn(value, keep)
            return []
        chart.sum = min(chart.sum, limit + MOST)  # so that it comes down again soon after the shift is over
        return [Shift(share, usual_ms, now_ms, chart.sum)]

    def _rank_score(self) -> float:
        """The Wilcoxon-Mann-Whitney statistic of the window against the history, with middle ranks, standardized."""
        count, known = self.now.sum(), self.usual.sum()
        below = np.cumsum(self.usual) - self.usual / 2
        mean_rank = float(self.now @ below / (count * known))
        return (mean_rank - 0.5) * math.sqrt(12.0 * count)

    def _tail_score(self) -> float:
        """How many requests of the window are beyond the history's quantile, standardized as a Poisson number by F. J.
        Anscombe's root (*Biometrika* 35, 1948): the few that there are make a skew number otherwise."""
        edge = int(np.searchsorted(np.cumsum(self.usual), TAIL * self.usual.sum())) + 1
        expected = float(self.now.sum() * self.usual[edge:].sum() / self.usual.sum())
        return 2.0 * (math.sqrt(float(self.now[edge:].sum()) + 0.375) - math.sqrt(expected + 0.375))
