"""What a model is worth on slates that it has not seen, against the simple rankings that it must beat."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from app.domain.context import KEY_SEPARATOR
from training.calibration import expected_calibration_error, reliability
from training.dataset import Dataset
from training.evaluation_notes import notes_on
from training.evaluation_report import (
    DECIMALS,
    HEADLINE,
    MODEL,
    MODELS,
    POPULARITY,
    RANDOM,
    SHARES,
    TOP,
    USERS,
    Report,
)
from training.metrics import (
    SLATE_METRICS,
    Interval,
    Ranking,
    bootstrap_means,
    log_loss,
    pooled_auc,
    rank,
    ranking_metrics,
)

CATALOG_VIEW = "proposition_catalog"
SLATE_LENGTH = 10
CONTEXTS = 10
RELIABILITY_BINS = 10
EXPLAINED_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Scores:
    """What one ranker says of the n candidates: it orders them by `values`, float (n,).

    `probabilities` of a click float (n,), calibrated, of rankers that have them.
    """

    values: np.ndarray
    probabilities: np.ndarray | None = None

    @property
    def confidence(self) -> np.ndarray:
        """How likely each candidate is thought to be clicked, float (n,)."""
        return self.values if self.probabilities is None else self.probabilities


@dataclass(frozen=True, slots=True)
class Explanation:
    """By column: its share of the gain of all splits, and the mean |contribution| to the score (SHAP values)."""

    importance: Mapping[str, float] = field(default_factory=dict)
    shap: Mapping[str, float] = field(default_factory=dict)


def evaluate(
    scored: Mapping[str, Scores],
    dataset: Dataset,
    seed: int,
    *,
    hidden: Mapping[str, np.ndarray] | None = None,
    explanation: Explanation | None = None,
    rounds: int = 1_000,
) -> Report:
    """Compares rankers on the same slates. `scored` has the model, RANDOM and whatever else it is compared with.

    `hidden` has the model's scores (n,) of the same candidates where the history of USERS or of PROPOSITIONS was hidden.
    """
    rng = np.random.default_rng(seed)
    starts, relevance = dataset.slates.starts, dataset.relevance
    rankings = {name: rank(scores.values, relevance, starts, rng) for name, scores in scored.items()}
    metrics = {name: ranking_metrics(ranking) for name, ranking in rankings.items()}
    groups, by_propositions, by_context = _groups(dataset), _by_propositions(dataset), _by_context(dataset)
    shown = _Shown.of(dataset)
    report = Report(
        slate_count=dataset.slate_count,
        slates={
            **_slate_counts(rankings[MODEL], {**groups, **by_propositions}),
            "context": _slate_counts(rankings[MODEL], by_context),
            "impressions": len(dataset),
        },
        rankers={
            name: {
                group: {**_means(metrics[name], chosen), **_pooled(scores, dataset, chosen)}
                for group, chosen in groups.items()
            }
            for name, scores in scored.items()
        },
        intervals=_intervals(metrics, groups, rng, rounds),
        paired=_paired(metrics, rng, rounds),
        segments={
            **_by_ranker(metrics, by_propositions),
            "context": _by_ranker(metrics, by_context),
        },
        retained_lift={
            name: _retained_lift_of(name, scores, metrics, dataset, rng)
            for name, scores in (hidden or {}).items()
        },
        selective=_selective(scored, rankings, rng, rounds),
        coverage=_coverage(scored, rankings[MODEL], shown),
        diversity={name: _diversity(ranking, shown) for name, ranking in rankings.items()},
        calibration=_calibration(scored, dataset),
        ceiling=_ceiling(dataset, rng),
        **asdict(explanation or Explanation()),
    )
    return Report(
        **{each.name: getattr(report, each.name) for each in fields(Report) if each.name != "notes"},
        notes=tuple(notes_on(report)),
    )


def explain(booster, matrix: np.ndarray, columns: Sequence[str], rng: np.random.Generator) -> Explanation:
    """What an xgboost Booster goes by, on a sample of the rows of `matrix` float32 (n, columns)."""
    import xgboost

    chosen = np.sort(rng.permutation(len(matrix))[:EXPLAINED_ROWS])
    sample = xgboost.DMatrix(matrix[chosen], feature_names=booster.feature_names)
    # The last column is the same for all: the bias.
    contributions = np.abs(booster.predict(sample, pred_contribs=True)[:, :-1]).mean(axis=0)
    gains = booster.get_score(importance_type="total_gain")
    names = booster.feature_names or [f"f{number}" for number in range(len(columns))]
    total = sum(gains.values()) or 1.0
    return Explanation(
        importance={
            column: gains.get(name, 0.0) / total for column, name in zip(columns, names, strict=True)
        },
        shap=dict(zip(columns, contributions.astype(float).tolist(), strict=True)),
    )


def retained_lift(full: np.ndarray, hidden: np.ndarray, random: np.ndarray) -> float:
    """How much of the lift over a random order is left without history: of NDCG@10 float64 (m,) of the same slates.

    0 where there was no lift, NaN where there are no slates with a click.

    >>> retained_lift(np.array([0.8, np.nan]), np.array([0.7, np.nan]), np.array([0.4, np.nan]))
    0.75
    """
    lift = _mean(full - random)
    return round(_mean(hidden - random) / lift, DECIMALS) if lift > 0 else 0.0 if lift <= 0 else math.nan


def _groups(dataset: Dataset) -> dict[str, np.ndarray]:
    """bool (m,) by name: all slates, those of users with history and those of users without."""
    is_cold = dataset.is_cold_user
    return {"all": np.ones(len(is_cold), bool), "warm": ~is_cold, "cold": is_cold}


def _by_propositions(dataset: Dataset) -> dict[str, np.ndarray]:
    """bool (m,): slates most of whose candidates had been shown before, and slates most of whose had not."""
    cold_counts = np.bincount(dataset.slate_of_row, dataset.is_cold_proposition, dataset.slate_count)
    cold_shares = cold_counts / np.maximum(dataset.slate_sizes, 1)
    return {"warm_propositions": cold_shares < 0.5, "cold_propositions": cold_shares > 0.5}


def _by_context(dataset: Dataset) -> dict[str, np.ndarray]:
    """bool (m,) by the most frequent `field=value` of the context."""
    keys, number_of_key, counts = np.unique(
        dataset.slates.context_keys, return_inverse=True, return_counts=True
    )
    keys_of_value: dict[str, list[int]] = {}
    for number, key in enumerate(keys.tolist()):
        for value in filter(None, key.split(KEY_SEPARATOR)):
            keys_of_value.setdefault(value, []).append(number)
    ordered = sorted(keys_of_value, key=lambda value: (-counts[keys_of_value[value]].sum(), value))
    return {value: np.isin(number_of_key, keys_of_value[value]) for value in ordered[:CONTEXTS]}


def _by_ranker(
    metrics: Mapping[str, Mapping[str, np.ndarray]], groups: Mapping[str, np.ndarray]
) -> dict[str, dict[str, dict[str, float]]]:
    return {
        group: {name: _means(values, chosen) for name, values in metrics.items()}
        for group, chosen in groups.items()
    }


def _slate_counts(ranking: Ranking, groups: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Slates with a click by group, which is how many the means are over."""
    is_clicked = ranking.click_counts > 0
    return {name: int((is_clicked & chosen).sum()) for name, chosen in groups.items()}


def _means(values: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, float]:
    return {metric: _mean(values[metric][chosen]) for metric in SLATE_METRICS}


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _pooled(scores: Scores, dataset: Dataset, chosen: np.ndarray) -> dict[str, float]:
    """What is measured over the candidates of all chosen slates at once."""
    rows = chosen[dataset.slate_of_row]
    clicked = dataset.relevance[rows] > 0
    pooled = {"pooled_auc": pooled_auc(scores.values[rows], clicked)}
    if scores.probabilities is None:
        return pooled
    probabilities = scores.probabilities[rows]
    error = expected_calibration_error(probabilities, clicked) if len(clicked) else math.nan
    return {**pooled, "log_loss": log_loss(probabilities, clicked), "calibration_error": float(error)}


def _intervals(
    metrics: Mapping[str, Mapping[str, np.ndarray]],
    groups: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    rounds: int,
) -> dict[str, dict[str, dict[str, Interval]]]:
    intervals: dict[str, dict[str, dict[str, Interval]]] = {name: {} for name in metrics}
    for group, chosen in groups.items():
        columns = {
            (name, metric): values[metric][chosen]
            for name, values in metrics.items()
            for metric in SLATE_METRICS
        }
        for (name, metric), interval in bootstrap_means(columns, rng, rounds).items():
            intervals[name].setdefault(group, {})[metric] = interval
    return intervals


def _paired(
    metrics: Mapping[str, Mapping[str, np.ndarray]], rng: np.random.Generator, rounds: int
) -> dict[str, dict[str, Interval]]:
    """By "model-baseline" and metric: what the model gains over the baseline on the same slates."""
    pairs = [(model, other) for model in MODELS if model in metrics for other in metrics if other != model]
    columns = {
        (model, other, metric): metrics[model][metric] - metrics[other][metric]
        for model, other in pairs
        for metric in SLATE_METRICS
    }
    paired: dict[str, dict[str, Interval]] = {}
    for (model, other, metric), interval in bootstrap_means(columns, rng, rounds).items():
        paired.setdefault(f"{model}-{other}", {})[metric] = interval
    return paired


def _retained_lift_of(
    name: str,
    scores: np.ndarray,
    metrics: Mapping[str, Mapping[str, np.ndarray]],
    dataset: Dataset,
    rng: np.random.Generator,
) -> float:
    """Of users, on the slates of those who had a history: hiding that of the others would cost nothing."""
    hidden = rank(scores, dataset.relevance, dataset.slates.starts, rng).ndcg(SLATE_LENGTH)
    chosen = ~dataset.is_cold_user if name == USERS else np.ones(dataset.slate_count, bool)
    full, random = metrics[MODEL][HEADLINE], metrics[RANDOM][HEADLINE]
    return retained_lift(full[chosen], hidden[chosen], random[chosen])


def _selective(
    scored: Mapping[str, Scores], rankings: Mapping[str, Ranking], rng: np.random.Generator, rounds: int
) -> dict[str, dict[str, float]]:
    """Precision@3 by the share of the requests that is answered, if only those with the most confidence are.

    Confidence is the precision@3 that the ranker itself expects: the mean probability of its top three. All requests
    count, with `_of_clicked` those in which anything was clicked. Popularity answers by its own confidence.
    """
    curves: dict[str, dict[str, float]] = {str(share): {} for share in SHARES}
    for name in (MODEL, POPULARITY):
        if name in scored:
            curve = _precision_by_share(scored[name], rankings[name], rng, rounds)
            prefix = "" if name == MODEL else f"{name}_"
            for share, row in curve.items():
                curves[share].update({f"{prefix}{title}": value for title, value in row.items()})
    return curves


def _precision_by_share(
    scores: Scores, ranking: Ranking, rng: np.random.Generator, rounds: int
) -> dict[str, dict[str, float]]:
    of_candidates = np.asarray(scores.confidence, np.float64)[ranking.order]
    confidence = ranking.sums(np.where(ranking.ranks < TOP, of_candidates, 0.0)) / TOP
    places = np.empty(len(confidence), np.int64)
    places[np.lexsort((rng.random(len(confidence)), -confidence))] = np.arange(len(confidence))
    is_answered = {str(share): places < math.ceil(share * len(places)) for share in SHARES}
    precision, of_clicked = ranking.clicks_within(TOP) / TOP, ranking.precision(TOP)
    intervals = bootstrap_means(
        {share: np.where(chosen, precision, np.nan) for share, chosen in is_answered.items()}, rng, rounds
    )
    return {
        share: {
            "requests": int(chosen.sum()),
            "precision@3": intervals[share].mean,
            "precision@3_low": intervals[share].low,
            "precision@3_high": intervals[share].high,
            "precision@3_of_clicked": _mean(of_clicked[chosen]),
            "expected_precision@3": _mean(confidence[chosen]),
            "least_confidence": float(confidence[chosen].min(initial=np.inf)),
        }
        for share, chosen in is_answered.items()
    }


@dataclass(frozen=True, slots=True)
class _Shown:
    """Numbers int64 (n,) of the candidates' propositions and categories; `categories` None where they are not known."""

    propositions: np.ndarray
    proposition_count: int
    categories: np.ndarray | None

    @classmethod
    def of(cls, dataset: Dataset) -> "_Shown":
        known, propositions = np.unique(dataset.proposition_ids, return_inverse=True)
        catalog = dataset.rows.get(CATALOG_VIEW)
        has_categories = catalog is not None and "category" in catalog.values
        categories = np.unique(catalog.values["category"], return_inverse=True)[1] if has_categories else None
        return cls(propositions, len(known), categories)


def _coverage(scored: Mapping[str, Scores], ranking: Ranking, shown: _Shown) -> dict[str, float]:
    """Shares: of requests that get all candidates ranked, by anyone and by the model; of propositions shown in a top 10."""
    is_ranked = {
        name: ranking.sums(~np.isfinite(scores.values)[ranking.order]) == 0 for name, scores in scored.items()
    }
    of_top = shown.propositions[ranking.order[ranking.ranks < SLATE_LENGTH]]
    return {
        "requests": _mean(np.any(list(is_ranked.values()), axis=0).astype(np.float64)),
        "model": _mean(is_ranked[MODEL].astype(np.float64)),
        "catalog": len(np.unique(of_top)) / shown.proposition_count if shown.proposition_count else math.nan,
    }


def _diversity(ranking: Ranking, shown: _Shown) -> dict[str, float]:
    """Of the first ten of each slate: distinct categories per place, and how evenly the propositions get shown.

    Entropy is 1 if all propositions of the test slates are shown equally often; Gini is 0 then, and near 1 if a few take
    it all.
    """
    is_within = ranking.ranks < SLATE_LENGTH
    rows, slates = ranking.order[is_within], ranking.slates[is_within]
    count = shown.proposition_count
    exposure = np.sort(np.bincount(shown.propositions[rows], minlength=count))
    shares = exposure[exposure > 0] / max(exposure.sum(), 1)
    evenness = float(-(shares * np.log(shares)).sum() / np.log(count)) if count > 1 else math.nan
    lorenz = 2.0 * (np.arange(1, count + 1) * exposure).sum() / max(count * exposure.sum(), 1)
    return {
        "distinct_categories@10": _distinct_share(slates, shown.categories, rows),
        "exposure_entropy": evenness,
        "exposure_gini": float(lorenz - (count + 1) / count) if count else math.nan,
    }


def _distinct_share(slates: np.ndarray, categories: np.ndarray | None, rows: np.ndarray) -> float:
    """Mean over slates: different categories of a slate's `rows`, divided by their number."""
    if categories is None:
        return math.nan
    count = int(categories.max(initial=0)) + 1
    distinct = np.bincount(np.unique(slates * count + categories[rows]) // count)
    places = np.bincount(slates)
    return _mean(distinct[places > 0] / places[places > 0])


def _calibration(scored: Mapping[str, Scores], dataset: Dataset) -> dict[str, Any]:
    """`predicted` and `observed` rates of clicks with the `counts` of impressions behind them, bin by bin."""
    clicked = dataset.relevance > 0
    return {
        name: {
            "expected_calibration_error": float(expected_calibration_error(scores.probabilities, clicked)),
            **asdict(reliability(scores.probabilities, clicked, RELIABILITY_BINS)),
        }
        for name, scores in scored.items()
        if scores.probabilities is not None and len(clicked)
    }


def _ceiling(dataset: Dataset, rng: np.random.Generator) -> dict[str, float]:
    """What the best possible order reaches, which sees the clicks, and how much was clicked at all."""
    ideal = rank(dataset.relevance, dataset.relevance, dataset.slates.starts, rng)
    return {
        **{metric: _mean(values) for metric, values in ranking_metrics(ideal).items()},
        "precision@3_of_all_requests": _mean(ideal.clicks_within(TOP) / TOP),
        "click_rate": _mean((dataset.relevance > 0).astype(np.float64)),
        "slates_with_a_click": _mean((ideal.click_counts > 0).astype(np.float64)),
        "slates_with_three_clicks": _mean((ideal.click_counts >= TOP).astype(np.float64)),
    }
