"""Scores into probabilities of a click, learned from slates that the model has not seen."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from training.metrics import log_loss

ISOTONIC, PLATT, AUTO = "isotonic", "platt", "auto"
# Knots of an isotonic calibration: each the mean of as many impressions as the others.
MAX_KNOTS = 100
MIN_CLICKS_FOR_ISOTONIC = 200
FOLDS = 5
_SMALLEST = 1e-7
_MAX_LOG_ODDS = 30.0
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class Calibration:
    """A monotone map from scores to probabilities: it never reorders, but may make scores equal.

    ISOTONIC: straight lines between knots, `scores` ascending and `probabilities` not descending. PLATT: the logistic
    function of `slope` * x + `intercept`, with x the score itself, or with `is_of_log_odds` its log-odds (Platt 1999; for
    scores that are probabilities already).
    """

    method: str
    scores: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    slope: float = 1.0
    intercept: float = 0.0
    is_of_log_odds: bool = False

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities float64 (n,) of scores float (n,)."""
        scores = np.asarray(scores, np.float64)
        if self.method == ISOTONIC:
            return np.interp(scores, self.scores, self.probabilities)
        return _logistic(self.slope * (_log_odds(scores) if self.is_of_log_odds else scores) + self.intercept)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Calibration":
        knots = {name: tuple(data[name]) for name in ("scores", "probabilities")}
        return cls(**{**data, **knots})


def fit_calibration(
    scores: np.ndarray, clicked: np.ndarray, starts: np.ndarray | None = None, method: str = AUTO
) -> Calibration:
    """The calibration of scores float (n,) whose impressions were clicked, or not, bool (n,).

    AUTO takes the one that gives the clicks of left out slates the greater likelihood; with few clicks that is PLATT, which
    has two parameters only. `starts` int64 (m,) are the first rows of the slates, which folds keep whole; None: every row is
    a slate. Where nothing or everything was clicked the result is nearly constant.

    Raises:
        ValueError: no impressions, a score that is no finite number, or a method of another name.
    """
    scores, clicked = np.asarray(scores, np.float64), np.asarray(clicked, bool)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("calibration needs at least one score, and all must be finite")
    if method == AUTO:
        method = _best_method(scores, clicked, np.arange(len(scores)) if starts is None else starts)
    if method not in _FITS:
        raise ValueError(f"method is {method!r}, supported are {', '.join((AUTO, *_FITS))}")
    return _FITS[method](scores, clicked)


def _best_method(scores: np.ndarray, clicked: np.ndarray, starts: np.ndarray) -> str:
    if min(clicked.sum(), (~clicked).sum()) < MIN_CLICKS_FOR_ISOTONIC or len(starts) < FOLDS:
        return PLATT
    losses = {
        method: sum(
            log_loss(
                fit(scores[~is_left_out], clicked[~is_left_out]).apply(scores[is_left_out]),
                clicked[is_left_out],
            )
            for is_left_out in _folds(starts, len(scores))
        )
        for method, fit in _FITS.items()
    }
    return min(losses, key=losses.get)


def _folds(starts: np.ndarray, row_count: int) -> Iterator[np.ndarray]:
    """The rows bool (n,) of each of FOLDS runs of consecutive slates."""
    edges = np.append(starts, row_count)[np.linspace(0, len(starts), FOLDS + 1).astype(np.int64)]
    rows = np.arange(row_count)
    for first, last in pairwise(edges):
        yield (rows >= first) & (rows < last)


def _fit_isotonic(scores: np.ndarray, clicked: np.ndarray) -> Calibration:
    """Pool adjacent violators on runs of equally many impressions.

    Each run counts one more impression, clicked as often as all: no probability is 0 or 1, which one click would refute.
    """
    order = np.argsort(scores, kind="stable")
    runs = np.array_split(order, min(MAX_KNOTS, len(order)))
    knots = np.array([scores[run].mean() for run in runs])
    weights = np.array([len(run) + 1.0 for run in runs])
    rate = _smoothed_rate(clicked)
    rates = (np.array([clicked[run].sum() for run in runs]) + rate) / weights
    # Equal scores in several runs have one probability.
    knots, run_of = np.unique(knots, return_inverse=True)
    totals = np.bincount(run_of, weights)
    rates = _not_descending(np.bincount(run_of, weights * rates) / totals, totals)
    return Calibration(ISOTONIC, tuple(knots.tolist()), tuple(rates.tolist()))


def _not_descending(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest values in weighted least squares that do not descend."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        count = 1
        while blocks and blocks[-1][0] >= value:
            before, weight_before, count_before = blocks.pop()
            value = (before * weight_before + value * weight) / (weight_before + weight)
            weight, count = weight + weight_before, count + count_before
        blocks.append((value, weight, count))
    return np.repeat([value for value, _, _ in blocks], [count for _, _, count in blocks])


def _fit_platt(scores: np.ndarray, clicked: np.ndarray) -> Calibration:
    """Maximum likelihood by Newton's method, with Platt's targets just inside of 0 and 1."""
    is_of_log_odds = bool((scores >= 0.0).all() and (scores <= 1.0).all())
    x = _log_odds(scores) if is_of_log_odds else scores
    centre, scale = x.mean(), x.std() or 1.0
    clicks, others = clicked.sum(), (~clicked).sum()
    targets = np.where(clicked, (clicks + 1.0) / (clicks + 2.0), 1.0 / (others + 2.0))
    design = np.stack([(x - centre) / scale, np.ones(len(x))])
    rate = _smoothed_rate(clicked)
    weights = np.array([0.0, np.log(rate / (1.0 - rate))])
    for _ in range(_NEWTON_STEPS):
        expected = _logistic(weights @ design)
        slope = design @ (targets - expected)
        curvature = (design * (expected * (1.0 - expected))) @ design.T + 1e-9 * np.eye(2)
        step = np.clip(np.linalg.solve(curvature, slope), -2.0, 2.0)
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    if weights[0] < 0.0:  # the scores say the opposite of the truth, which is no reason to turn them around
        weights = np.array([0.0, np.log(rate / (1.0 - rate))])
    slope = weights[0] / scale
    intercept = weights[1] - slope * centre
    return Calibration(PLATT, slope=float(slope), intercept=float(intercept), is_of_log_odds=is_of_log_odds)


_FITS = {ISOTONIC: _fit_isotonic, PLATT: _fit_platt}


@dataclass(frozen=True)
class Reliability:
    """What was promised and what came of it, bin by bin: `predicted`, `observed` float64 (b,), `counts` int64 (b,)."""

    predicted: np.ndarray
    observed: np.ndarray
    counts: np.ndarray


def reliability(probabilities: np.ndarray, clicked: np.ndarray, bins: int = 10) -> Reliability:
    """Mean predicted and observed rates in at most `bins` bins of about equally many impressions.

    Equal probabilities (float (n,)) fall into one bin.
    """
    edges = np.unique(np.quantile(probabilities, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, probabilities, side="right")
    _, bin_of, counts = np.unique(bin_of, return_inverse=True, return_counts=True)
    return Reliability(
        np.bincount(bin_of, probabilities) / counts, np.bincount(bin_of, clicked) / counts, counts
    )


def expected_calibration_error(probabilities: np.ndarray, clicked: np.ndarray, bins: int = 10) -> float:
    """The mean distance of predicted and observed rates over the bins of `reliability`, weighted by impressions."""
    table = reliability(probabilities, clicked, bins)
    return float(np.average(np.abs(table.predicted - table.observed), weights=table.counts))


def _smoothed_rate(clicked: np.ndarray) -> float:
    return float((clicked.sum() + 1.0) / (len(clicked) + 2.0))


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    inside = np.clip(probabilities, _SMALLEST, 1.0 - _SMALLEST)
    return np.log(inside / (1.0 - inside))


def _logistic(log_odds: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(log_odds, -_MAX_LOG_ODDS, _MAX_LOG_ODDS)))
