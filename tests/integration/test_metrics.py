"""What `/metrics` says under several workers that come and go, and that nobody's ids end up in it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from app.adapters.free_ports import free_port
from app.api.factory import create_app
from app.bootstrap.web import build_api
from app.domain.types import EventType

READY_S, SEEN_S = 60.0, 20.0
SLATES = "flask_http_request_duration_seconds"
OF_SLATES = {"method": "POST", "url_rule": "/suggest", "status": "200"}


class Service:
    """Two workers under gunicorn."""

    def __init__(self, settings, folder) -> None:
        self.port = free_port()
        self.folder = settings.metrics_dir
        command = (
            f"{sys.executable} -m gunicorn --config python:app.api.gunicorn_conf --bind 127.0.0.1:{self.port} "
            "app.bootstrap.web:web()"
        )
        environment = {**os.environ, "WEB_WORKERS": "2", "SUGGEST_CACHE_TTL_S": "0"}
        with (folder / "serve.log").open("w") as log:
            self.process = subprocess.Popen(command.split(), env=environment, stdout=log, stderr=log)

    @property
    def workers(self) -> set[int]:
        """Who has a worker's files; others are children as well, such as the keeper's processes."""
        return {int(path.stem.rpartition("_")[2]) for path in self.folder.glob("gauge_livesum_*.db")}

    def ask(self, path, body=None, **headers) -> tuple[int, str]:
        """On a connection of its own, so that either worker may answer."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            headers = {"Content-Type": "application/json", **headers}
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def metrics(self) -> dict[tuple, float]:
        return samples(self.ask("/metrics")[1])


def samples(text: str) -> dict[tuple, float]:
    """By name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def named(metrics, name, **labels):
    return metrics.get((name, *sorted(labels.items())))


def wait_until(condition, timeout_s=SEEN_S):
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.fixture
def service(settings, tmp_path) -> Iterator[Service]:
    service = Service(settings, tmp_path)
    try:
        wait_until(lambda: is_ready(service), READY_S)
        yield service
    finally:
        service.process.terminate()
        service.process.wait(60)


def is_ready(service) -> bool:
    assert service.process.poll() is None
    try:
        return named(service.metrics(), "propositions_workers") == 2
    except OSError:
        return False


def test_a_worker_that_is_killed_takes_its_gauges_with_it_and_leaves_what_it_counted(service):
    for number in range(20):
        assert service.ask("/suggest", json.dumps({"user_id": f"u-{number}"}))[0] == 200
        assert service.ask("/suggest", "{")[0] == 400
    before = wait_until(
        lambda: (
            (seen := service.metrics())
            and named(seen, "propositions_stage_seconds_count", stage="default") == 20
            and seen
        )
    )
    assert named(before, f"{SLATES}_count", **OF_SLATES) == 20
    bad = {"route": "/suggest", "status": "400", "reason": "bad_request"}
    assert named(before, "propositions_request_errors_total", **bad) == 20
    victim = min(service.workers)

    os.kill(victim, signal.SIGKILL)

    seen = []

    def is_replaced() -> bool:
        is_gone = victim not in service.workers
        seen.append(service.metrics())
        return is_gone and named(seen[-1], "propositions_workers") == 2

    wait_until(is_replaced, READY_S)
    counted = {n: v for n, v in before.items() if n[0].endswith(("_total", "_bucket", "_count"))}
    for metrics in seen:
        assert {name: metrics.get(name) for name in counted} == counted
    assert not list(service.folder.glob(f"*_{victim}.*"))
    assert {name[0].split("_")[0] for name in seen[-1]} == {"flask", "propositions"}
    assert named(seen[-1], "propositions_started_timestamp_seconds") > named(
        before, "propositions_started_timestamp_seconds"
    )
    for name in ("decision_queue_capacity", "pool_connections_limit"):
        assert {n: v for n, v in seen[-1].items() if name in n[0]} == {
            n: v for n, v in before.items() if name in n[0]
        }


def test_whatever_is_asked_the_number_of_series_stays_the_same(settings):
    services, _, registry = build_api(settings)
    client = create_app(settings, services, registry).test_client()

    def ask_for_anything(names: list[str]) -> set[tuple]:
        """Whatever can be made up differs by the name. Returns the series that there are then."""
        propositions = [{"proposition_id": n, "title": n, "category": n, "tags": [n]} for n in names]
        client.post("/propositions", json={"propositions": propositions})
        events = [
            {
                "event_id": f"{n}-{kind}",
                "event_type": kind,
                "proposition_id": n,
                "user_id": n,
                "request_id": n,
            }
            for n in names
            for kind in (*EventType, n)
        ]
        for first in range(0, len(events), 1_000):
            client.post("/log_event", json={"events": events[first : first + 1_000]})
        for n in names[:100]:
            headers = {"X-Request-Id": n, "User-Agent": n, "X-Deadline-Ms": n[2:]}
            filters = {"categories": [n]}
            client.post(
                "/suggest", json={"user_id": n, "context": {n: n}, "filters": filters}, headers=headers
            )
            client.post("/suggest", json={n: n})
            client.get(f"/{n}")
            client.put(f"/users/{n}", json={"segment": n})
            client.get(f"/users/{n}/{n}?{n}={n}")
            client.open("/suggest", method=n.upper())
        return set(samples(client.get("/metrics").text))

    known = ask_for_anything([f"n-{number}" for number in range(5)])

    assert ask_for_anything([f"n-{number}" for number in range(5, 2_005)]) == known
    assert not [name for name in known if "n-" in str(name)]
