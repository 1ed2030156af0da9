"""Bodies of requests and answers. The OpenAPI document is made from these."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, Field, RootModel

from app.api.problems import FieldProblem
from app.domain.types import DegradationLevel, FeatureState, StoredIn, Strategy
from app.events.intake import Context, EventIn, Id, Strict


class FiltersIn(Strict):
    """Show only propositions of any of these categories that have all of these tags."""

    categories: Annotated[list[Id], Field(max_length=100)] = Field(default_factory=list)
    tags: Annotated[list[Id], Field(max_length=100)] = Field(default_factory=list)
    min_value: Annotated[float, Field(allow_inf_nan=False)] | None = None


class SuggestIn(Strict):
    """Who asks, and where. An unknown or absent user gets a sensible slate, too."""

    user_id: Id | None = None
    context: Context = Field(default_factory=dict)
    limit: int = Field(10, ge=1, le=1_000, strict=True, description="Length of the slate.")
    candidates: Annotated[list[Id], Field(min_length=1, max_length=10_000)] | None = Field(
        None, description="Choose among these only."
    )
    exclude: Annotated[list[Id], Field(max_length=10_000)] = Field(
        default_factory=list, description="Never these."
    )
    filters: FiltersIn = Field(default_factory=FiltersIn)


class PropositionOut(BaseModel):
    proposition_id: str
    rank: int = Field(description="Place in the slate, from 1.")
    score: float = Field(description="Higher is better; comparable within one slate only.")
    sources: list[str] = Field(
        description="Why it was a candidate: request, catalog, covisited, favourite, trending, new, popular, default."
    )
    title: str
    category: str | None
    tags: list[str]
    value: float | None
    attributes: dict[str, Any]


class SuggestOut(BaseModel):
    """A slate, best first, and how it came about."""

    request_id: str = Field(description="Send it with the events of this slate.")
    propositions: list[PropositionOut]
    strategy: Strategy
    model_version: str | None
    degradation_level: DegradationLevel = Field(
        description="0 full, 1 features stale or missing, 2 rules, 3 static default."
    )
    features: dict[str, FeatureState] = Field(
        description="State per entity: fresh, stale, missing (nothing known), default (not asked for)."
    )
    cached: bool = Field(description="True if the slate was ranked for another request: see decided_at.")
    decided_at: datetime


class EventBatchIn(Strict):
    events: Annotated[list[EventIn], Field(min_length=1, max_length=100_000)]


class LogEventIn(RootModel[EventIn | EventBatchIn]):
    """One event, or `{"events": [...]}`. Each event of a batch is judged alone."""


class EventOutcome(StrEnum):
    """What became of one event."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


class EventOut(BaseModel):
    event_id: str | None = Field(description="As sent or given; null if a rejected event has none.")
    outcome: EventOutcome
    stored_in: StoredIn | None = Field(
        description="Where the event is durable. From Kafka and the spool it gets to PostgreSQL by itself. "
        "Null if it was rejected."
    )
    errors: list[FieldProblem] = Field(description="Why it was rejected.")


class LogEventOut(BaseModel):
    """Every event that was not rejected is durable."""

    events: list[EventOut] = Field(description="What became of each event, in the order of the request.")
    recorded: list[str] = Field(description="Ids of the events that are new.")
    duplicates: list[str] = Field(
        description="Ids that had been recorded before; they count once. While PostgreSQL is down it is told "
        "of ids within one request only; they count once all the same."
    )
    rejected: int = Field(description="How many events cannot be taken as they are: do not send them again.")


class DependencyOut(BaseModel):
    status: str = Field(description="up or down.")
    detail: str | None = Field(
        description="For operators: with a key of the scope admin, or on the private port."
    )
    breaker: str | None = Field(
        description="Of the breaker before it, if it has one: closed, half-opened or opened (nobody waits for it)."
    )


class HealthOut(BaseModel):
    status: str = Field(description="up, or degraded when a dependency is down.")
    dependencies: dict[str, DependencyOut]
