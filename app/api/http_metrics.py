"""The metrics of prometheus-flask-exporter at a quarter of what they cost, errors by reason, and `GET /metrics`."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

from app.api.exemplars import Exemplars
from app.api.problems import BUG, reason_of
from app.api.trace_context import recorded_trace_id
from app.api.worker_metrics import WorkerMetrics, metrics_folder

# Close together around the objectives: 50, 80 and 100 ms.
LATENCY_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.065, 0.08, 0.1),
    *(0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
DURATION, DURATION_LABELS = "flask_http_request_duration_seconds", ("method", "url_rule", "status")
# Where a request did not match any route.
NO_ROUTE = "none"
# What users wait for, and how success is told there: that these did not fail yet is known from the start.
USERS_ROUTES = {"/suggest": 200, "/log_event": 202}


class HttpMetrics(GunicornInternalPrometheusMetrics):
    """Counts all requests but those for metrics. Needs `g.started`: see `log_requests`.

    The library's own hooks look each metric up by its labels and took 21 us of a request.

    Args:
        exemplars: are told of requests with a trace.
        flush: brings what is tallied in this process to the others, before all is read.
        run_aside: runs what takes long without holding up requests: to read and add up the numbers of all workers.
    """

    def __init__(
        self,
        app: Flask,
        registry: CollectorRegistry,
        exemplars: Exemplars,
        flush: Callable[[], None],
        run_aside: Callable[[Callable], Any],
    ) -> None:
        self._exemplars, self._flush, self._run_aside = exemplars, flush, run_aside
        super().__init__(app, registry=registry)

    def export_defaults(self, app: Flask | None = None, **_: Any) -> None:
        self.info(
            "flask_exporter_info", "Information about the Prometheus Flask exporter", version=self.version
        )
        duration_s = Histogram(
            DURATION,
            "Flask HTTP request duration in seconds",
            DURATION_LABELS,
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        answered = Counter(
            "flask_http_request_total",
            "Total number of HTTP requests",
            ["method", "status"],
            registry=self.registry,
        )
        bugs = Counter(
            "flask_http_request_exceptions_total",
            "Total number of HTTP requests which resulted in an exception",
            ["method", "status"],
            registry=self.registry,
        )
        errors = Counter(
            "propositions_request_errors",
            "Answers from 400 on, by route and reason.",
            ["route", "status", "reason"],
            registry=self.registry,
        )

        @cache
        def counters_of(method: str, route: str, status: int) -> tuple[Histogram, Counter]:
            return duration_s.labels(method, route, status), answered.labels(method, status)

        for route, success in USERS_ROUTES.items():
            for status in (success, 500, 503):
                counters_of("POST", route, status)
        bugs.labels("POST", 500)

        @app.after_request
        def count(response: Response) -> Response:
            asked = request._get_current_object()
            if hasattr(asked, "prom_do_not_track"):
                return response
            seconds = time.perf_counter() - g.started
            method, status, rule = asked.method, response.status_code, asked.url_rule
            route = rule.rule if rule else NO_ROUTE
            took_s, total = counters_of(method, route, status)
            took_s.observe(seconds)
            total.inc()
            if status >= 400:
                reason = reason_of(response)
                errors.labels(route, status, reason).inc()
                if reason == BUG:
                    bugs.labels(method, status).inc()
            if trace_id := recorded_trace_id():
                self._exemplars.note((method, route, str(status)), seconds, trace_id)
            return response

    def generate_metrics(
        self, accept_header: str | None = None, names: Sequence[str] | None = None
    ) -> tuple[str, str]:
        self._flush()
        self._exemplars.flush()
        encode, content_type = choose_encoder(accept_header)
        metrics = WorkerMetrics(metrics_folder(), (DURATION, DURATION_LABELS), names)
        return self._run_aside(lambda: encode(metrics)).decode(), content_type
