"""Traces for an OpenTelemetry collector. Imported only where there is one: the libraries take a quarter of a second.

What is recorded is handed to OpenTelemetry when it has ended, in about 4 us a span; its own tracer takes 40. Its
instrumentation of Flask, Redis and the databases takes a quarter of a millisecond also for a request that is not recorded, and
knows neither SQLAlchemy 2.1 nor our way to Redis.
"""

import logging
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import RandomIdGenerator, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import SpanKind as OpenTelemetryKind
from opentelemetry.util.re import parse_env_headers

from app.domain.tracing import NOTHING, Attributes, Caller, Span, SpanKind, parse_traceparent
from app.settings import Settings

log = logging.getLogger(__name__)

TRACES_PATH = "/v1/traces"
# Spans are sent at least so often, so many at once: to encode them holds up a worker's requests for some 2 ms.
SEND_INTERVAL_S, MOST_AT_ONCE = 1.0, 128
# While the collector takes none, the latest so many wait, some megabytes.
MOST_WAITING = 4_096
# A process that ends waits so long for what has not been sent yet.
CLOSE_S = 2.0

_KINDS = {kind: OpenTelemetryKind[kind.name] for kind in SpanKind}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)


def open_tracer(settings: Settings, process: str) -> "OpenTelemetryTracer":
    """Sends to the collector of the settings; to be made after a fork. `process` says what this one is there for."""
    headers = settings.otel_exporter_otlp_headers
    certificate = settings.otel_exporter_otlp_certificate
    exporter = OTLPSpanExporter(
        settings.otel_exporter_otlp_endpoint.rstrip("/") + TRACES_PATH,
        certificate_file=None if certificate is None else str(certificate),
        headers=None if headers is None else parse_env_headers(headers.get_secret_value(), liberal=True),
    )
    resource = Resource.create(
        {
            SERVICE_NAME: settings.otel_service_name,
            SERVICE_INSTANCE_ID: f"{socket.gethostname()}-{os.getpid()}",
        }
    )
    return OpenTelemetryTracer(
        Outbox(exporter),
        resource,
        InstrumentationScope(f"propositions.{process}"),
        settings.otel_traces_sampler_arg,
    )


class OpenTelemetryTracer:
    """Implements `Tracer`. `share` of the traces that begin here are recorded, as `chance` has it."""

    def __init__(
        self,
        outbox: "Outbox",
        resource: Resource,
        scope: InstrumentationScope,
        share: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._resource, self._scope = resource, scope
        self._share, self._chance = share, chance
        self._ids = RandomIdGenerator()

    def begin(
        self, name: str, kind: SpanKind = SpanKind.INTERNAL, caller: Mapping[str, str] = NOTHING
    ) -> Span | None:
        parent = parse_traceparent(caller.get("traceparent"))
        if not (self._chance() < self._share if parent is None else parent.is_sampled):
            return None
        return _Recorded(self, name, kind, parent, caller.get("tracestate"))

    def close(self) -> None:
        self._outbox.close()

    def context_in(self, parent: SpanContext | None, state: TraceState | None) -> SpanContext:
        """Of a new span: in the trace of `parent`, or in a new one."""
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        return SpanContext(trace_id, self._ids.generate_span_id(), False, _SAMPLED, state)

    def hand_over(
        self, work: "_Work", context: SpanContext, parent: SpanContext | None, clock_began_ns: int
    ) -> None:
        self._outbox.put(
            ReadableSpan(
                work.name,
                context,
                parent,
                self._resource,
                work.attributes if work.error is None else {**work.attributes, "error.type": work.error},
                kind=_KINDS[work.kind],
                instrumentation_scope=self._scope,
                status=_UNSET if work.error is None else _ERROR,
                start_time=clock_began_ns + int(work.began_s * 1e9),
                end_time=clock_began_ns + int(work.ended_s * 1e9),
            )
        )


@dataclass(slots=True)
class _Work:
    name: str
    began_s: float
    ended_s: float
    kind: SpanKind
    attributes: Attributes
    error: str | None = None
    parts: list["_Work"] = field(default_factory=list)


class _Recorded:
    """Implements `Span`. The work in it becomes spans at its end, when it is known what lies within what."""

    def __init__(
        self,
        tracer: OpenTelemetryTracer,
        name: str,
        kind: SpanKind,
        caller: Caller | None,
        tracestate: str | None,
    ) -> None:
        self._tracer = tracer
        self._state = None if tracestate is None or caller is None else TraceState.from_header([tracestate])
        self._caller = None
        if caller is not None:
            self._caller = SpanContext(
                int(caller.trace_id, 16), int(caller.span_id, 16), True, _SAMPLED, self._state
            )
        self._context = tracer.context_in(self._caller, self._state)
        began_s = time.perf_counter()
        self._clock_began_ns = time.time_ns() - int(began_s * 1e9)
        self._whole = _Work(name, began_s, began_s, kind, {})
        self._work: list[_Work] = []
        self._is_over = False

    @property
    def trace_id(self) -> str:
        return f"{self._context.trace_id:032x}"

    def headers(self) -> Mapping[str, str]:
        headers = {"traceparent": f"00-{self._context.trace_id:032x}-{self._context.span_id:016x}-01"}
        if self._state:
            headers["tracestate"] = self._state.to_header()
        return headers

    def of(self, key: str) -> Span:
        return self

    def add(
        self,
        name: str,
        began_s: float,
        ended_s: float,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = NOTHING,
        error: str | None = None,
    ) -> None:
        if not self._is_over:
            self._work.append(_Work(name, began_s, ended_s, kind, attributes, error))

    def describe(self, attributes: Attributes) -> None:
        self._whole.attributes |= attributes

    def fail(self, error: str) -> None:
        self._whole.error = error

    def end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._whole.ended_s = time.perf_counter()
        self._tell(_nested(self._work), self._context)
        self._tracer.hand_over(self._whole, self._context, self._caller, self._clock_began_ns)

    def discard(self) -> None:
        self._is_over = True

    def _tell(self, parts: Iterable[_Work], parent: SpanContext) -> None:
        for work in parts:
            context = self._tracer.context_in(parent, self._state)
            self._tracer.hand_over(work, context, parent, self._clock_began_ns)
            self._tell(work.parts, context)


def _nested(work: Iterable[_Work]) -> list[_Work]:
    """Work that is given in the order in which it ended, with all that began within other work as its parts."""
    whole: list[_Work] = []
    for latest in work:
        while whole and whole[-1].began_s >= latest.began_s:
            latest.parts.insert(0, whole.pop())
        whole.append(latest)
    return whole


class Outbox:
    """Spans on their way to the collector, sent by a thread of its own. What it does not take in time is lost.

    OpenTelemetry's BatchSpanProcessor would start its thread anew in each child of this process, and in a gevent worker that lets all
    greenlets go on there, with the requests of the parent, before the child has become another program.
    """

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._waiting: deque[ReadableSpan] = deque(maxlen=MOST_WAITING)
        self._has_many = threading.Event()
        self._is_closing = self._is_down = False
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True)
        self._thread.start()

    def put(self, span: ReadableSpan) -> None:
        self._waiting.append(span)
        if len(self._waiting) >= MOST_AT_ONCE and not self._has_many.is_set():
            self._has_many.set()

    def close(self) -> None:
        """Sends what waits, if that does not take long."""
        self._is_closing = True
        self._has_many.set()
        self._thread.join(CLOSE_S)

    def _send_until_closed(self) -> None:
        is_last = False
        while not is_last:
            self._has_many.wait(SEND_INTERVAL_S)
            self._has_many.clear()
            is_last = self._is_closing
            while self._waiting:
                self._send([self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))])

    def _send(self, spans: Sequence[ReadableSpan]) -> None:
        """Says once that the collector takes nothing, and why, and once that it does again."""
        with _words_kept(logging.getLogger(OTLPSpanExporter.__module__)) as words:
            is_down = self._exporter.export(spans) is not SpanExportResult.SUCCESS
        if is_down and not self._is_down:
            log.warning("traces are lost until the collector takes them: %s", "; ".join(words[:1]))
        elif self._is_down and not is_down:
            log.info("the collector takes traces again")
        self._is_down = is_down


@contextmanager
def _words_kept(logger: logging.Logger) -> Iterator[list[str]]:
    """What would be logged in the block, which is not: several lines for each batch that is not taken."""
    words: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        words.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield words
    finally:
        logger.removeFilter(keep)
