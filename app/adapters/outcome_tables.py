"""What came of slates, and how the tables stand as a whole: aggregates for metrics."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.domain.outcomes import NONE, CategoryOutcomes, SlateOutcomes
from app.domain.types import EventType
from app.features.fold import COUNTER_VIEWS, FOLDED_VIEWS
from app.features.schema import EntityName

# What happens later belongs to no slate any more. Also the clocks of machines differ.
ATTRIBUTED_FOR, CLOCK_DIFFERENCE = timedelta(days=7), timedelta(minutes=5)
_FACT_VIEWS = ("user_profile", "proposition_catalog")
# The newest row of a view is mostly younger, and then only the end of its table is read.
_FIRST_LOOK = timedelta(hours=1)

# Events of a slate come together, so the decision is looked up once for all of them; the bounds leave the partitions of
# other months alone.
_OUTCOMES = text(f"""
    WITH happened AS (
        SELECT event_type, request_id, coalesce(category, '{NONE}') AS category, count(*) AS n
        FROM events WHERE received_at > :after AND received_at <= :until
        GROUP BY event_type, request_id, 3
    ), slates AS (
        SELECT wanted.request_id, ranked.strategy, coalesce(ranked.model_version, '{NONE}') AS model_version
        FROM (SELECT DISTINCT request_id FROM happened) AS wanted CROSS JOIN LATERAL (
            SELECT strategy, model_version FROM decisions
            WHERE request_id = wanted.request_id AND decided_at BETWEEN :decided_after AND :decided_until
            LIMIT 1
        ) AS ranked
    )
    SELECT event_type, coalesce(strategy, '{NONE}'), coalesce(model_version, '{NONE}'), category,
           GROUPING(category) = 1 AS is_of_slates, sum(n)::bigint
    FROM happened LEFT JOIN slates USING (request_id)
    GROUP BY GROUPING SETS (
        (event_type, coalesce(strategy, '{NONE}'), coalesce(model_version, '{NONE}')), (event_type, category))""")

_ACTIVE = "is_active AND deleted_at IS NULL"
_LARGEST_CATEGORIES = text(f"""
    SELECT category FROM propositions WHERE {_ACTIVE} AND category IS NOT NULL
    GROUP BY category ORDER BY count(*) DESC, category LIMIT :most""")

# Every event of a proposition leaves a row of its counters.
_SHOWN_SHARE = text(f"""
    SELECT (SELECT count(*) FROM propositions AS p WHERE {_ACTIVE} AND EXISTS (
               SELECT FROM {COUNTER_VIEWS[EntityName.PROPOSITION]} AS row
               WHERE row.proposition_id = p.proposition_id AND row.event_timestamp > :since))::float8
           / nullif((SELECT count(*) FROM propositions WHERE {_ACTIVE}), 0)""")


class OutcomeTables:
    """All methods raise StoreUnavailable when PostgreSQL does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def outcomes(
        self, after: datetime, until: datetime
    ) -> tuple[list[SlateOutcomes], list[CategoryOutcomes]]:
        """Of the events that were received after one moment and until another."""
        moments = {
            "after": after,
            "until": until,
            "decided_after": after - ATTRIBUTED_FOR,
            "decided_until": until + CLOCK_DIFFERENCE,
        }
        slates: list[SlateOutcomes] = []
        of_categories: list[CategoryOutcomes] = []
        with self._database.transaction() as connection:
            for row in connection.execute(_OUTCOMES, moments):
                event_type, strategy, version, category, is_of_slates, count = row
                if is_of_slates:
                    slates.append(SlateOutcomes(EventType(event_type), strategy, version, count))
                else:
                    of_categories.append(CategoryOutcomes(EventType(event_type), category, count))
        return slates, of_categories

    def largest_categories(self, most: int) -> list[str]:
        """Those with the most active propositions, largest first."""
        with self._database.transaction() as connection:
            return list(connection.execute(_LARGEST_CATEGORIES, {"most": most}).scalars())

    def shown_share(self, since: datetime) -> float | None:
        """Of the active propositions, those that had an event since a moment; None if there are none."""
        with self._database.transaction() as connection:
            # It may take a second, but no more processors than one from those who wait.
            connection.execute(text("SET LOCAL max_parallel_workers_per_gather = 0"))
            return connection.execute(_SHOWN_SHARE, {"since": since}).scalar_one()

    def newest_rows(self, known: Mapping[str, datetime]) -> dict[str, datetime]:
        """The time of the newest row of each feature view that has any, beginning with what is known."""
        newest = dict(known)
        with self._database.transaction() as connection:
            for view in (*FOLDED_VIEWS, *_FACT_VIEWS):
                after = known.get(view)
                moment = _newest_row(connection, view, after or datetime.now(UTC) - _FIRST_LOOK)
                if moment is None and after is None:
                    moment = _newest_row(connection, view, None)
                if moment is not None:
                    newest[view] = moment
        return newest


def _newest_row(connection: Connection, view: str, after: datetime | None) -> datetime | None:
    condition = "" if after is None else "WHERE event_timestamp > :after"
    return connection.execute(
        text(f"SELECT max(event_timestamp) FROM {view} {condition}"), {"after": after} if after else {}
    ).scalar_one()
