"""GET /health, /health/live and /health/ready"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson
from flask import Response
from flask_openapi import APIBlueprint, Tag

from app.api.schemas import HealthOut


@dataclass(frozen=True, slots=True)
class DependencyStatus:
    is_up: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Health:
    """`is_ready`: the worker can answer with more than the static default. Checks never raise."""

    is_ready: Callable[[], bool]
    check: Callable[[], Mapping[str, DependencyStatus]]


def health_routes(health: Health) -> APIBlueprint:
    routes = APIBlueprint("health", __name__, abp_tags=[Tag(name="health")])

    @routes.get("/health", summary="Every dependency by name", responses={200: HealthOut})
    def get_health() -> Response:
        dependencies = health.check()
        all_up = all(dependency.is_up for dependency in dependencies.values())
        return _answer("up" if all_up else "degraded", dependencies, 200)

    @routes.get("/health/live", summary="The process runs", responses={200: HealthOut})
    def get_live() -> Response:
        return _answer("up", {}, 200)

    @routes.get("/health/ready", summary="Slates can be served", responses={200: HealthOut, 503: HealthOut})
    def get_ready() -> Response:
        is_ready = health.is_ready()
        return _answer("up" if is_ready else "down", health.check(), 200 if is_ready else 503)

    return routes


def _answer(status: str, dependencies: Mapping[str, DependencyStatus], code: int) -> Response:
    body = {
        "status": status,
        "dependencies": {
            name: {"status": "up" if d.is_up else "down", "detail": d.detail}
            for name, d in dependencies.items()
        },
    }
    return Response(orjson.dumps(body), code, mimetype="application/json")
