"""From the body of a request to events, each judged alone: a bad one never stops the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any

import orjson
from pydantic import ValidationError

from app.domain.context import is_valid_id
from app.domain.types import Event
from app.events.intake import EventIn, FutureEvent
from app.events.splitting import split_events

BATCH_FIELD = "events"
# Far more than an event has; bounds what an answer says about one.
MAX_FIELDS = 50
MAX_ERRORS = 10
MAX_PATH = 200

_validate = EventIn.__pydantic_validator__.validate_python


class NotJson(ValueError):
    """The body as a whole is no JSON, and no batch whose events could be read one by one."""


class NoEvents(ValueError):
    """The body is JSON, but neither an event nor a batch of as many as are taken."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True, slots=True)
class FieldError:
    """`path` leads from the event to what is wrong in it; empty for the event itself."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An event that cannot be recorded, under its id if it has one."""

    event_id: str | None
    errors: tuple[FieldError, ...]


@dataclass(frozen=True, slots=True)
class Submission:
    """What a sender wants recorded, in the sender's order."""

    items: Sequence[Event | Refused]
    is_batch: bool


@dataclass(frozen=True, slots=True)
class EventReader:
    """Reads bodies by the rules of this service."""

    timezone: tzinfo
    max_future: timedelta
    max_batch_events: int

    def read(self, body: bytes, now: datetime) -> Submission:
        """The events of `{"events": [...]}`, or the one that the body is.

        Raises:
            NotJson, NoEvents: there are no events to judge.
        """
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            return self._read_one_by_one(body, now, error)
        if not isinstance(document, dict) or BATCH_FIELD not in document:
            return Submission((self._event(document, now),), is_batch=False)
        for name in document:
            if name != BATCH_FIELD:
                raise NoEvents(name[:MAX_PATH], "Extra inputs are not permitted")
        raw = document[BATCH_FIELD]
        if not isinstance(raw, list):
            raise NoEvents(BATCH_FIELD, "Input should be a valid list")
        self._check_count(raw)
        return Submission([self._event(item, now) for item in raw], is_batch=True)

    def _read_one_by_one(self, body: bytes, now: datetime, error: orjson.JSONDecodeError) -> Submission:
        texts = split_events(body, self.max_batch_events)
        if texts is None:
            raise NotJson(str(error)) from error
        self._check_count(texts)
        return Submission([self._event_of(text, now) for text in texts], is_batch=True)

    def _check_count(self, raw: Sequence) -> None:
        if not raw:
            raise NoEvents(BATCH_FIELD, "List should have at least 1 item")
        if len(raw) > self.max_batch_events:
            raise NoEvents(BATCH_FIELD, f"List should have at most {self.max_batch_events} items")

    def _event_of(self, text: bytes, now: datetime) -> Event | Refused:
        try:
            item = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            reason = f"is not JSON (which has neither NaN nor lone surrogates, nor endless nesting): {error}"
            return Refused(None, (FieldError("", reason),))
        return self._event(item, now)

    def _event(self, item: Any, now: datetime) -> Event | Refused:
        if isinstance(item, dict) and len(item) > MAX_FIELDS:
            return Refused(_id_of(item), (FieldError("", f"has more than {MAX_FIELDS} fields"),))
        try:
            return _validate(item).to_event(now, self.max_future, self.timezone)
        except FutureEvent as error:
            return Refused(_id_of(item), (FieldError("timestamp", str(error)),))
        except ValidationError as error:
            return Refused(_id_of(item), _errors(error))


def _id_of(item: Any) -> str | None:
    event_id = item.get("event_id") if isinstance(item, dict) else None
    return event_id if isinstance(event_id, str) and is_valid_id(event_id) else None


def _errors(error: ValidationError) -> tuple[FieldError, ...]:
    details = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_ERRORS]
    return tuple(FieldError(_path(detail["loc"]), detail["msg"]) for detail in details)


def _path(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location if part != "[key]")[:MAX_PATH]
