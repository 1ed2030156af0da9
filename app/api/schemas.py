"""Bodies of requests and answers. The OpenAPI document is made from these."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, RootModel, Tag

from app.domain.types import DegradationLevel, FeatureState, Strategy
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


def _single_or_batch(body: Any) -> str:
    return "batch" if isinstance(body, dict) and "events" in body else "single"


class LogEventIn(
    RootModel[
        Annotated[
            Annotated[EventIn, Tag("single")] | Annotated[EventBatchIn, Tag("batch")],
            Discriminator(_single_or_batch),
        ]
    ]
):
    """One event, or `{"events": [...]}`. A batch is stored whole or not at all."""

    @property
    def events(self) -> list[EventIn]:
        return self.root.events if isinstance(self.root, EventBatchIn) else [self.root]


class LogEventOut(BaseModel):
    """All events are durable."""

    recorded: list[str] = Field(description="Ids of the events that are new.")
    duplicates: list[str] = Field(description="Ids that had been recorded before; they count once.")


class DependencyOut(BaseModel):
    status: str = Field(description="up or down.")
    detail: str


class HealthOut(BaseModel):
    status: str = Field(description="up, or degraded when a dependency is down.")
    dependencies: dict[str, DependencyOut]
