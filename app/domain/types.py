"""The nouns of the service. Times are timezone-aware; ids are strings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import numpy as np


class EventType(StrEnum):
    """What a user did with a proposition. The order is the order of every counter array."""

    IMPRESSION = "impression"
    CLICK = "click"
    CONVERSION = "conversion"
    DISMISS = "dismiss"


class Strategy(StrEnum):
    """Which ranker ordered a slate."""

    MODEL = "model"
    RULES = "rules"
    DEFAULT = "default"


class DegradationLevel(IntEnum):
    FULL = 0
    FEATURES_STALE_OR_MISSING = 1
    RULES = 2
    STATIC_DEFAULT = 3


class FeatureState(StrEnum):
    """Where the features of one entity stood when a slate was ranked."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class User:
    user_id: str
    age_years: float | None = None
    gender: str | None = None
    segment: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Proposition:
    proposition_id: str
    title: str
    category: str | None = None
    tags: tuple[str, ...] = ()
    value: float | None = None
    is_active: bool = True
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What happened. `request_id` names the slate that it belongs to, `position` counts from 1."""

    event_id: str
    event_type: EventType
    proposition_id: str
    occurred_at: datetime
    user_id: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    position: int | None = None
    value: float | None = None


class StoredIn(StrEnum):
    """Where an acknowledged event rests; from the others it finds its way to PostgreSQL by itself."""

    POSTGRES = "postgres"
    KAFKA = "kafka"
    SPOOL = "spool"


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event of the log, reduced to what the feature fold needs.

    It counts at `counted_at` (its own time, never after its receipt) and is visible from
    `received_at`, both in seconds since the epoch. No two commits share a `received_at`.
    """

    event_type: EventType
    proposition_id: str
    user_id: str | None
    category: str | None
    context_key: str
    counted_at_s: float
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Filters:
    """What the caller wants to see only: any of these categories, and all of these tags."""

    categories: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    min_value: float | None = None


@dataclass(frozen=True, slots=True)
class SuggestRequest:
    context: Mapping[str, str]
    context_key: str
    limit: int
    user_id: str | None = None
    candidate_ids: frozenset[str] | None = None
    excluded_ids: frozenset[str] = frozenset()
    filters: Filters = field(default_factory=Filters)


class RankedProposition(NamedTuple):
    """One place of a slate. `details` is the proposition as a JSON object, `sources` why it was a candidate."""

    proposition_id: str
    rank: int
    score: float
    sources: tuple[str, ...]
    details: bytes


@dataclass(frozen=True, slots=True, eq=False)
class SlateFeatures:
    """What a model read of the propositions of a slate: `rows` float32 (propositions, columns), in the slate's order.

    What belongs to the candidates themselves is as of `candidates_as_of_s`, in seconds since the epoch, all else as of
    the decision.
    """

    columns: tuple[str, ...]
    rows: np.ndarray
    candidates_as_of_s: float


@dataclass(frozen=True, slots=True)
class Slate:
    """The ordered answer to one request, and how honest it can be about itself.

    `features` of the few slates that are audited, or what computes them when there is time.
    """

    request_id: str
    decided_at: datetime
    propositions: tuple[RankedProposition, ...]
    strategy: Strategy
    model_version: str | None
    degradation_level: DegradationLevel
    feature_states: Mapping[str, FeatureState]
    candidate_count: int
    is_cached: bool = False
    features: SlateFeatures | Callable[[], SlateFeatures] | None = field(default=None, compare=False)
