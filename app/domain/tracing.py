"""Traces: what the work of a request or a batch consists of, and how long each part of it takes.

Whether a trace is recorded is decided when it begins, and most are not: `current_span()` is None then, and to see that
is all that they cost. Work is told when it is done; what lies within other work of its span is a part of that.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import NamedTuple, Protocol

Attributes = Mapping[str, str | bool | int | float]

NOTHING: Mapping[str, str] = {}


class SpanKind(StrEnum):
    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"
    PRODUCER = "producer"
    CONSUMER = "consumer"


class Span(Protocol):
    """A request or a batch that is recorded. Once it has ended, nothing is added any more."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""

    def headers(self) -> Mapping[str, str]:
        """W3C trace context, for who goes on with this work elsewhere."""

    def of(self, key: str) -> "Span | None":
        """The span that a part of this work belongs to: see `SharedSpan`."""

    def add(
        self,
        name: str,
        began_s: float,
        ended_s: float,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = NOTHING,
        error: str | None = None,
    ) -> None:
        """Tells of work that is done. Times in seconds of `time.perf_counter`; `error` names what went wrong."""

    def describe(self, attributes: Attributes) -> None: ...
    def fail(self, error: str) -> None: ...
    def end(self) -> None: ...

    def discard(self) -> None:
        """It turns out not to be worth recording; `end` does nothing then."""


class SharedSpan:
    """Several spans whose work is done together, as a commit that requests share: all of it is a part of each.

    `spans` by what they brought, for example an `event_id`. Not empty.
    """

    def __init__(self, spans: Mapping[str, Span]) -> None:
        self._by_key = spans
        self._spans = list(dict.fromkeys(spans.values()))

    @property
    def trace_id(self) -> str:
        """Of one of them."""
        return self._spans[0].trace_id

    def headers(self) -> Mapping[str, str]:
        return self._spans[0].headers()

    def of(self, key: str) -> Span | None:
        return self._by_key.get(key)

    def add(
        self,
        name: str,
        began_s: float,
        ended_s: float,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = NOTHING,
        error: str | None = None,
    ) -> None:
        for span in self._spans:
            span.add(name, began_s, ended_s, kind, attributes, error)

    def describe(self, attributes: Attributes) -> None:
        for span in self._spans:
            span.describe(attributes)

    def fail(self, error: str) -> None:
        for span in self._spans:
            span.fail(error)

    def end(self) -> None:
        for span in self._spans:
            span.end()

    def discard(self) -> None:
        for span in self._spans:
            span.discard()


class Tracer(Protocol):
    def begin(
        self, name: str, kind: SpanKind = SpanKind.INTERNAL, caller: Mapping[str, str] = NOTHING
    ) -> Span | None:
        """A span from now on, as a part of the trace that `caller` names with W3C trace context.

        None unless it is recorded: because the caller's is, or without a caller by chance.
        """


class _NoTracer:
    def begin(
        self, name: str, kind: SpanKind = SpanKind.INTERNAL, caller: Mapping[str, str] = NOTHING
    ) -> Span | None:
        return None


NO_TRACING = _NoTracer()

_current: ContextVar[Span | None] = ContextVar("span", default=None)


def current_span() -> Span | None:
    """What the running work belongs to; None if that is not recorded."""
    return _current.get()


def set_current_span(span: Span | None) -> None:
    _current.set(span)


@contextmanager
def working_for(span: Span | None) -> Iterator[None]:
    """The block belongs to `span`, or to none. Greenlets begin with the span of who started them, threads with none."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def recording(span: Span | None) -> Iterator[Span | None]:
    """The block belongs to `span`, which ends with it."""
    with working_for(span):
        try:
            yield span
        except BaseException as error:
            if span is not None:
                span.fail(type(error).__name__)
            raise
        finally:
            if span is not None:
                span.end()


@contextmanager
def part(name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes = NOTHING) -> Iterator[None]:
    """The block is a part of the current span."""
    span = _current.get()
    if span is None:
        yield
        return
    began_s, failure = time.perf_counter(), None
    try:
        yield
    except BaseException as error:
        failure = type(error).__name__
        raise
    finally:
        span.add(name, began_s, time.perf_counter(), kind, attributes, failure)


class Caller(NamedTuple):
    """Who asks, in W3C trace context: ids of 32 and 16 hexadecimal digits, and whether the trace is recorded there."""

    trace_id: str
    span_id: str
    is_sampled: bool


# A later version may add something behind, and means the same with what stands before.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace_id>[0-9a-f]{32})-(?!0{16})(?P<span_id>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


def parse_traceparent(header: str | None) -> Caller | None:
    """None if there is no such header, or none that is valid: then a new trace begins.

    >>> parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    Caller(trace_id='0af7651916cd43dd8448eb211c80319c', span_id='b7ad6b7169203331', is_sampled=True)
    """
    found = _TRACEPARENT.fullmatch(header) if header else None
    if found is None or (found["more"] and found["version"] == "00"):
        return None
    return Caller(found["trace_id"], found["span_id"], bool(int(found["flags"], 16) & 1))
