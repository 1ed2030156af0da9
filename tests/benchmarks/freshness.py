"""How long after its acknowledgement an event is felt: seen by `/suggest`, while many others come in."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection

from app.gameday.load import Outcome
from app.gameday.series import percentile
from tests.benchmarks.bench import Bench
from tests.benchmarks.keys import HEADERS, write_requests
from tests.benchmarks.load import finish_open_loop, start_open_loop
from tests.benchmarks.service import STOP_TIMEOUT_S, Service
from tests.benchmarks.stores import ROOT
from tests.benchmarks.traffic import clicks

EVENTS_PER_S = 500.0
PROBES = 4
PAUSE_S = 0.01
FELT_TIMEOUT_S = 30.0
HEAD_START_S = 2.0
LONGEST_S = 900.0


@dataclass(frozen=True, slots=True)
class Freshness:
    """Milliseconds from a 202 to the end of the first answer that used the event, of `felt` events."""

    felt: int
    not_felt: int
    latency_ms: dict[str, float]
    load: Outcome


def measure_freshness(bench: Bench) -> Freshness:
    """New users click something; until then nothing is known of them, and their features are `missing`."""
    plan = bench.plan
    with (
        bench.world("freshness", plan.size) as loaded,
        bench.service(loaded, "freshness", SUGGEST_CACHE_TTL_S=30) as service,
        _projector(service),
    ):
        requests = write_requests(
            bench.folder / "requests" / "freshness", "/log_event", clicks(plan.size, plan.requests)
        )
        _wait_for_projector(service.port)
        load = start_open_loop(service.port, requests, EVENTS_PER_S, LONGEST_S)
        time.sleep(min(HEAD_START_S, plan.freshness_s))
        felt_ms = _probe(service.port, plan.freshness_s)
        outcome = finish_open_loop(load)
    felt = sorted(latency_ms for latency_ms in felt_ms if latency_ms is not None)
    return Freshness(
        felt=len(felt),
        not_felt=len(felt_ms) - len(felt),
        latency_ms={f"p{p:g}": percentile(felt, p) for p in (50.0, 90.0, 99.0)},
        load=outcome,
    )


@contextmanager
def _projector(service: Service) -> Iterator[None]:
    with (service.folder / "projector.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "project", "--follow"],
            env=service.environment,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_projector(port: int) -> None:
    """Until it has started and folded something."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    if _felt_after_ms(connection, f"first-{os.getpid()}") is None:
        raise RuntimeError("the projector does not follow: see its log")
    connection.close()


def _probe(port: int, seconds: float) -> list[float | None]:
    end_s = time.monotonic() + seconds
    felt_ms: list[float | None] = []

    def probe(name: str) -> None:
        connection, number = HTTPConnection("127.0.0.1", port, timeout=10), 0
        while time.monotonic() < end_s:
            number += 1
            felt_ms.append(_felt_after_ms(connection, f"new-{os.getpid()}-{name}-{number}"))
        connection.close()

    threads = [threading.Thread(target=probe, args=(str(n),)) for n in range(PROBES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return felt_ms


def _felt_after_ms(connection: HTTPConnection, user_id: str) -> float | None:
    """None if it was not felt in time."""
    question = {"user_id": user_id, "context": {"page": "home"}, "limit": 10}
    if _is_felt(connection, question):
        raise RuntimeError(f"{user_id} is no new user")
    _post(
        connection,
        "/log_event",
        {"event_type": "click", "user_id": user_id, "proposition_id": "p000001", "context": {"page": "home"}},
    )
    began_s = time.monotonic()
    while time.monotonic() < began_s + FELT_TIMEOUT_S:
        if _is_felt(connection, question):
            return (time.monotonic() - began_s) * 1e3
        time.sleep(PAUSE_S)
    return None


def _is_felt(connection: HTTPConnection, question: dict) -> bool:
    """False as well when the question is refused, because there is too much to do."""
    return _post(connection, "/suggest", question).get("features", {}).get("user") == "fresh"


def _post(connection: HTTPConnection, path: str, body: dict) -> dict:
    connection.request("POST", path, json.dumps(body), HEADERS)
    return json.loads(connection.getresponse().read())
