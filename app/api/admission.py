"""Load shedding: what would have to wait too long is refused at once, before anything of it is read."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

SUGGEST = "suggest"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
RETRY_AFTER_S = 1
# Requests under way per worker, by the first part of their path: what one kind needs does not take all from the others.
MOST_AT_ONCE = {"log_event": 256, "propositions": 32, "users": 16}
REFUSAL_STATUS = "503 Service Unavailable"


@dataclass(slots=True)
class InProgress:
    """Requests under way in this worker."""

    count: int = 0


class Admission:
    """WSGI middleware. Methods that no route has end here, too. Whoever watches and measures (`/health`, `/metrics`) is always let in.

    Args:
        wsgi: the application.
        is_overrun: whether slates would wait too long for their turn.
        most_at_once: requests under way at a time, by the first part of their path.
        on_shed: is told the first part of the path of what was refused.
        in_progress: is kept up to date.
    """

    def __init__(
        self,
        wsgi: Wsgi,
        is_overrun: Callable[[], bool],
        most_at_once: Mapping[str, int],
        on_shed: Callable[[str], None],
        in_progress: InProgress,
    ) -> None:
        self._wsgi = wsgi
        self._is_overrun = is_overrun
        self._most_at_once = most_at_once
        self._on_shed = on_shed
        self._in_progress = in_progress
        self._under_way: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        self._in_progress.count += 1
        try:
            return self._answer(environ, start_response)
        finally:
            self._in_progress.count -= 1

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in METHODS:
            # Metrics have a label for it, and so every word that anybody makes up would cost memory for good.
            start_response("405 Method Not Allowed", [("Allow", ", ".join(METHODS)), ("Content-Length", "0")])
            return ()
        name = environ["PATH_INFO"][1:].partition("/")[0]
        if name == SUGGEST:
            return (
                self._refuse(name, start_response)
                if self._is_overrun()
                else self._wsgi(environ, start_response)
            )
        most = self._most_at_once.get(name)
        if most is None:
            return self._wsgi(environ, start_response)
        if self._under_way[name] >= most:
            return self._refuse(name, start_response)
        self._under_way[name] += 1
        try:
            return self._wsgi(environ, start_response)
        finally:
            self._under_way[name] -= 1

    def _refuse(self, name: str, start_response: StartResponse) -> Iterable[bytes]:
        self._on_shed(name)
        start_response(REFUSAL_STATUS, REFUSAL_HEADERS)
        return (REFUSAL_BODY,)


REFUSAL_BODY = orjson.dumps(
    {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "more requests than can be answered in time; send it again later",
        "request_id": "",
        "errors": [],
    }
)
REFUSAL_HEADERS = [
    ("Content-Type", "application/problem+json"),
    ("Content-Length", str(len(REFUSAL_BODY))),
    ("Retry-After", str(RETRY_AFTER_S)),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
]
