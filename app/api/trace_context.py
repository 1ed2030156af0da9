"""The trace that a request belongs to, as its W3C header `traceparent` tells it."""

import re

from flask import has_request_context, request

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?"
)
_SAMPLED = 1


def current_trace_id() -> str | None:
    """32 hexadecimal digits; None outside of a request and for one without a valid header."""
    trace = _trace()
    return None if trace is None else trace[0]


def recorded_trace_id() -> str | None:
    """The same, but only of a trace that somebody records: any other one cannot be looked at."""
    trace = _trace()
    return None if trace is None or not trace[1] else trace[0]


def _trace() -> tuple[str, bool] | None:
    header = request.environ.get("HTTP_TRACEPARENT") if has_request_context() else None
    match = _TRACEPARENT.fullmatch(header) if header else None
    return None if match is None else (match[1], bool(int(match[2], 16) & _SAMPLED))
