"""What a sender may say about an event, a user or a proposition, and how it becomes a domain object.

The HTTP service and the import share these schemas, so both refuse the same things in the same words.
"""

import json
import re
import uuid
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from app.domain.context import complete_context, is_valid_id
from app.domain.types import Event, EventType, Proposition, User

MAX_CONTEXT_FIELDS = 32
MAX_TAGS = 100
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
MAX_ATTRIBUTES_BYTES = 65_536
MAX_ATTRIBUTES_DEPTH = 32
# Far beyond any price, and far inside the range of the float32 that models read.
MAX_VALUE = 1e12
# pydantic also takes numbers in texts, signed and with points, for seconds since 1970.
_BEGINS_WITH_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")


def _valid_id(value: str) -> str:
    if not is_valid_id(value):
        raise ValueError("give 1 to 200 bytes of printable text without spaces at the ends")
    return value


def _few_fields(value: Any) -> Any:
    """Refused before each of a million fields is."""
    if isinstance(value, dict) and len(value) > MAX_CONTEXT_FIELDS:
        raise ValueError(f"has more than {MAX_CONTEXT_FIELDS} fields")
    return value


def _timestamp_text(value: Any) -> Any:
    if not isinstance(value, datetime) and not (isinstance(value, str) and _BEGINS_WITH_DATE.match(value)):
        raise ValueError("give a text such as 2026-05-17T09:30:00Z")
    return value


def _within_reach(value: datetime) -> datetime:
    """In UTC: PostgreSQL knows no offsets of 16 hours and more."""
    if not EARLIEST <= value < LATEST:
        raise ValueError("lies before 1900 or after 9000; leave it out for never")
    return value.astimezone(UTC)


def _storable_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not hold the character U+0000")
    return value


def _depth(value: Any, seen: int = 0) -> int:
    """Levels of nesting, counted no further than one past the limit."""
    if seen > MAX_ATTRIBUTES_DEPTH or not isinstance(value, (dict, list)):
        return seen
    parts = value.values() if isinstance(value, dict) else value
    return max((_depth(part, seen + 1) for part in parts), default=seen + 1)


def _storable_attributes(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses what JSON in PostgreSQL cannot hold: NaN, lone surrogates, U+0000, endless nesting."""
    if _depth(value) > MAX_ATTRIBUTES_DEPTH:
        raise ValueError(f"is nested deeper than {MAX_ATTRIBUTES_DEPTH} levels")
    try:
        encoded = orjson.dumps(json.loads(json.dumps(value, allow_nan=False)))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"is not plain JSON: {error}") from error
    if b"\\u0000" in encoded:
        raise ValueError("must not hold the character U+0000")
    if len(encoded) > MAX_ATTRIBUTES_BYTES:
        raise ValueError(f"is larger than {MAX_ATTRIBUTES_BYTES} bytes")
    return value


Id = Annotated[
    str,
    AfterValidator(_valid_id),
    Field(min_length=1, max_length=200, strict=True, json_schema_extra={"examples": ["u-1"]}),
]
Text = Annotated[str, Field(max_length=1_000, strict=True), AfterValidator(_storable_text)]
# RFC 3339 text with an offset: a number could mean seconds or milliseconds.
Timestamp = Annotated[AwareDatetime, BeforeValidator(_timestamp_text), AfterValidator(_within_reach)]
Number = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE, strict=True)]
ContextName = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Context = Annotated[
    dict[ContextName, Id],
    BeforeValidator(_few_fields),
    Field(
        max_length=MAX_CONTEXT_FIELDS,
        description="Where and when: for example page, device, daypart, weekday. Texts only.",
        json_schema_extra={"examples": [{"page": "home", "device": "phone"}]},
    ),
]
Attributes = Annotated[dict[str, Any], Field(max_length=200), AfterValidator(_storable_attributes)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EventIn(Strict):
    """Something that a user did with a proposition."""

    event_type: Literal["impression", "click", "conversion", "dismiss"]
    proposition_id: Id
    event_id: Id | None = Field(
        None, description="Makes sending again harmless: an id counts once. Left out, a new one is made."
    )
    user_id: Id | None = None
    timestamp: Timestamp | None = Field(None, description="When it happened; left out: now.")
    context: Context = Field(default_factory=dict)
    request_id: Id | None = Field(None, description="The `request_id` of the slate that it belongs to.")
    position: int | None = Field(
        None, ge=1, le=10_000, strict=True, description="Place in the slate, from 1."
    )
    value: Number | None = Field(None, description="For example the worth of a conversion.")

    def to_event(self, now: datetime, max_future: timedelta, timezone: tzinfo) -> Event:
        """The event, complete with id, time and context.

        Raises:
            FutureEvent: `timestamp` lies further ahead of `now` than `max_future`.
        """
        occurred_at = self.timestamp or now
        if occurred_at > now + max_future:
            raise FutureEvent(occurred_at, now)
        return Event(
            event_id=self.event_id or str(uuid.uuid4()),
            event_type=EventType(self.event_type),
            proposition_id=self.proposition_id,
            occurred_at=occurred_at.astimezone(UTC),
            user_id=self.user_id,
            context=complete_context(self.context, occurred_at, timezone),
            request_id=self.request_id,
            position=self.position,
            value=self.value,
        )


class FutureEvent(ValueError):
    def __init__(self, occurred_at: datetime, now: datetime) -> None:
        super().__init__(f"timestamp {occurred_at.isoformat()} lies in the future (it is {now.isoformat()})")


class UserIn(Strict):
    user_id: Id
    age_years: Annotated[float, Field(ge=0, le=150)] | None = None
    gender: Text | None = None
    segment: Text | None = None
    attributes: Attributes = Field(default_factory=dict)
    created_at: Timestamp | None = None

    def to_user(self) -> User:
        return User(**self.model_dump())


class PropositionIn(Strict):
    proposition_id: Id
    title: Text
    category: Id | None = None
    tags: Annotated[list[Id], Field(max_length=MAX_TAGS)] = Field(default_factory=list)
    value: Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE)] | None = None
    is_active: bool = True
    starts_at: Timestamp | None = None
    ends_at: Timestamp | None = None
    attributes: Attributes = Field(default_factory=dict)
    created_at: Timestamp | None = None

    def to_proposition(self) -> Proposition:
        return Proposition(**{**self.model_dump(), "tags": tuple(self.tags)})
