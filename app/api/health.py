"""GET /health, /health/live and /health/ready"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson
from flask import Response
from flask_openapi import APIBlueprint, Tag

from app.api.schemas import HealthOut


@dataclass(frozen=True, slots=True)
class DependencyStatus:
    """`breaker` is the state of the breaker before it, if it has one: closed, opened or half-opened."""

    is_up: bool
    detail: str
    breaker: str | None = None


def health_routes(
    check: Callable[[], Mapping[str, DependencyStatus]],
    is_leaving: Callable[[], bool] = lambda: False,
    may_see_details: Callable[[], bool] = lambda: True,
) -> APIBlueprint:
    """`check` tells how each dependency was when it was used last; it never waits and never raises.

    Who `is_leaving` still answers, and is not ready for more. Details hold addresses and messages of servers: not
    everybody `may_see_details`.
    """
    routes = APIBlueprint("health", __name__, abp_tags=[Tag(name="health")])

    @routes.get("/health", summary="Every dependency by name", responses={200: HealthOut})
    def get_health() -> Response:
        return _answer(check(), may_see_details())

    @routes.get("/health/live", summary="The process runs", responses={200: HealthOut})
    def get_live() -> Response:
        return _answer({}, False)

    # A worker takes requests when it is warm, and from then on it can answer, be it with the static list:
    # taking it out because a dependency is down would turn a degraded answer into none.
    @routes.get(
        "/health/ready",
        summary="Requests are answered",
        description="503 as soon as the process was told to end, while it still answers.",
        responses={200: HealthOut, 503: HealthOut},
    )
    def get_ready() -> Response:
        response = _answer(check(), may_see_details())
        if is_leaving():
            response.status_code = 503
        return response

    return routes


def _answer(dependencies: Mapping[str, DependencyStatus], is_detailed: bool) -> Response:
    body = {
        "status": "up" if all(dependency.is_up for dependency in dependencies.values()) else "degraded",
        "dependencies": {
            name: {
                "status": "up" if d.is_up else "down",
                "detail": d.detail if is_detailed else None,
                "breaker": d.breaker,
            }
            for name, d in dependencies.items()
        },
    }
    return Response(orjson.dumps(body), mimetype="application/json")
