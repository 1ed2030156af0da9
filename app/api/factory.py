"""The Flask application, from services that are ready to use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from flask import Flask, redirect
from flask.json.provider import JSONProvider
from flask_openapi import Info, OpenAPI
from prometheus_client import CollectorRegistry
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter

from app.api.access import FindKey, authorize_callers, describe_access, identify_callers, is_operator
from app.api.admission import MOST_AT_ONCE, Admission, InProgress
from app.api.catalog import catalog_routes, user_routes
from app.api.cors import allow_origins
from app.api.events import event_routes
from app.api.exemplars import Exemplars
from app.api.health import DependencyStatus, health_routes
from app.api.http_metrics import HttpMetrics
from app.api.problems import Problem, describe_problems, invalid_body, register_error_handlers
from app.api.rate_limits import Counts, limit_rates
from app.api.request_log import log_requests
from app.api.schemas import EventOutcome
from app.api.security_headers import SecurityHeaders
from app.api.suggest import suggest_routes
from app.api.trace_context import trace_requests
from app.domain.ports import PropositionStore, UserStore
from app.domain.tracing import NO_TRACING, Tracer
from app.domain.types import EventType, StoredIn
from app.events.reading import EventReader
from app.events.record import RecordEvents
from app.life.forget import ForgetUser
from app.serving.suggest import Suggest
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class ApiServices:
    suggest: Suggest
    record_events: RecordEvents
    count_events: Callable[[EventOutcome, StoredIn | None, int], None]
    count_recorded: Callable[[EventType, int], None]
    propositions: PropositionStore
    users: UserStore
    forget_user: ForgetUser
    check_health: Callable[[], Mapping[str, DependencyStatus]]
    flush_decisions: Callable[[], None]
    find_key: FindKey
    rate_counts: Counts
    is_strained: Callable[[], bool]
    is_overrun: Callable[[], bool]
    count_shed: Callable[[str], None]
    is_leaving: Callable[[], bool]
    in_progress: InProgress
    exemplars: Exemplars
    flush_metrics: Callable[[], None]
    run_aside: Callable[[Callable], Any]
    tracer: Tracer = NO_TRACING


class IdConverter(BaseConverter):
    """An id as a path's last part: slashes are as good as any other sign."""

    part_isolating = False
    regex = "(?s:.+)"  # also line breaks: the schema says that they are wrong, and where


class OrjsonProvider(JSONProvider):
    """Strict (no NaN) and fast."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return orjson.dumps(obj).decode()

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        return orjson.loads(s)


class Application(OpenAPI):
    """Flask with a description of its API."""

    def ensure_sync(self, func: Callable) -> Callable:
        """Functions as they are: none here is asynchronous, and to ask each of them took a hundredth of a request."""
        return func


def create_app(settings: Settings, services: ApiServices, registry: CollectorRegistry) -> Flask:
    app = Application(
        "propositions",
        info=Info(
            title="Predictive Propositions Service",
            version="0.1.0",
            description="Which propositions should this user see here and now?",
        ),
        doc_prefix="/docs",
        validation_error_callback=invalid_body,
        validation_error_model=Problem,
        static_folder=None,
    )
    app.openapi_version = "3.1.0"
    app.json = OrjsonProvider(app)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.url_map.converters["id"] = IdConverter
    app.url_map.merge_slashes = False
    trace_requests(app, services.tracer)
    log_requests(app, settings)
    identify_callers(app, services.find_key)
    limit_rates(app, settings, services.rate_counts)
    authorize_callers(app, settings)
    register_error_handlers(app, settings.retry_after_s)
    app.register_api(
        suggest_routes(
            services.suggest,
            settings.context_fields,
            settings.zone,
            settings.max_limit,
            settings.suggest_deadline_ms,
        )
    )
    app.register_api(
        event_routes(
            EventReader(settings.zone, settings.max_future, settings.max_batch_events),
            services.record_events,
            services.count_events,
            services.count_recorded,
        )
    )
    app.register_api(catalog_routes(services.propositions))
    app.register_api(user_routes(services.users, services.forget_user))
    app.register_api(health_routes(services.check_health, services.is_leaving, lambda: is_operator(settings)))
    app.add_url_rule("/openapi.json", "openapi_json", lambda: app.api_doc)
    app.add_url_rule("/docs", "docs", lambda: redirect("/docs/swagger"))
    describe_access(app.api_doc)
    describe_problems(app.api_doc)
    allow_origins(app, settings.cors_origins)
    HttpMetrics(app, registry, services.exemplars, services.flush_metrics, services.run_aside)
    app.wsgi_app = SecurityHeaders(app.wsgi_app)
    app.wsgi_app = Admission(
        app.wsgi_app, services.is_overrun, MOST_AT_ONCE, services.count_shed, services.in_progress
    )
    if settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.trusted_proxies, x_proto=0)
    return app
