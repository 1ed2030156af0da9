"""POST /log_event"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo

import orjson
from flask import Response
from flask_openapi import APIBlueprint, Tag

from app.api.problems import FieldProblem, InvalidField, unprocessable
from app.api.schemas import LogEventIn, LogEventOut
from app.domain.ports import Receipt
from app.domain.types import Event
from app.events.intake import EventIn, FutureEvent


def event_routes(
    record: Callable[[Sequence[Event]], Receipt],
    timezone: tzinfo,
    max_future: timedelta,
    max_batch_events: int,
) -> APIBlueprint:
    """`record` makes events durable: all of them, or none."""
    routes = APIBlueprint("events", __name__, abp_tags=[Tag(name="events")])

    @routes.post(
        "/log_event", summary="Tell what a user did, one event or a batch", responses={202: LogEventOut}
    )
    def post_log_event(body: LogEventIn) -> Response:
        if len(body.events) > max_batch_events:
            raise InvalidField("events", f"List should have at most {max_batch_events} items")
        now = datetime.now(UTC)
        events, problems = [], []
        for number, event in enumerate(body.events):
            try:
                events.append(event.to_event(now, max_future, timezone))
            except FutureEvent as error:
                problems.append(FieldProblem(field=_path(body, number), reason=str(error)))
        if problems:
            return unprocessable(problems)
        receipt = record(events)
        answer = {"recorded": receipt.recorded_ids, "duplicates": receipt.duplicate_ids}
        return Response(orjson.dumps(answer), 202, mimetype="application/json")

    return routes


def _path(body: LogEventIn, number: int) -> str:
    return "timestamp" if isinstance(body.root, EventIn) else f"events.{number}.timestamp"
