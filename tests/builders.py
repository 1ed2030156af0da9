"""Small real objects for tests: data that a reader can check by hand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2

from app.domain.context import complete_context, context_key
from app.domain.types import Event, EventType, Proposition, RecordedEvent, SuggestRequest
from app.features.schema import EntityName, FeatureSchema, FieldKind, FieldSchema, ViewSchema
from app.settings import Settings

NOON = datetime(2026, 5, 15, 12, 0, tzinfo=UTC)  # a Friday
HOUR_S, DAY_S = 3_600.0, 86_400.0
CONTEXT_FIELDS = ("page", "device", "daypart", "weekday")


def event(
    event_id: str,
    event_type: str = "click",
    proposition_id: str = "p1",
    at: datetime = NOON,
    **fields: Any,
) -> Event:
    return Event(
        event_id=event_id,
        event_type=EventType(event_type),
        proposition_id=proposition_id,
        occurred_at=at,
        context=complete_context(fields.pop("context", {}), at, UTC),
        **{"user_id": "u1", **fields},
    )


def recorded(
    event_type: str = "click",
    proposition_id: str = "p1",
    after_s: float = 0.0,
    user_id: str | None = "u1",
    category: str | None = "sport",
    received_after_s: float | None = None,
) -> RecordedEvent:
    received_at = NOON + timedelta(seconds=after_s if received_after_s is None else received_after_s)
    return RecordedEvent(
        event_type=EventType(event_type),
        proposition_id=proposition_id,
        user_id=user_id,
        category=category,
        context_key="weekday=fri",
        counted_at_s=NOON.timestamp() + after_s,
        received_at=received_at,
    )


def proposition(proposition_id: str, **fields: Any) -> Proposition:
    return Proposition(proposition_id, fields.pop("title", proposition_id.upper()), **fields)


def request(limit: int = 10, user_id: str | None = "u1", **fields: Any) -> SuggestRequest:
    context = complete_context(fields.pop("context", {}), NOON, UTC)
    return SuggestRequest(
        context=context,
        context_key=context_key(context, CONTEXT_FIELDS),
        limit=limit,
        user_id=user_id,
        **fields,
    )


def counter_view(
    name: str, entity: EntityName, join_key: str, prior_view: str | None = None, ttl_s: float = 365 * DAY_S
) -> ViewSchema:
    fields = tuple(
        FieldSchema(field, "Array(Float64)", FieldKind.COUNTER)
        for field in ("impressions", "clicks", "conversions", "dismissals")
    )
    as_of = FieldSchema("as_of_s", "Float64", FieldKind.COUNTER)
    return ViewSchema(name, entity, join_key, (*fields, as_of), ttl_s, prior_view)


SMALL_SCHEMA = FeatureSchema(
    project="propositions",
    service="ranker_v1",
    views=(
        ViewSchema(
            "proposition_catalog",
            EntityName.PROPOSITION,
            "proposition_id",
            (
                FieldSchema("category", "String", FieldKind.CATEGORY),
                FieldSchema("value", "Float64", FieldKind.NUMBER),
                FieldSchema("created_at_s", "Float64", FieldKind.TIME),
            ),
            3650 * DAY_S,
        ),
        counter_view("user_activity", EntityName.USER, "user_id"),
        counter_view(
            "user_category_affinity", EntityName.USER_CATEGORY, "user_category_key", "user_activity"
        ),
        counter_view("proposition_performance", EntityName.PROPOSITION, "proposition_id"),
    ),
)


def query(settings: Settings, sql: str, parameters: Sequence[Any] = ()) -> list[tuple]:
    """Rows straight from Postgres, past all code under test."""
    connection = psycopg2.connect(settings.postgres_url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def count(settings: Settings, table: str) -> int:
    return query(settings, f"SELECT count(*) FROM {table}")[0][0]


@contextmanager
def refusal(settings: Settings, condition: str) -> Iterator[None]:
    """PostgreSQL answers, and refuses every append with an error of that name, until the block ends."""
    query(
        settings,
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{condition}'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON log_heads FOR EACH STATEMENT EXECUTE FUNCTION refuse()""",
    )
    yield
    query(settings, "DROP FUNCTION refuse CASCADE")
