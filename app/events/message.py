"""An event as a message between processes: JSON, with the version of its schema beside it."""

from collections.abc import Mapping
from datetime import UTC
from typing import Annotated

import orjson
from pydantic import Field, ValidationError

from app.domain.errors import PropositionsError
from app.domain.types import Event, EventType
from app.events.intake import ContextName, Id, Number, Strict, Timestamp

SCHEMA_HEADER = "schema"
SCHEMA_VERSION = b"1"


class Undecodable(PropositionsError):
    """A message that is no event; the text says why."""


class EventMessage(Strict):
    """Every field of an event must be there, so that one which is lost on the way is noticed."""

    event_id: Id
    event_type: EventType
    proposition_id: Id
    occurred_at: Timestamp
    user_id: Id | None
    # Complete, so it may have fields more than a sender may give.
    context: dict[ContextName, Id]
    request_id: Id | None
    position: Annotated[int, Field(ge=1, strict=True)] | None
    value: Number | None

    def to_event(self) -> Event:
        fields = dict(self)
        return Event(**{**fields, "occurred_at": self.occurred_at.astimezone(UTC)})


def encode(event: Event) -> bytes:
    return orjson.dumps(event)


def decode(value: bytes | None, headers: Mapping[str, bytes]) -> Event:
    """The event of a message with these headers.

    Raises:
        Undecodable: unknown schema version, bad JSON, or a field that is missing, unknown or wrong.
    """
    version = headers.get(SCHEMA_HEADER)
    if version != SCHEMA_VERSION:
        raise Undecodable(f"schema version is {_shown(version)}, and {_shown(SCHEMA_VERSION)} is known here")
    try:
        return EventMessage.model_validate_json(value or b"").to_event()
    except ValidationError as error:
        raise Undecodable(_describe(error)) from error


def _shown(version: bytes | None) -> str:
    return "missing" if version is None else version.decode(errors="replace")


def _describe(error: ValidationError) -> str:
    problems = (f"{'.'.join(map(str, p['loc']))}: {p['msg']}".lstrip(": ") for p in error.errors())
    return "; ".join(problems)
