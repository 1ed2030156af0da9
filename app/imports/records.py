"""What parsers hand to the loader, line by line."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from app.domain.types import Event, Proposition, User
from app.events.intake import EventIn, FutureEvent, PropositionIn, UserIn


@dataclass(frozen=True, slots=True)
class Line:
    """One record of a source, and where it stands: lines count from 1."""

    path: Path
    number: int
    content: Any


@dataclass(frozen=True, slots=True)
class Reject:
    """A line that cannot be imported, and why."""

    line: Line
    reason: str


Record = User | Proposition | Event
Parsed = Iterator[tuple[Line, Record] | Reject]


@dataclass(frozen=True, slots=True)
class ImportRules:
    """What holds for every record of an import."""

    now: datetime
    max_future: timedelta
    timezone: tzinfo


class BadLine(ValueError):
    """Says what is wrong with a line."""


_SCHEMAS: dict[str, type[BaseModel]] = {
    "users": UserIn,
    "propositions": PropositionIn,
    "events": EventIn,
}


def to_record(kind: str, data: Any, rules: ImportRules) -> Record:
    """A domain object from plain data.

    Raises:
        BadLine: names every wrong field.
    """
    try:
        parsed = _SCHEMAS[kind].model_validate(data)
        if isinstance(parsed, UserIn):
            return parsed.to_user()
        if isinstance(parsed, PropositionIn):
            return parsed.to_proposition()
        if parsed.event_id is None:
            raise BadLine("event_id: is required in an import, so that importing again does no harm")
        return parsed.to_event(rules.now, rules.max_future, rules.timezone)
    except ValidationError as error:
        raise BadLine("; ".join(map(_describe, error.errors()))) from error
    except FutureEvent as error:
        raise BadLine(str(error)) from error


def parse_lines(lines: Iterable[Line], to_records: Callable[[Line], Iterable[Record]]) -> Parsed:
    """Records of all lines; what `to_records` refuses with BadLine becomes a Reject."""
    for line in lines:
        try:
            records = list(to_records(line))
        except BadLine as error:
            yield Reject(line, str(error))
            continue
        for record in records:
            yield line, record


def from_epoch(value: Any, unit_s: float) -> datetime:
    """The moment of a number (or its text) of units since the epoch.

    Raises:
        BadLine: it is not a moment between 1970 and 9999.
    """
    try:
        moment = datetime.fromtimestamp(float(value) * unit_s, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise BadLine(f"timestamp: {value!r} is not a time since the epoch") from error
    if moment.year < 1970:
        raise BadLine(f"timestamp: {value!r} lies before 1970")
    return moment


def _describe(problem: Any) -> str:
    name = ".".join(map(str, problem["loc"])) or "line"
    return f"{name}: {problem['msg']}"
