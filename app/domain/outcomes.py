"""What came of slates and of categories, in numbers of events."""

from dataclasses import dataclass

from app.domain.types import EventType

# In the place of a name: there is none, and one of too many to tell apart.
NONE, OTHER = "none", "other"


@dataclass(frozen=True, slots=True)
class SlateOutcomes:
    """Events of slates that were ranked by the same; `strategy` and `model_version` are `NONE` without any."""

    event_type: EventType
    strategy: str
    model_version: str
    count: int


@dataclass(frozen=True, slots=True)
class CategoryOutcomes:
    """Events of propositions of a category; `category` is `NONE` for those without."""

    event_type: EventType
    category: str
    count: int
