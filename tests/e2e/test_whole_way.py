"""The demo, and then the same stack under gunicorn with its dependencies killed under it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from app.adapters.embedded import EmbeddedServers

USERS = [str(n) for n in range(1, 944)]
TIMEOUT_S = 60.0


class Stack:
    """The embedded servers of one data folder, and the service and projector over them."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.servers = EmbeddedServers(folder / "embedded")
        self._environment = {
            **{k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")},
            "DATA_DIR": str(folder),
            "PORT": str(self.port),
            "RATE_LIMIT_UNAUTHORIZED": "none",  # tests ask until a key is known
        }
        self._processes: list[subprocess.Popen] = []
        self.key = ""

    def make_key(self) -> None:
        """A key that opens everything, for `ask`."""
        scopes = [flag for scope in ("suggest", "events", "catalog", "admin") for flag in ("--scope", scope)]
        created = self.run("keys", "create", "test", *scopes)
        assert created.returncode == 0, created.stderr
        self.key = created.stdout.strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "app", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True)

    def start(self, *names: str) -> None:
        self._processes += [
            subprocess.Popen(
                [sys.executable, "-m", "app", *name.split()],
                env=self._environment,
                stdout=(self.folder / f"{name.split()[0]}.log").open("a"),
                stderr=subprocess.STDOUT,
            )
            for name in names
        ]

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(TIMEOUT_S)
        self._processes = []

    def kill(self, name: str) -> None:
        (pid,) = [server.pid for server in self.servers.status() if server.name == name]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(s.is_running for s in self.servers.status() if s.name == name))

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """A server that accepts connections and never replies."""
        (pid,) = [server.pid for server in self.servers.status() if server.name == name]
        server = psutil.Process(pid)
        family = [server, *server.children()]
        for process in family:
            process.suspend()
        try:
            yield
        finally:
            for process in family:
                process.resume()

    def ask(self, path: str, body: dict | None = None, method: str | None = None) -> tuple[int, dict, dict]:
        """Status, headers and body of the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"http://127.0.0.1:{self.port}{path}", data, self.headers, method=method)
        try:
            with urlopen(request, timeout=10) as response:
                return response.status, dict(response.headers), _parsed(response.read())
        except HTTPError as error:
            return error.code, dict(error.headers), _parsed(error.read())

    def services(self) -> list[psutil.Process]:
        return [psutil.Process(process.pid) for process in self._processes]

    def are_alive(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def suggest(self, user_id: str = "1", **fields) -> dict:
        status, _, body = self.ask("/suggest", {"user_id": user_id, **fields})
        assert status == 200
        return body

    def is_ready(self) -> bool:
        try:
            return self.ask("/health/ready")[0] == 200
        except OSError:
            return False


def _parsed(content: bytes):
    try:
        return json.loads(content)
    except ValueError:
        return content.decode()


def wait_until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[tuple[Stack, subprocess.CompletedProcess]]:
    stack = Stack(tmp_path_factory.mktemp("demo"))
    yield stack, stack.run("demo", "--once")
    stack.stop()
    stack.servers.down()


@pytest.fixture(scope="module")
def started(demo) -> Stack:
    stack, _ = demo
    stack.servers.up(die_with_parent=True)
    stack.make_key()
    stack.start("serve", "project --follow")
    wait_until(stack.is_ready)
    return stack


@pytest.fixture
def stack(started) -> Stack:
    """The running stack with everything up and serving at level 0, whatever the test before did."""
    started.servers.up(die_with_parent=True)
    wait_until(lambda: started.suggest()["degradation_level"] == 0)
    return started


def test_the_demo_ends_well_and_says_why_the_second_slate_differs(demo):
    _, done = demo

    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    assert "for research" in done.stdout and "recbole" in done.stdout
    assert "ranked by model" in done.stdout
    assert re.search(r"curl -s \S+/suggest -H 'Authorization: Bearer pp_\w{12}_[\w-]{43}'", done.stdout)
    reason = done.stdout.partition("why: ")[2]
    assert "user 1: clicks, half-life 1h: " in reason and " -> " in reason


def test_all_users_and_as_many_unknown_get_a_full_slate_the_known_ones_by_the_model(stack):
    known = [stack.suggest(user_id, limit=10) for user_id in USERS]
    unknown = [stack.suggest(f"unknown-{n}", limit=10) for n in range(100)]

    assert all(len(slate["propositions"]) == 10 for slate in known + unknown)
    assert all(p["title"] for slate in known + unknown for p in slate["propositions"])
    by_strategy = Counter(slate["strategy"] for slate in known)
    assert by_strategy["model"] >= 0.95 * len(USERS), by_strategy
    assert {slate["features"]["user"] for slate in unknown} == {"missing"}


def test_the_next_slate_feels_a_click_within_seconds(stack):
    before = stack.suggest("2")
    event = {
        "event_type": "click",
        "user_id": "2",
        "proposition_id": before["propositions"][-1]["proposition_id"],
        "request_id": before["request_id"],
    }

    assert stack.ask("/log_event", event)[0] == 202

    def scores(slate):
        return {p["proposition_id"]: p["score"] for p in slate["propositions"]}

    wait_until(lambda: scores(stack.suggest("2")) != scores(before), timeout_s=10)


def test_a_slate_is_ranked_once_until_its_user_does_something(stack):
    first = stack.suggest("3")
    wait_until(lambda: stack.suggest("3")["cached"])
    event = {"event_type": "click", "user_id": "3", "proposition_id": "50"}

    assert stack.ask("/log_event", event)[0] == 202

    again = stack.suggest("3")
    assert not again["cached"]
    assert again["request_id"] != first["request_id"]


def test_a_changed_catalog_is_seen_by_all_workers(stack, tmp_path):
    (shown, *_) = stack.suggest("4", limit=1)["propositions"]
    changed = {"proposition_id": shown["proposition_id"], "title": "Changed", "category": shown["category"]}
    path = tmp_path / "propositions.jsonl"

    def answers() -> list[dict]:
        slates = [stack.suggest("4", candidates=[shown["proposition_id"]]) for _ in range(8)]
        return [proposition for slate in slates for proposition in slate["propositions"]]

    path.write_text(json.dumps({**changed, "value": 12.5}))
    assert stack.run("import", str(path)).returncode == 0
    wait_until(lambda: {(p["title"], p["value"]) for p in answers()} == {("Changed", 12.5)})

    path.write_text(json.dumps({**changed, "is_active": False}))
    assert stack.run("import", str(path)).returncode == 0
    wait_until(lambda: answers() == [])


def test_what_is_put_over_http_is_shown_by_all_workers_until_it_is_deleted(stack):
    def answers() -> list[dict]:
        slates = [stack.suggest("4", candidates=["fresh"]) for _ in range(8)]
        return [proposition for slate in slates for proposition in slate["propositions"]]

    assert stack.ask("/propositions/fresh", {"title": "Fresh"}, method="PUT")[0] == 201
    wait_until(lambda: [p["title"] for p in answers()] == ["Fresh"] * 8)

    assert stack.ask("/propositions/fresh", method="DELETE")[0] == 204
    wait_until(lambda: answers() == [])


def test_a_user_who_is_forgotten_is_nobody_to_the_next_slate(stack):
    user_id = USERS[-1]  # whom no later test asks for
    assert stack.suggest(user_id)["features"]["user"] == "fresh"

    status, _, body = stack.ask(f"/users/{user_id}", method="DELETE")

    assert status == 200 and body["is_complete"] and body["removed"]["events"] > 0
    assert stack.suggest(user_id)["features"]["user"] == "missing"


def test_another_model_serves_soon_after_it_was_promoted_and_no_request_fails(stack):
    models = stack.folder / "models"
    (version,) = [path.parent.name for path in models.glob("*/manifest.json")]
    other = f"{version}-again"
    shutil.copytree(models / version, models / other)

    assert stack.run("models", "promote", other, "--force", "--reason", "a copy").returncode == 0

    wait_until(lambda: {stack.suggest(user)["model_version"] for user in USERS[:20]} == {other})


def test_a_keeper_that_dies_is_replaced_and_news_are_seen_again(stack, tmp_path):
    def keepers() -> list[psutil.Process]:
        family = [p for service in stack.services() for p in service.children(recursive=True)]
        return [p for p in family if "snapshot" in p.cmdline() and p.status() != psutil.STATUS_ZOMBIE]

    (keeper,) = keepers()
    keeper.kill()
    path = tmp_path / "propositions.jsonl"
    path.write_text(json.dumps({"proposition_id": "brand-new", "title": "Brand new"}))
    assert stack.run("import", str(path)).returncode == 0

    wait_until(lambda: stack.suggest(candidates=["brand-new"])["propositions"] != [])

    assert len(keepers()) == 1


def test_a_body_of_five_megabytes_is_answered_not_cut_off(stack):
    status, headers, body = stack.ask("/log_event", {"event_type": "click", "user_id": "x" * 5_000_000})

    assert status == 413
    assert headers["Content-Type"] == "application/problem+json"
    assert body["errors"][0]["field"] == "body"


def test_a_chunked_body_has_the_same_limit(stack):
    connection = HTTPConnection("127.0.0.1", stack.port, timeout=10)
    body = (b"x" * 100_000 for _ in range(50))

    connection.request("POST", "/suggest", body, stack.headers, encode_chunked=True)

    assert connection.getresponse().status == 413


def test_metrics_are_the_sum_of_all_workers(stack):
    for _ in range(20):
        stack.suggest()

    def count() -> int:
        text = stack.ask("/metrics")[2]
        lines = [line for line in text.splitlines() if line.startswith("propositions_slates_total{")]
        return int(sum(float(line.split()[-1]) for line in lines))

    first = count()
    for _ in range(20):
        stack.suggest()

    assert [count() - first for _ in range(6)] == [20] * 6


def test_logs_are_one_json_object_a_line_with_id_route_status_and_duration(stack):
    _, headers, _ = stack.ask("/suggest", {"limit": 0})

    wait_until(lambda: any(_request_id(line) == headers["X-Request-Id"] for line in log_lines(stack)))
    (line,) = [line for line in log_lines(stack) if _request_id(line) == headers["X-Request-Id"]]
    assert line["http"]["route"] == "/suggest"
    assert line["http"]["response"]["status_code"] == 422
    assert line["event"]["duration"] > 0


def log_lines(stack) -> list[dict]:
    text = (stack.folder / "serve.log").read_text()
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _request_id(line: dict) -> str | None:
    return line.get("http", {}).get("request", {}).get("id")


def test_with_redis_killed_a_full_slate_still_comes_and_says_its_level(stack):
    stack.kill("redis")

    slates = [stack.suggest(user_id, limit=10) for user_id in USERS[:50]]

    assert all(len(slate["propositions"]) == 10 for slate in slates)
    assert {(slate["strategy"], slate["degradation_level"]) for slate in slates} == {("rules", 2)}
    stack.servers.up(die_with_parent=True)
    wait_until(lambda: stack.suggest()["degradation_level"] == 0, timeout_s=10)


def log_click(stack: Stack) -> str:
    """Sends an event and tells where it is durable."""
    status, _, body = stack.ask("/log_event", {"event_type": "click", "proposition_id": "50"})
    assert status == 202
    return body["events"][0]["stored_in"]


def test_with_postgres_killed_slates_still_come_and_events_are_spooled_until_it_is_back(stack):
    stack.kill("postgres")

    slates = [stack.suggest(user_id, limit=10) for user_id in USERS[:50]]
    places = {log_click(stack) for _ in range(20)}
    status, headers, _ = stack.ask("/users/nobody", method="DELETE")

    assert all(len(slate["propositions"]) == 10 for slate in slates)
    assert {(slate["strategy"], slate["degradation_level"]) for slate in slates} == {("model", 0)}
    assert places == {"spool"}
    assert status == 503
    warnings = [line for line in log_lines(stack) if line["message"].startswith("a store is down")]
    assert headers["X-Request-Id"] in {_request_id(line) for line in warnings}
    stack.servers.up(die_with_parent=True)
    wait_until(lambda: log_click(stack) == "postgres")


def test_with_redis_frozen_a_full_slate_comes_within_the_deadline_of_redis(stack):
    with stack.frozen("redis"):
        slates = [stack.suggest(user_id, limit=10) for user_id in USERS[:20]]

    assert all(len(slate["propositions"]) == 10 for slate in slates)
    assert {slate["degradation_level"] for slate in slates} == {2}


def test_with_postgres_frozen_slates_still_come_and_events_are_spooled_not_hung(stack):
    with stack.frozen("postgres"):
        places = {log_click(stack) for _ in range(20)}
        slates = [stack.suggest(user_id, limit=10) for user_id in USERS[:20]]

    assert places == {"spool"}
    assert {(slate["strategy"], slate["degradation_level"]) for slate in slates} == {("model", 0)}
    wait_until(lambda: log_click(stack) == "postgres")


def test_health_tells_which_dependency_is_down(stack):
    stack.kill("redis")

    def states() -> dict[str, str]:
        dependencies = stack.ask("/health")[2]["dependencies"]
        return {name: dependency["status"] for name, dependency in dependencies.items()}

    # Each worker looks for itself, every second.
    wait_until(
        lambda: (
            states() == {**dict.fromkeys(("postgres", "events", "model", "snapshot"), "up"), "redis": "down"}
        )
    )

    assert stack.ask("/health/ready")[0] == 200


def test_a_service_that_starts_with_everything_down_serves_the_last_good_snapshot(stack):
    stack.stop()
    stack.servers.down()

    stack.start("serve", "project --follow")
    wait_until(stack.is_ready)
    slate = stack.suggest(limit=10)

    assert len(slate["propositions"]) == 10
    assert (slate["strategy"], slate["degradation_level"]) == ("rules", 2)
    stack.servers.up(die_with_parent=True)
    wait_until(lambda: stack.suggest()["degradation_level"] == 0)
    assert stack.are_alive()


def test_a_key_works_in_all_workers_soon_after_it_was_made_until_soon_after_it_was_revoked(stack):
    mine = stack.key

    def statuses(key: str) -> set[int]:
        stack.key = key
        try:
            return {stack.ask("/suggest", {})[0] for _ in range(8)}
        finally:
            stack.key = mine

    made = json.loads(stack.run("keys", "create", "new", "--scope", "suggest", "--json").stdout)
    wait_until(lambda: statuses(made["key"]) == {200}, timeout_s=10)
    stack.run("keys", "revoke", made["key_id"])
    wait_until(lambda: statuses(made["key"]) == {401}, timeout_s=10)
    assert statuses(mine) == {200}
