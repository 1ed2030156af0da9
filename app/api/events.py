"""POST /log_event"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Response, g
from flask_openapi import APIBlueprint, Tag
from pydantic import BaseModel
from werkzeug.exceptions import BadRequest

from app.api.problems import FieldProblem, InvalidField, json_bytes, unprocessable
from app.api.schemas import EventOutcome, LogEventIn, LogEventOut
from app.domain.ports import Receipt
from app.domain.types import Event, EventType, StoredIn
from app.events.reading import BATCH_FIELD, EventReader, NoEvents, NotJson, Refused, Submission

NOT_KEPT = "is from a time whose events are not kept, of everybody or of this user"


def event_routes(
    reader: EventReader,
    record: Callable[[Sequence[Event]], Receipt],
    count: Callable[[EventOutcome, StoredIn | None, int], None],
    count_recorded: Callable[[EventType, int], None],
) -> APIBlueprint:
    """`record` makes events durable: all of them, or none. `count` is told what became of how many, `count_recorded` of
    which type those are that are new."""
    routes = APIBlueprint("events", __name__, abp_tags=[Tag(name="events")])

    @routes.post(
        "/log_event", summary="Tell what a user did, one event or a batch", responses={202: LogEventOut}
    )
    @_described_by(LogEventIn)
    def post_log_event() -> Response:
        submission = _submission(reader)
        events = [item for item in submission.items if isinstance(item, Event)]
        if not events:
            count(EventOutcome.REJECTED, None, len(submission.items))
            return unprocessable(_problems(submission))
        if len(events) == 1:
            g.user_id = events[0].user_id
        receipt = record(events)
        outcomes = list(_outcomes(submission, receipt))
        by_outcome = Counter((told["outcome"], told["stored_in"]) for told in outcomes)
        for (outcome, stored_in), number in by_outcome.items():
            count(outcome, stored_in, number)
        recorded = Counter(
            item.event_type
            for item, told in zip(submission.items, outcomes, strict=True)
            if told["outcome"] == EventOutcome.RECORDED
        )
        for event_type, number in recorded.items():
            count_recorded(event_type, number)
        if not receipt.recorded_ids and not receipt.duplicate_ids:
            return unprocessable([FieldProblem(**error) for told in outcomes for error in told["errors"]])
        answer = {
            "events": outcomes,
            "recorded": receipt.recorded_ids,
            "duplicates": receipt.duplicate_ids,
            "rejected": by_outcome[EventOutcome.REJECTED, None],
        }
        return Response(orjson.dumps(answer), 202, mimetype="application/json")

    return routes


def _described_by(model: type[BaseModel]) -> Callable[[Callable], Callable]:
    """Puts the body into the OpenAPI document and leaves its validation to the route."""

    def describe(route: Callable) -> Callable:
        route.__annotations__["body"] = model
        route.__delay_validate_request__ = True
        return route

    return describe


def _submission(reader: EventReader) -> Submission:
    try:
        return reader.read(json_bytes(), datetime.now(UTC))
    except NotJson as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    except NoEvents as error:
        raise InvalidField(error.field, str(error)) from error


def _outcomes(submission: Submission, receipt: Receipt) -> Iterator[dict[str, Any]]:
    """What became of each event, in the order of the request. Of equal ids the first is the recorded one."""
    new_ids, dropped_ids = set(receipt.recorded_ids), set(receipt.dropped_ids)
    for number, item in enumerate(submission.items):
        if isinstance(item, Refused):
            errors = [problem.model_dump() for problem in _field_problems(item, number, submission.is_batch)]
            yield _outcome(item.event_id, EventOutcome.REJECTED, None, errors)
        elif item.event_id in dropped_ids:
            problem = FieldProblem(field=_path("timestamp", number, submission.is_batch), reason=NOT_KEPT)
            yield _outcome(item.event_id, EventOutcome.REJECTED, None, [problem.model_dump()])
        elif item.event_id in new_ids:
            new_ids.remove(item.event_id)
            yield _outcome(item.event_id, EventOutcome.RECORDED, receipt.stored_in, ())
        else:
            yield _outcome(item.event_id, EventOutcome.DUPLICATE, receipt.stored_in, ())


def _outcome(
    event_id: str | None, outcome: EventOutcome, stored_in: StoredIn | None, errors: Sequence
) -> dict[str, Any]:
    return {"event_id": event_id, "outcome": outcome, "stored_in": stored_in, "errors": errors}


def _problems(submission: Submission) -> list[FieldProblem]:
    return [
        problem
        for number, item in enumerate(submission.items)
        if isinstance(item, Refused)
        for problem in _field_problems(item, number, submission.is_batch)
    ]


def _field_problems(refused: Refused, number: int, is_batch: bool) -> Iterator[FieldProblem]:
    """What is wrong with an event, by the path from the body to it."""
    for error in refused.errors:
        yield FieldProblem(field=_path(error.path, number, is_batch), reason=error.reason)


def _path(path: str, number: int, is_batch: bool) -> str:
    place = f"{BATCH_FIELD}.{number}" if is_batch else ""
    return ".".join(part for part in (place, path) if part) or "body"
