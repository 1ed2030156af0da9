"""How good a ranking is, slate by slate, against the simple rankings that it must beat."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

METRICS = ("ndcg@10", "precision@3", "hit_rate@3", "mrr")


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def slate_metrics(
    scores: np.ndarray, relevance: np.ndarray, slate_starts: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Metrics of every slate that can tell good from bad: it has a click and something not clicked.

    NDCG uses gains 2 ** relevance - 1 and discounts 1 / log2(rank + 1) (Burges et al. 2005); the others
    count relevance > 0. Equal scores are ordered at random, never in the order of the data.
    """
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    noise = rng.random(len(scores))
    for first, last in zip(slate_starts, np.append(slate_starts[1:], len(scores)), strict=True):
        truth = relevance[first:last]
        if truth.max() == 0 or truth.min() > 0:
            continue
        ranked = truth[np.lexsort((noise[first:last], -scores[first:last]))]
        clicked = ranked > 0
        values["ndcg@10"].append(_dcg(ranked[:10]) / _dcg(np.sort(truth)[::-1][:10]))
        values["precision@3"].append(float(clicked[:3].mean()))
        values["hit_rate@3"].append(float(clicked[:3].any()))
        values["mrr"].append(1.0 / (1 + int(np.argmax(clicked))))
    return {name: np.array(numbers) for name, numbers in values.items()}


def _dcg(relevance: np.ndarray) -> float:
    discounts = 1.0 / np.log2(np.arange(2, len(relevance) + 2))
    return float(((2.0**relevance - 1.0) * discounts).sum())


def bootstrap_mean(values: np.ndarray, rng: np.random.Generator, rounds: int = 1_000) -> Interval:
    """Mean and percentile interval over resampled slates; NaN where there are no slates."""
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    means = values[rng.integers(0, len(values), (rounds, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Report:
    """`rankers[name][metric]` and, for the model's gain per slate, `paired[baseline][metric]`."""

    slate_count: int
    rankers: Mapping[str, Mapping[str, Interval]]
    paired: Mapping[str, Mapping[str, Interval]]


def compare(
    scores: Mapping[str, np.ndarray],
    model: str,
    relevance: np.ndarray,
    slate_starts: np.ndarray,
    seed: int,
) -> Report:
    """Evaluates every ranking on the same slates; `model` is compared with each other one, paired."""
    per_slate = {
        name: slate_metrics(values, relevance, slate_starts, np.random.default_rng(seed))
        for name, values in scores.items()
    }
    rng = np.random.default_rng(seed)
    return Report(
        slate_count=len(per_slate[model][METRICS[0]]),
        rankers={
            name: {metric: bootstrap_mean(values[metric], rng) for metric in METRICS}
            for name, values in per_slate.items()
        },
        paired={
            name: {
                metric: bootstrap_mean(per_slate[model][metric] - values[metric], rng) for metric in METRICS
            }
            for name, values in per_slate.items()
            if name != model
        },
    )
