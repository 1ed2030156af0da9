"""What is wrong with recorded events."""

from typing import Any

from sqlalchemy import Connection, text

from app.adapters.database import Database
from training.lint.findings import MAX_EXAMPLES, Finding, LintLimits, Severity


def lint_events(database: Database, limits: LintLimits = LintLimits()) -> list[Finding]:
    """What is wrong with the event log, at one moment.

    Raises:
        StoreUnavailable: PostgreSQL does not answer.
    """
    with database.snapshot() as connection:
        findings = [check(connection, limits) for check in _EVENT_CHECKS]
    return [finding for finding in findings if finding is not None]


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
    return Finding(name, severity, count, share, message, tuple(sorted(examples)[:MAX_EXAMPLES]))


def _counted(rows: str, total: str, example: str) -> str:
    """SQL of how many rows there are, of how many in all, and a few examples."""
    return f"""
        WITH found AS ({rows})
        SELECT count(*), ({total}),
               array(SELECT {example} FROM found ORDER BY 1 LIMIT {MAX_EXAMPLES}) FROM found"""


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
