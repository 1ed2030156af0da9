"""A real run of the service in which things go well and wrong, and what all its processes have logged."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from app.gameday.stack import Stack, running_stack, wait_until
from tests.small_model import activate_small_model

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
SUGGESTIONS = 60
ENVIRONMENT = {
    "LOG_USER_IDS": "hashed",
    "LOG_USER_ID_KEY": "of a test, 16 bytes or more",
    # So much patience that a busy machine makes nothing slow.
    "SUGGEST_DEADLINE_MS": "5000",
    "WEB_WORKERS": "1",
}


@dataclass(frozen=True)
class ServiceRun:
    """What a run has left: its log files, the id of a decision, and the statuses of all requests by message."""

    files: Sequence[Path]
    decision_id: str
    asked: Mapping[str, int]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for path in self.files for line in path.read_text().splitlines()]


def run_service(folder: Path) -> ServiceRun:
    """Suggestions by rules and by a model, an event, requests that are wrong, and an outage of PostgreSQL."""
    with running_stack(folder / "stack", ENVIRONMENT) as stack:
        stack.service.start()
        stack.add_projector()
        stack.wait_until_ready()
        catalog = [{"proposition_id": f"p{n}", "title": f"P {n}", "category": "sport"} for n in range(20)]
        ask(stack, "POST", "/propositions", {"propositions": catalog})
        _, rules = _suggestion_by(stack, "rules")
        with pytest.MonkeyPatch.context() as patch:
            settings = stack.settings()  # which Feast takes from the environment
            patch.setenv("DATABASE_URL", settings.postgres_url)
            patch.setenv("REDIS_URL", settings.redis_address)
            patch.setenv("DATA_DIR", str(settings.data_dir))
            activate_small_model(settings, "sport")
        _suggestion_by(stack, "model")
        for number in range(SUGGESTIONS):
            ask(stack, "POST", "/suggest", {"user_id": f"u{number % 40}", "limit": 3})
        click = {"event_id": "e-1", "event_type": "click", "proposition_id": "p1", "user_id": "u1"}
        ask(stack, "POST", "/log_event", click, TRACED)
        ask(stack, "POST", "/suggest", {"limit": 0})
        ask(stack, "GET", "/nowhere/alice")
        stack.postgres.freeze()
        statuses = [ask(stack, "PUT", "/users/alice", {"segment": "s"}, TRACED)[0] for _ in range(2)]
        assert statuses == [503, 503], statuses
        stack.postgres.thaw()
        stack.postgres.kill()
        wait_until(lambda: {"keeper", "projector"} <= _roles(files(folder)), 30, "nobody warns of the outage")
    asked = {"PUT /users/<id:user_id> 503": 2, "POST /suggest 422": 1, "GET 404": 1, "POST /log_event 202": 1}
    return ServiceRun(files(folder), rules["request_id"], asked)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "stack").glob("*.log"))


def _roles(paths: Sequence[Path]) -> set[str]:
    text = "".join(path.read_text() for path in paths)
    return set(re.findall(r'"roles":\["(\w+)"\]', text))


def ask(
    stack: Stack, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = Request(
        f"{stack.url}{path}", data, {"Content-Type": "application/json", **headers}, method=method
    )
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def _suggestion_by(stack: Stack, strategy: str) -> tuple[int, Any]:
    """A traced one; what answers until then is not."""

    def answer(headers: Mapping[str, str] = {}) -> tuple[int, Any]:
        return ask(stack, "POST", "/suggest", {"user_id": "u0", "limit": 2}, headers)

    wait_until(lambda: answer()[1]["strategy"] == strategy, 60, f"nothing is suggested by {strategy}")
    return answer(TRACED)


def field_names(line: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted names of a line's fields, as Elasticsearch has them."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from field_names(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"
