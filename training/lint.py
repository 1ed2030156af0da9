"""What is wrong with recorded events and with a data set made of them, before a model learns it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from app.adapters.database import Database
from training.dataset import Dataset
from training.metrics import pooled_auc, rank

POSITION_NAMES = ("position", "rank", "slot")
# Of the rows with a known position, those in which a column may differ from it and still be it.
_POSITION_EXCEPTIONS = 0.01
_MAX_EXAMPLES = 5


class Severity(StrEnum):
    """An error makes what is learned wrong; a warning may."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """`count` of what is named by `message`, and its `share` of all of that kind; a few `examples` by id or name."""

    name: str
    severity: Severity
    count: int
    share: float
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LintLimits:
    """From where on something is wrong.

    `max_orphan_share` of clicks and conversions without an impression, `max_unknown_share` of events whose proposition is
    not in the catalog, and `max_skewed_share` of events with an impossible time: beyond these they are errors, below
    warnings. `max_ahead_s`: how far a client's clock may run ahead of the receipt. `max_late_s`: how late an event may
    arrive. `min_bot_impressions`: of a user who is judged by clicking everything, or nothing although that has a
    probability below `max_chance`. `jump_errors` and `jump_factor`: a label rate jumps if it differs from that of the
    bucket of time before by as many standard errors and by that factor. `buckets` of equally many slates.
    `max_column_auc` of one column alone over all impressions; `max_auc_lead` of one column over the model within slates.
    `min_cases`: with fewer clicked or not clicked impressions no column is judged. `max_missing_share` of a column.
    """

    max_orphan_share: float = 0.2
    max_unknown_share: float = 0.05
    max_skewed_share: float = 0.05
    max_ahead_s: float = 60.0
    max_late_s: float = 7 * 86_400.0
    min_bot_impressions: int = 50
    max_chance: float = 1e-6
    buckets: int = 20
    jump_errors: float = 4.0
    jump_factor: float = 2.0
    max_column_auc: float = 0.95
    max_auc_lead: float = 0.03
    min_cases: int = 50
    max_missing_share: float = 0.995
    min_slates: int = 100


def lint_events(database: Database, limits: LintLimits = LintLimits()) -> list[Finding]:
    """What is wrong with the event log, at one moment.

    Raises:
        StoreUnavailable: PostgreSQL does not answer.
    """
    with database.snapshot() as connection:
        findings = [check(connection, limits) for check in _EVENT_CHECKS]
    return [finding for finding in findings if finding is not None]


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


def _share_finding(
    name: str, severity: Severity, row: Any, message: str, unless: float | None = None
) -> Finding | None:
    """A finding from a row (count, total, examples); an error where its share is beyond `unless`."""
    count, total, examples = row
    if not count:
        return None
    share = count / total
    if unless is not None and share > unless:
        severity = Severity.ERROR
    return Finding(name, severity, count, share, message, tuple(sorted(examples)[:_MAX_EXAMPLES]))


def _counted(rows: str, total: str, example: str) -> str:
    """SQL of how many rows there are, of how many in all, and a few examples."""
    return f"""
        WITH found AS ({rows})
        SELECT count(*), ({total}),
               array(SELECT {example} FROM found ORDER BY 1 LIMIT {_MAX_EXAMPLES}) FROM found"""


def _orphans(connection: Connection, limits: LintLimits) -> Finding | None:
    query = _counted(
        """
        SELECT o.event_id FROM events o
        WHERE o.event_type IN ('click', 'conversion') AND CASE WHEN o.request_id IS NULL
            THEN NOT EXISTS (
                SELECT FROM events i WHERE i.event_type = 'impression' AND i.user_id = o.user_id
                    AND i.proposition_id = o.proposition_id)
            ELSE NOT EXISTS (
                SELECT FROM events i WHERE i.event_type = 'impression' AND i.request_id = o.request_id
                    AND i.proposition_id = o.proposition_id) END""",
        "SELECT count(*) FROM events WHERE event_type IN ('click', 'conversion')",
        "event_id",
    )
    return _share_finding(
        "clicks without an impression",
        Severity.WARNING,
        connection.execute(text(query)).one(),
        "clicks and conversions of what was not shown in their slate, or never to their user: they label nothing",
        limits.max_orphan_share,
    )


def _unknown_propositions(connection: Connection, limits: LintLimits) -> Finding | None:
    query = """
        WITH found AS (
            SELECT e.proposition_id, count(*) AS events FROM events e
            WHERE NOT EXISTS (SELECT FROM propositions p WHERE p.proposition_id = e.proposition_id)
            GROUP BY e.proposition_id
        )
        SELECT coalesce(sum(events), 0)::bigint, (SELECT count(*) FROM events),
               array(SELECT proposition_id FROM found ORDER BY events DESC, 1 LIMIT 5) FROM found"""
    return _share_finding(
        "unknown propositions",
        Severity.WARNING,
        connection.execute(text(query)).one(),
        "events of propositions that are not in the catalog: nothing is known of them but their counters",
        limits.max_unknown_share,
    )


def _clocks_ahead(connection: Connection, limits: LintLimits) -> Finding | None:
    query = _counted(
        "SELECT event_id FROM events WHERE occurred_at > received_at + :ahead * interval '1 second'",
        "SELECT count(*) FROM events",
        "event_id",
    )
    return _share_finding(
        "events from the future",
        Severity.WARNING,
        connection.execute(text(query), {"ahead": limits.max_ahead_s}).one(),
        f"events that happened more than {limits.max_ahead_s:g} s after they were received: clients' clocks run ahead",
        limits.max_skewed_share,
    )


def _late_events(connection: Connection, limits: LintLimits) -> Finding | None:
    query = _counted(
        "SELECT event_id FROM events WHERE received_at > occurred_at + :late * interval '1 second'",
        "SELECT count(*) FROM events",
        "event_id",
    )
    return _share_finding(
        "late events",
        Severity.WARNING,
        connection.execute(text(query), {"late": limits.max_late_s}).one(),
        f"events that were received more than {limits.max_late_s / 86_400:g} days after they happened: clocks run "
        "behind, or they waited; no slate in between had them among its features",
    )


def _outcomes_before_impressions(connection: Connection, limits: LintLimits) -> Finding | None:
    query = _counted(
        """
        SELECT o.event_id FROM events o JOIN (
            SELECT request_id, proposition_id, min(occurred_at) AS shown_at FROM events
            WHERE event_type = 'impression' AND request_id IS NOT NULL GROUP BY request_id, proposition_id
        ) i ON i.request_id = o.request_id AND i.proposition_id = o.proposition_id
        WHERE o.event_type IN ('click', 'conversion') AND o.occurred_at < i.shown_at""",
        "SELECT count(*) FROM events WHERE event_type IN ('click', 'conversion') AND request_id IS NOT NULL",
        "event_id",
    )
    return _share_finding(
        "outcomes before their impression",
        Severity.WARNING,
        connection.execute(text(query)).one(),
        "clicks and conversions that happened before their impression: they do not count as its outcome",
        limits.max_skewed_share,
    )


def _duplicates(connection: Connection, limits: LintLimits) -> Finding | None:
    query = """
        WITH found AS (
            SELECT min(event_id) AS event_id, count(*) - 1 AS copies FROM events
            WHERE user_id IS NOT NULL OR request_id IS NOT NULL
            GROUP BY user_id, request_id, proposition_id, event_type, occurred_at HAVING count(*) > 1
        )
        SELECT coalesce(sum(copies), 0)::bigint, (SELECT count(*) FROM events),
               array(SELECT event_id FROM found ORDER BY copies DESC, 1 LIMIT 5) FROM found"""
    return _share_finding(
        "duplicates",
        Severity.WARNING,
        connection.execute(text(query)).one(),
        "events that repeat another one in all but their event_id: senders that retry must keep the event_id, or "
        "counters count twice",
        limits.max_skewed_share,
    )


def _bots(connection: Connection, limits: LintLimits) -> Finding | None:
    """Users who clicked all of many impressions, or so many times nothing that it is no chance."""
    query = """
        WITH counted AS (
            SELECT user_id, count(*) FILTER (WHERE event_type = 'impression') AS shown,
                   count(*) FILTER (WHERE event_type = 'click') AS clicked
            FROM events WHERE user_id IS NOT NULL AND event_type IN ('impression', 'click') GROUP BY user_id
        ), rates AS (
            SELECT least(sum(clicked) / nullif(sum(shown), 0), 0.999999) AS rate, sum(shown) AS shown FROM counted
        ), found AS (
            SELECT user_id, counted.shown FROM counted, rates
            WHERE counted.shown >= :least AND (
                clicked >= counted.shown OR (clicked = 0 AND counted.shown * ln(1 - rate) < ln(:chance)))
        )
        SELECT coalesce(sum(shown), 0)::bigint, (SELECT shown FROM rates),
               array(SELECT user_id FROM found ORDER BY shown DESC, 1 LIMIT 5) FROM found"""
    parameters = {"least": limits.min_bot_impressions, "chance": limits.max_chance}
    return _share_finding(
        "bots",
        Severity.WARNING,
        connection.execute(text(query), parameters).one(),
        f"impressions of users who clicked everything, or nothing, in at least {limits.min_bot_impressions} of them",
    )


_EVENT_CHECKS = (
    _orphans,
    _unknown_propositions,
    _clocks_ahead,
    _late_events,
    _outcomes_before_impressions,
    _duplicates,
    _bots,
)


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
            examples = tuple(dict.fromkeys(dataset.slates.ids[slates[later]].tolist()))[:_MAX_EXAMPLES]
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
