"""One line per request: what was asked, what came of it, and about whom only what the settings allow.

The lines are put together and written without the logging library, which took a tenth of the time of a request.
"""

import atexit
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import orjson
from flask import Flask, Request, Response, g, has_request_context, request

from app.api.logs import ECS_VERSION, EcsFormatter, service_fields
from app.api.trace_context import current_span_id, current_trace_id
from app.domain.access import has_key
from app.domain.ids import new_id
from app.domain.types import DegradationLevel, Slate
from app.settings import Settings

LOGGER = "app.access"
MAX_REQUEST_ID = 100
USER_HASH_BYTES = 16

# A line as far as the number of requests that it stands for, which ends it.
Head = str
# Route, status and degradation level: few, whoever asks for what.
Kind = tuple[str | None, int, int]


class RatedLines:
    """Writes at most so many lines of a kind per second, and in the next second one for all that were left out.

    The sum of the requests that lines stand for is the number of requests, however many there were.
    """

    def __init__(self, most_per_second: int, write: Callable[[str], None]) -> None:
        self._most = most_per_second
        self._write = write
        self._second = 0
        self._counts: dict[Kind, int] = {}
        self._left_out: dict[Kind, Head] = {}

    def add(self, kind: Kind, head: Head) -> None:
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= self._most:
            self._write(finish(head, "1"))
        else:
            self._left_out[kind] = head

    def at(self, second: int) -> None:
        """Call it with the present second, in which the lines that follow count."""
        if second != self._second:
            self._second = second
            self.flush()

    def flush(self) -> None:
        counts, left_out = self._counts, self._left_out
        self._counts, self._left_out = {}, {}
        for kind, head in left_out.items():
            self._write(finish(head, str(counts[kind] - self._most)))


def log_requests(app: Flask, settings: Settings, chance: Callable[[], float] = random.random) -> None:
    """Gives every request an id: the caller's `X-Request-Id`, if it is a sane one. The id, and what else tells of
    the request, stands in every line that is logged while it is handled. When it is answered, a line tells its outcome,
    unless that is as it should be and not of the share that is logged.
    """
    log = RequestLog(settings, chance)
    app.before_request(log.begin)
    app.after_request(log.end)
    atexit.register(log.flush)


class RequestFormatter(EcsFormatter):
    """Lines that are logged while a request is handled tell which."""

    def format_to_ecs(self, record: logging.LogRecord) -> dict[str, Any]:
        line = super().format_to_ecs(record)
        if has_request_context() and (describe := g.get("describe_request")) is not None:
            line |= describe()
        return line


class RequestLog:
    """Of one worker. `chance` gives random numbers from 0 to 1."""

    def __init__(self, settings: Settings, chance: Callable[[], float]) -> None:
        self._is_on = logging.getLogger(LOGGER).isEnabledFor(logging.INFO)
        self._share, self._chance = settings.log_success_share, chance
        self._weight = f"{1 / self._share:.6g}" if self._share else ""
        self._slow_s = settings.suggest_deadline_ms / 1_000
        self._user_fields = user_description(settings)
        self._rated = RatedLines(settings.log_lines_per_second, _write)
        self.flush = self._rated.flush
        process = {
            "ecs.version": ECS_VERSION,
            "log": {"logger": LOGGER},
            "process": {"pid": os.getpid()},
            "service": service_fields("web"),
        }
        self._process = orjson.dumps(process).decode()[1:-1]

    def begin(self) -> None:
        # The proxies of Flask cost half a microsecond for each look at what they stand for.
        here, asked = g._get_current_object(), request._get_current_object()
        here.started = time.perf_counter()
        here.request_id = _given_id(asked) or new_id()
        here.describe_request = self._describe

    def end(self, response: Response) -> Response:
        here, asked = g._get_current_object(), request._get_current_object()
        response.headers["X-Request-Id"] = here.request_id
        if not self._is_on:
            return response
        now_s = time.perf_counter()
        self._rated.at(int(now_s))
        took_s, status, slate = now_s - here.started, response.status_code, here.get("slate")
        level = slate.degradation_level if slate is not None else DegradationLevel.FULL
        if status >= 400 or level != DegradationLevel.FULL or took_s > self._slow_s:
            route = asked.url_rule.rule if asked.url_rule else None
            self._rated.add((route, status, level), self._head(here, asked, status, took_s))
        elif self._share == 1.0 or self._chance() < self._share:
            _write(finish(self._head(here, asked, status, took_s), self._weight))
        return response

    def _head(self, here: Any, asked: Request, status: int, took_s: float) -> Head:
        route = asked.url_rule.rule if asked.url_rule else None
        line = [
            f'{{"@timestamp":"{_timestamp()}",{_about_answer(asked.method, route, status)}',
            f'{_text(here.request_id)}}}}},"event":{{"outcome":"{"failure" if status >= 500 else "success"}",',
            f'"duration":{int(took_s * 1e9)}',
        ]
        if reason := here.get("problem_reason"):
            line.append(f',"reason":{_text(reason)}')
        line.append(f"}},{self._process}")
        if trace_id := current_trace_id():
            line.append(f',"trace":{{"id":"{trace_id}"}}')
            if span_id := current_span_id():
                line.append(f',"span":{{"id":"{span_id}"}}')
        if api_key := here.get("api_key"):
            line.append(f',"labels":{{"key_id":"{api_key.key_id}"}}')
        if self._user_fields is not None and (user_id := _user_id()):
            line.append(f',"user":{orjson.dumps(self._user_fields(user_id)).decode()}')
        if decision_id := here.get("decision_id"):
            line.append(f',"propositions":{{"decision":{{"id":"{decision_id}"}}{_ranking(here)}}}')
        return "".join(line)

    def _describe(self) -> dict[str, Any]:
        """What tells of the request under way, as far as it is known."""
        fields: dict[str, Any] = {"http": {"request": {"id": g.request_id, "method": request.method}}}
        if request.url_rule:
            fields["http"]["route"] = request.url_rule.rule
        if trace_id := current_trace_id():
            fields["trace"] = {"id": trace_id}
        if span_id := current_span_id():
            fields["span"] = {"id": span_id}
        if decision_id := g.get("decision_id"):
            fields["propositions"] = {"decision": {"id": decision_id}}
        if api_key := g.get("api_key"):
            fields["labels"] = {"key_id": api_key.key_id}
        if self._user_fields is not None and (user_id := _user_id()):
            fields["user"] = self._user_fields(user_id)
        return fields


def finish(head: Head, count: str) -> str:
    return f'{head},"transaction":{{"representative_count":{count}}}}}\n'


def user_description(settings: Settings) -> Callable[[str], dict[str, str]] | None:
    """What a line says about the user with an id; None: nothing."""
    if settings.log_user_ids == "none":
        return None
    if settings.log_user_ids == "plain":
        return lambda user_id: {"id": user_id}
    key = settings.log_user_id_key.get_secret_value().encode()

    def hashed(user_id: str) -> dict[str, str]:
        return {"hash": blake2b(user_id.encode(), key=key, digest_size=USER_HASH_BYTES).hexdigest()}

    return hashed


def _user_id() -> str | None:
    """Of the one user that the request is about, if the route knows it by now."""
    return g.get("user_id") or (request.view_args or {}).get("user_id")


def _given_id(asked: Request) -> str | None:
    given = asked.environ.get("HTTP_X_REQUEST_ID")
    is_sane = given and len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable()
    return given if is_sane and not has_key(given) else None


@lru_cache(maxsize=1_024)
def _about_answer(method: str, route: str | None, status: int) -> str:
    """As far as the id of the request. Not the path: it may hold the id of a person, and logs outlive whom we forget."""
    message = f"{method} {route} {status}" if route else f"{method} {status}"
    named_route = f'"route":{_text(route)},' if route else ""
    return (
        f'"log.level":"{"error" if status >= 500 else "info"}","message":{_text(message)},'
        f'"http":{{"response":{{"status_code":{status}}},{named_route}"request":{{"method":{_text(method)},"id":'
    )


def _ranking(here: Any) -> str:
    """How the slate came about, and where the time went, in nanoseconds."""
    slate: Slate | None = here.get("slate")
    if slate is None:
        return ""
    about = _slate_fields(slate.strategy, slate.degradation_level, slate.is_cached, slate.model_version)
    stages = ",".join([f'"{stage}":{int(took_s * 1e9)}' for stage, took_s in here.budget.stages_s.items()])
    return f',"slate":{about},"stage_ns":{{{stages}}}'


@lru_cache(maxsize=256)
def _slate_fields(strategy: str, level: int, is_cached: bool, model_version: str | None) -> str:
    fields = {"strategy": strategy, "level": int(level), "cached": is_cached}
    return orjson.dumps(fields | ({"model_version": model_version} if model_version else {})).decode()


def _timestamp() -> str:
    second, microseconds = divmod(time.time_ns() // 1_000, 1_000_000)
    return f"{_until_second(second)}.{microseconds:06d}Z"


@lru_cache(maxsize=2)
def _until_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _text(value: str) -> str:
    return orjson.dumps(value).decode()


def _write(line: str) -> None:
    # On a full disk, or when whoever collects is gone, the line is lost, not the answer.
    with suppress(OSError, ValueError):
        sys.stdout.write(line)
        sys.stdout.flush()
