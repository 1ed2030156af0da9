"""The trace that a request belongs to: W3C trace context in and out."""

from flask import Flask, Response, has_request_context, request

from app.domain.tracing import (
    NO_TRACING,
    Caller,
    SpanKind,
    Tracer,
    current_span,
    parse_traceparent,
    set_current_span,
)

RESPONSE_HEADER = "traceresponse"


def current_trace_id() -> str | None:
    """Of the span that is recorded, else of a valid `traceparent` of the request: 32 hexadecimal digits."""
    span = current_span()
    if span is not None:
        return span.trace_id
    caller = _caller()
    return None if caller is None else caller.trace_id


def current_span_id() -> str | None:
    """Of the span that is recorded: 16 hexadecimal digits."""
    span = current_span()
    return None if span is None else parse_traceparent(span.headers()["traceparent"]).span_id


def recorded_trace_id() -> str | None:
    """The same, but only of a trace that is recorded, here or by the caller: one that can be looked at."""
    span = current_span()
    if span is not None:
        return span.trace_id
    caller = _caller()
    return caller.trace_id if caller is not None and caller.is_sampled else None


def _caller() -> Caller | None:
    return parse_traceparent(request.environ.get("HTTP_TRACEPARENT")) if has_request_context() else None


def trace_requests(app: Flask, tracer: Tracer) -> None:
    """Makes a span of each request that is sampled. To be called first, so that all else of a request lies within."""
    if tracer is NO_TRACING:
        return

    @app.before_request
    def begin() -> None:
        # Not the path, which may hold the id of a person.
        route = request.url_rule.rule if request.url_rule else None
        name = f"{request.method} {route}" if route else request.method
        span = tracer.begin(name, SpanKind.SERVER, _trace_headers())
        if span is not None:
            span.describe({"http.request.method": request.method, "url.scheme": request.scheme})
            if route:
                span.describe({"http.route": route})
            set_current_span(span)

    @app.after_request
    def tell(response: Response) -> Response:
        span = current_span()
        if span is not None:
            span.describe({"http.response.status_code": response.status_code})
            if response.status_code >= 500:
                span.fail(str(response.status_code))
            response.headers[RESPONSE_HEADER] = span.headers()["traceparent"]
        return response

    @app.teardown_request
    def end(_error: BaseException | None) -> None:
        span = current_span()
        if span is not None:
            set_current_span(None)
            span.end()


def _trace_headers() -> dict[str, str]:
    environ = request.environ
    return {
        name: environ[key]
        for name, key in (("traceparent", "HTTP_TRACEPARENT"), ("tracestate", "HTTP_TRACESTATE"))
        if key in environ
    }
