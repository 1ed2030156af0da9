"""Who may ask for what: one table of routes, and the API keys that open them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from flask import Flask, Response, g, request
from werkzeug.exceptions import Forbidden, NotFound

from app.api.problems import Problem, problem_response
from app.domain.access import ApiKey, Scope, has_key
from app.settings import Settings
from app.settings.web import ClosableRoutes

FindKey = Callable[[str, datetime], ApiKey | None]

KEY_HEADER = "X-Api-Key"
# One text whatever is wrong: whether a key was right once, or is known at all, is nobody's business.
UNAUTHORIZED = (
    f"send a valid API key as `Authorization: Bearer KEY` or as `{KEY_HEADER}: KEY`, and never in the address"
)


@dataclass(frozen=True, slots=True)
class Area:
    """Routes that have their first segment in common, and what they ask of a request.

    `scope` is None where everybody is welcome. What has a `group` may be closed by that name, and is answered on
    `PRIVATE_PORT` only, if there is one; `is_open_there` says that nobody needs a key there.
    """

    scope: Scope | None
    group: ClosableRoutes | None = None
    is_open_there: bool = False
    is_limited: bool = True


AREAS = {
    "suggest": Area(Scope.SUGGEST),
    "log_event": Area(Scope.EVENTS),
    "propositions": Area(Scope.CATALOG, "catalog"),
    "users": Area(Scope.ADMIN, "users"),
    "metrics": Area(Scope.ADMIN, "metrics", is_open_there=True, is_limited=False),
    "docs": Area(None, "docs"),
    "openapi.json": Area(None, "docs"),
    "health": Area(None, is_limited=False),
}
# A route that was forgotten above is closed to most rather than open to all.
_FORGOTTEN = Area(Scope.ADMIN)


def area_of(path: str) -> Area:
    """`path` is a rule or a path; both begin with a slash."""
    return AREAS.get(path.split("/", 2)[1], _FORGOTTEN)


def identify_callers(app: Flask, find_key: FindKey) -> None:
    """Tells later steps of each request where it goes (`g.area`) and with which valid key (`g.api_key`, or None)."""

    @app.before_request
    def identify() -> None:
        # Here and below: the proxies of Flask cost half a microsecond for each look at what they stand for.
        here, asked = g._get_current_object(), request._get_current_object()
        # What is run is the rule; a path counts only where none matched, and 404 or 405 follows.
        here.area = area_of(asked.url_rule.rule if asked.url_rule else asked.path)
        presented = _presented_key(asked.environ)
        may_count = bool(presented) and not _is_key_in_query(asked.environ)
        here.api_key = find_key(presented, datetime.now(UTC)) if may_count else None


def authorize_callers(app: Flask, settings: Settings) -> None:
    """Refuses who may not have what they ask for, before anything of the body is read."""
    private_port = str(settings.private_port) if settings.private_port else None

    @app.before_request
    def authorize() -> Response | None:
        here, asked = g._get_current_object(), request._get_current_object()
        area: Area = here.area
        # The port of the socket that gunicorn listens on. `Host` and `X-Forwarded-*` do not change it.
        is_private = asked.environ["SERVER_PORT"] == private_port
        is_elsewhere = area.group is not None and private_port is not None and not is_private
        if area.group in settings.closed_routes or is_elsewhere:
            raise NotFound
        if is_open(area, is_private):
            return None
        if here.api_key is None:
            return _unauthorized()
        # Unknown paths and methods go on to be told so.
        if asked.url_rule is not None and area.scope not in here.api_key.scopes:
            raise Forbidden(f"this needs a key with the scope {area.scope}")
        return None

    def is_open(area: Area, is_private: bool) -> bool:
        return (
            settings.development_mode
            or area.scope is None
            or (area.is_open_there and is_private)
            # Browsers send no key with the question whether they may send one.
            or (request.method == "OPTIONS" and bool(settings.cors_origins))
        )


def is_operator(settings: Settings) -> bool:
    """Whether whoever asks may see what is inside."""
    return (
        settings.development_mode
        or (settings.private_port > 0 and request.environ["SERVER_PORT"] == str(settings.private_port))
        or (g.api_key is not None and Scope.ADMIN in g.api_key.scopes)
    )


def describe_access(document: dict[str, Any]) -> None:
    """Adds to an OpenAPI document which scope each route needs, and what it answers without."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
        "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER, "description": "An API key."},
    }
    for path, operations in document["paths"].items():
        area = area_of(path)
        for operation in operations.values():
            operation["security"] = [{name: [area.scope]} for name in ("bearer", "header") if area.scope]
            if area.scope:
                operation["responses"] |= {
                    "401": _problem("No valid API key."),
                    "403": _problem(f"A key without the scope {area.scope}."),
                }
            if area.is_limited:
                operation["responses"]["429"] = _problem("Too many requests: see the header Retry-After.")


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


def _presented_key(environ: Mapping[str, Any]) -> str | None:
    scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else environ.get("HTTP_X_API_KEY")


def _is_key_in_query(environ: Mapping[str, Any]) -> bool:
    """Such a key is in the logs of proxies and in the histories of browsers."""
    query = environ.get("QUERY_STRING")
    return bool(query) and has_key(unquote_plus(query))


def _unauthorized() -> Response:
    response = problem_response(401, "Unauthorized", UNAUTHORIZED)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response
