"""What is wrong with a data set and its matrix."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from training.dataset import Dataset
from training.lint.findings import MAX_EXAMPLES, Finding, LintLimits, Severity
from training.metrics import pooled_auc, rank

POSITION_NAMES = ("position", "rank", "slot")
# Of the rows with a known position, those in which a column may differ from it and still be it.
_POSITION_EXCEPTIONS = 0.01


def lint_dataset(
    dataset: Dataset,
    matrix: np.ndarray,
    columns: Sequence[str],
    limits: LintLimits = LintLimits(),
    model_scores: np.ndarray | None = None,
) -> list[Finding]:
    """What is wrong with a data set and its matrix, float32 (n, columns).

    `model_scores` float (n,) are a model's of the same impressions: no column alone should be much better.
    """
    return [
        *_few_slates(dataset, limits),
        *_rate_jumps(dataset, limits),
        *_features_from_later(dataset),
        *_empty_columns(matrix, columns, limits),
        *_positions_as_features(dataset, matrix, columns),
        *_leaking_columns(dataset, matrix, columns, limits),
        *_columns_ahead_of_the_model(dataset, matrix, columns, limits, model_scores),
    ]


def _few_slates(dataset: Dataset, limits: LintLimits) -> list[Finding]:
    clicks = np.bincount(dataset.slate_of_row, dataset.relevance > 0, dataset.slate_count)
    telling = int(((clicks > 0) & (clicks < dataset.slate_sizes)).sum())
    if telling >= limits.min_slates:
        return []
    message = (
        f"slates have both a click and something not clicked; {limits.min_slates} are the least to learn from"
    )
    share = telling / max(dataset.slate_count, 1)
    return [Finding("too few slates", Severity.ERROR, telling, share, message)]


def _rate_jumps(dataset: Dataset, limits: LintLimits) -> list[Finding]:
    """Click rates from bucket to bucket. Slates vary as a whole, so the standard errors are those of slates."""
    clicks = np.bincount(dataset.slate_of_row, dataset.relevance > 0, dataset.slate_count)
    buckets = np.array_split(
        np.arange(dataset.slate_count), min(limits.buckets, max(dataset.slate_count // 20, 1))
    )
    findings = []
    rates = [_rate(clicks[bucket], dataset.slate_sizes[bucket]) for bucket in buckets]
    for bucket, (before, before_error), (after, after_error) in zip(
        buckets[1:], rates[:-1], rates[1:], strict=True
    ):
        is_certain = abs(after - before) > limits.jump_errors * np.hypot(before_error, after_error)
        is_large = max(before, after) >= limits.jump_factor * min(before, after)
        if is_certain and is_large:
            at = datetime.fromtimestamp(dataset.slates.decided_at_s[bucket[0]], UTC)
            message = f"slates from {at:%Y-%m-%d %H:%M} on have a click rate of {after:.4f}, those before {before:.4f}"
            share = len(bucket) / dataset.slate_count
            findings.append(Finding("label rate jumps", Severity.WARNING, len(bucket), share, message))
    return findings


def _rate(clicks: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Clicks per impression and the standard error of that, of slates with these clicks and sizes."""
    rate = clicks.sum() / sizes.sum()
    return rate, float(np.sqrt(((clicks - rate * sizes) ** 2).sum()) / sizes.sum())


def _features_from_later(dataset: Dataset) -> list[Finding]:
    findings = []
    for name, rows in dataset.rows.items():
        if rows.as_of_s is None:
            continue
        is_of_slates = len(rows) == dataset.slate_count
        slates = np.arange(dataset.slate_count) if is_of_slates else dataset.slate_of_row
        later = rows.as_of_s >= dataset.slates.decided_at_s[slates]
        if later.any():
            message = (
                f"rows of {name} hold something from the moment of their slate or later: the label leaks"
            )
            examples = tuple(dict.fromkeys(dataset.slates.ids[slates[later]].tolist()))[:MAX_EXAMPLES]
            share = float(later.mean())
            findings.append(
                Finding("features from later", Severity.ERROR, int(later.sum()), share, message, examples)
            )
    return findings


def _empty_columns(matrix: np.ndarray, columns: Sequence[str], limits: LintLimits) -> list[Finding]:
    missing_shares = np.isnan(matrix).mean(axis=0)
    missing = [name for name, share in zip(columns, missing_shares, strict=True) if share == 1.0]
    rare = [
        name
        for name, share in zip(columns, missing_shares, strict=True)
        if limits.max_missing_share < share < 1.0
    ]
    constant = [
        name
        for name, values, share in zip(columns, matrix.T, missing_shares, strict=True)
        if share == 0.0 and np.all(values == values[0])
    ]
    return [
        Finding(name, Severity.WARNING, len(found), len(found) / len(columns), message, tuple(found))
        for name, found, message in (
            ("missing columns", missing, "columns have no value at all: a model learns nothing from them"),
            (
                "rare columns",
                rare,
                f"columns have no value in over {limits.max_missing_share:.1%} of the rows",
            ),
            ("constant columns", constant, "columns have the same value in all rows"),
        )
        if found
    ]


def _positions_as_features(dataset: Dataset, matrix: np.ndarray, columns: Sequence[str]) -> list[Finding]:
    is_known = ~np.isnan(dataset.positions)
    positions = dataset.positions[is_known]
    found = [
        name
        for name, values in zip(columns, matrix.T, strict=True)
        if name.rsplit(".", 1)[-1] in POSITION_NAMES
        or (len(np.unique(positions)) > 1 and _is_position(values[is_known], positions))
    ]
    if not found:
        return []
    message = "columns are the logged position: it is not known when candidates are ranked"
    return [
        Finding(
            "position as a feature",
            Severity.ERROR,
            len(found),
            len(found) / len(columns),
            message,
            tuple(found),
        )
    ]


def _is_position(values: np.ndarray, positions: np.ndarray) -> bool:
    return any((values != positions - first).mean() <= _POSITION_EXCEPTIONS for first in (0, 1))


def _leaking_columns(
    dataset: Dataset, matrix: np.ndarray, columns: Sequence[str], limits: LintLimits
) -> list[Finding]:
    clicked = dataset.relevance > 0
    if min(clicked.sum(), (~clicked).sum()) < limits.min_cases:
        return []
    findings = []
    for name, values in zip(columns, matrix.T, strict=True):
        auc = max(_two_sided(pooled_auc(filled, clicked)) for filled in _without_gaps(values))
        if auc > limits.max_column_auc:
            message = f"{name} alone tells clicked from not clicked with an AUC of {auc:.4f}: does it know the label?"
            findings.append(Finding("leaking column", Severity.ERROR, 1, 1 / len(columns), message, (name,)))
    return findings


def _columns_ahead_of_the_model(
    dataset: Dataset,
    matrix: np.ndarray,
    columns: Sequence[str],
    limits: LintLimits,
    model_scores: np.ndarray | None,
) -> list[Finding]:
    """Within slates, where the scores of a ranker can be compared."""
    if model_scores is None or (dataset.relevance > 0).sum() < limits.min_cases:
        return []
    model_auc = _slate_auc(model_scores, dataset)
    findings = []
    for name, values in zip(columns, matrix.T, strict=True):
        auc = max(_two_sided(_slate_auc(filled, dataset)) for filled in _without_gaps(values))
        if auc > model_auc + limits.max_auc_lead:
            message = (
                f"{name} alone ranks slates with an AUC of {auc:.4f}, the model only with {model_auc:.4f}: the column "
                "knows the label, or the model did not learn"
            )
            findings.append(
                Finding("better than the model", Severity.ERROR, 1, 1 / len(columns), message, (name,))
            )
    return findings


def _slate_auc(values: np.ndarray, dataset: Dataset) -> float:
    """The mean over slates with both clicked and not clicked candidates; 0.5 if there are none."""
    ranking = rank(values, dataset.relevance, dataset.slates.starts, np.random.default_rng(0))
    aucs = ranking.auc()
    known = aucs[~np.isnan(aucs)]
    return float(known.mean()) if len(known) else 0.5


def _without_gaps(values: np.ndarray) -> list[np.ndarray]:
    """A column with its gaps below all values, and with its gaps above: gaps can tell as well."""
    is_missing = np.isnan(values)
    if not is_missing.any():
        return [values]
    return [np.where(is_missing, gap, values) for gap in (-np.inf, np.inf)]


def _two_sided(auc: float) -> float:
    return max(auc, 1.0 - auc)
