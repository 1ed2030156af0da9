"""Errors as RFC 9457 problem documents: one shape, and the field that is wrong by name."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import orjson
from flask import Flask, Response, g, request
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.http import HTTP_STATUS_CODES

from app.api.trace_context import current_trace_id
from app.domain.errors import EventRefused, StoreUnavailable

log = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"

# Not JSON, too large, not declared as JSON: the body as a whole is the wrong field.
BODY_ERRORS = (400, 413, 415)
METHODS_WITH_BODY = ("POST", "PUT")
MAX_DRAINED_BYTES = 16_777_216
MAX_NAMED_PROBLEMS = 1_000
MAX_PATH = 200

# Reasons that metrics tell apart and statuses do not; of all others the title is the reason.
VALIDATION_ERROR, EVENT_REFUSED = "validation_error", "event_refused"
STORE_UNAVAILABLE, BUG = "store_unavailable", "bug"


class FieldProblem(BaseModel):
    field: str = Field(description="Path of the wrong field, such as events.3.timestamp.")
    reason: str


class Problem(BaseModel):
    """RFC 9457 problem document."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    trace_id: str | None = Field(None, description="Of the request in W3C trace context, if it has one.")
    errors: list[FieldProblem] = Field(default_factory=list)


class InvalidField(Exception):
    """A field that no schema can refuse, for example because it depends on the clock."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.problem = FieldProblem(field=field, reason=reason)


def problem_response(
    status: int,
    title: str,
    detail: str,
    errors: Sequence[FieldProblem] = (),
    reason: str | None = None,
) -> Response:
    g.problem_reason = reason or _as_word(title)
    problem = Problem(
        title=title,
        status=status,
        detail=detail,
        request_id=g.get("request_id", ""),
        trace_id=current_trace_id(),
        errors=list(errors),
    )
    return Response(orjson.dumps(problem.model_dump()), status, mimetype=PROBLEM_TYPE)


def reason_of(response: Response) -> str:
    """Why the answer to this request is an error, as one of few words."""
    return g.get("problem_reason") or _as_word(HTTP_STATUS_CODES.get(response.status_code, "unknown"))


def _as_word(title: str) -> str:
    return re.sub(r"[^a-z]+", "_", title.lower())


def invalid_body(error: ValidationError) -> Response:
    """422 for a path that is wrong, or a body that is JSON but not of the schema; 400 and 415 for one that is not JSON."""
    if request.method in METHODS_WITH_BODY:
        _require_json()
    return unprocessable(problems_of(error))


def problems_of(error: ValidationError) -> list[FieldProblem]:
    """What is wrong with the fields; of very many only that they are, for to name them takes seconds."""
    if error.error_count() > MAX_NAMED_PROBLEMS:
        return [FieldProblem(field="body", reason=f"has {error.error_count():,} wrong or unknown fields")]
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    return [FieldProblem(field=field_path(e["loc"])[:MAX_PATH], reason=e["msg"]) for e in errors]


def json_bytes() -> bytes:
    """The body of the request. Raises UnsupportedMediaType if it is not declared as JSON."""
    if not request.is_json:
        raise UnsupportedMediaType("send the body as application/json")
    return request.get_data()


def _require_json() -> None:
    try:
        orjson.loads(json_bytes())
    except orjson.JSONDecodeError as not_json:
        raise BadRequest(f"the body is not JSON: {not_json}") from not_json


def unprocessable(problems: Sequence[FieldProblem], reason: str = VALIDATION_ERROR) -> Response:
    names = ", ".join(dict.fromkeys(problem.field for problem in problems))
    return problem_response(
        422, "Unprocessable Content", f"wrong: {names}; nothing was stored", problems, reason
    )


def field_path(location: Sequence[Any]) -> str:
    """Where a schema error lies, without the names of the alternatives that pydantic tried."""
    return ".".join(str(part) for part in location if part not in ("single", "batch", "[key]")) or "body"


def describe_problems(document: dict[str, Any]) -> None:
    """Adds to an OpenAPI document what every route may answer when something is wrong, in the form it has then."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            if "requestBody" in operation:
                responses |= {str(status): declared_problem(text) for status, text in _WRONG_BODIES.items()}
            if not path.startswith("/health"):
                responses["503"] = declared_problem("A store is down, or too many requests: see Retry-After.")
            for status in responses.keys() & {"404", "422"}:
                responses[status] = declared_problem(responses[status]["description"])


def declared_problem(description: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {"description": description, "content": {PROBLEM_TYPE: {"schema": schema}}}


_WRONG_BODIES = {
    400: "The body is not JSON.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "Fields that are wrong, by name.",
}


def register_error_handlers(app: Flask, retry_after_s: int) -> None:
    @app.before_request
    def refuse_large_bodies() -> None:
        limit, length = app.config["MAX_CONTENT_LENGTH"], request.content_length
        if (length or 0) > limit:
            # Clients that are cut off while they send see a reset connection, not this answer.
            remaining = min(length, MAX_DRAINED_BYTES)
            while remaining > 0 and (chunk := request.environ["wsgi.input"].read(min(remaining, 65_536))):
                remaining -= len(chunk)
            raise RequestEntityTooLarge(f"the body is larger than {limit} bytes")
        # A chunked body does not tell its length; werkzeug cuts it at the limit without a word.
        if length is None and len(request.get_data()) >= limit:
            raise RequestEntityTooLarge(f"the body is larger than {limit} bytes")

    @app.errorhandler(HTTPException)
    def http_problem(error: HTTPException) -> Response:
        if error.response is not None:
            return error.response
        detail = error.description or error.name
        errors = [FieldProblem(field="body", reason=detail)] if error.code in BODY_ERRORS else []
        response = problem_response(error.code or 500, error.name, detail, errors)
        response.headers.extend(error.get_headers())
        response.mimetype = PROBLEM_TYPE
        return response

    @app.errorhandler(InvalidField)
    def invalid_field(error: InvalidField) -> Response:
        return unprocessable([error.problem])

    @app.errorhandler(StoreUnavailable)
    def store_unavailable(error: StoreUnavailable) -> Response:
        log.warning("a store is down: %s", error)
        response = problem_response(
            503,
            "Service Unavailable",
            "a store does not answer; send it again later, with the same event_id",
            reason=STORE_UNAVAILABLE,
        )
        response.headers["Retry-After"] = str(retry_after_s)
        return response

    @app.errorhandler(EventRefused)
    def event_refused(error: EventRefused) -> Response:
        return unprocessable([FieldProblem(field="body", reason=str(error))], EVENT_REFUSED)

    @app.errorhandler(Exception)
    def bug(error: Exception) -> Response:
        log.exception("unexpected error")
        return problem_response(
            500, "Internal Server Error", "this is a bug; its trace is in the log", reason=BUG
        )
