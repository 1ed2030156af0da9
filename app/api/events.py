"""POST /log_event"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Response, request
from flask_openapi import APIBlueprint, Tag
from pydantic import BaseModel
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from app.api.problems import FieldProblem, InvalidField, unprocessable
from app.api.schemas import EventOutcome, LogEventIn, LogEventOut
from app.domain.ports import Receipt
from app.domain.types import Event, StoredIn
from app.events.reading import BATCH_FIELD, EventReader, NoEvents, NotJson, Refused, Submission


def event_routes(
    reader: EventReader,
    record: Callable[[Sequence[Event]], Receipt],
    count: Callable[[EventOutcome, StoredIn | None, int], None],
) -> APIBlueprint:
    """`record` makes events durable: all of them, or none. `count` is told what became of how many."""
    routes = APIBlueprint("events", __name__, abp_tags=[Tag(name="events")])

    @routes.post(
        "/log_event", summary="Tell what a user did, one event or a batch", responses={202: LogEventOut}
    )
    @_described_by(LogEventIn)
    def post_log_event() -> Response:
        submission = _submission(reader)
        events = [item for item in submission.items if isinstance(item, Event)]
        rejected = len(submission.items) - len(events)
        if rejected:
            count(EventOutcome.REJECTED, None, rejected)
        if not events:
            return unprocessable(_problems(submission))
        receipt = record(events)
        outcomes = list(_outcomes(submission, receipt))
        for outcome, number in Counter(told["outcome"] for told in outcomes).items():
            if outcome != EventOutcome.REJECTED:
                count(outcome, receipt.stored_in, number)
        answer = {
            "events": outcomes,
            "recorded": receipt.recorded_ids,
            "duplicates": receipt.duplicate_ids,
            "rejected": rejected,
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
    if not request.is_json:
        raise UnsupportedMediaType("send the body as application/json")
    try:
        return reader.read(request.get_data(), datetime.now(UTC))
    except NotJson as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    except NoEvents as error:
        raise InvalidField(error.field, str(error)) from error


def _outcomes(submission: Submission, receipt: Receipt) -> Iterator[dict[str, Any]]:
    """What became of each event, in the order of the request. Of equal ids the first is the recorded one."""
    new_ids = set(receipt.recorded_ids)
    for number, item in enumerate(submission.items):
        if isinstance(item, Refused):
            errors = [problem.model_dump() for problem in _field_problems(item, number, submission.is_batch)]
            yield _outcome(item.event_id, EventOutcome.REJECTED, None, errors)
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
    place = f"{BATCH_FIELD}.{number}" if is_batch else ""
    for error in refused.errors:
        field = ".".join(part for part in (place, error.path) if part)
        yield FieldProblem(field=field or "body", reason=error.reason)
