"""Traces of real processes at a real collector, and that nobody waits for it."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.adapters.free_ports import free_port
from app.adapters.tracing import OpenTelemetryTracer, open_tracer
from app.api.factory import create_app
from app.bootstrap.projector import build_intake, build_projector
from app.bootstrap.stores import open_import
from app.bootstrap.web import build_api
from app.gameday.stack import Program, wait_until
from app.settings import load_settings
from tests.builders import count, event, proposition
from tests.otlp_collector import Collector, attributes, running_collector, tree
from tests.small_model import activate_small_model

SPAN_ID = "b7ad6b7169203331"
WITHIN_S = 60.0


def caller(trace_id: str, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{SPAN_ID}-{flags}"}


@pytest.fixture
def collector(settings, monkeypatch) -> Iterator[Collector]:
    """All that a test starts is traced, but no trace begins by chance."""
    with running_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
        for name in ("SUGGEST_DEADLINE_MS", "EVENT_PRIMARY_TIMEOUT_MS"):
            monkeypatch.setenv(name, "20000")
        yield collector


@pytest.fixture
def open_traced(collector) -> Iterator[Callable[[str], OpenTelemetryTracer]]:
    """A tracer for a part of the service that the test runs itself."""
    tracers: list[OpenTelemetryTracer] = []

    def open_traced(process: str, share: float = 0.0) -> OpenTelemetryTracer:
        settings = load_settings().model_copy(update={"otel_traces_sampler_arg": share})
        tracers.append(open_tracer(settings, process))
        return tracers[-1]

    yield open_traced
    for tracer in tracers:
        tracer.close()


@pytest.fixture
def world(settings) -> None:
    """Propositions with a history, and a model that reads it."""
    at = datetime.now(UTC) - timedelta(hours=1)
    with open_import(settings) as loader:
        for n in range(6):
            loader.add(proposition(f"p{n}", category="sport"))
            loader.add(event(f"e{n}", "click", f"p{n}", at))
        loader.finish(False)
    build_projector(settings)[0].run()
    activate_small_model(settings, "sport")


class Served:
    """The service under gunicorn, with one worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        environment = {**os.environ, "PORT": str(self.port), "WEB_WORKERS": "1", "PYTHONPATH": os.getcwd()}
        self.program = Program("service", ["serve"], environment, folder)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        answer.body = json.loads(answer.read() or b"null")
        connection.close()
        return answer

    def is_ready(self) -> bool:
        try:
            return self.ask("GET", "/health/ready").status == 200
        except OSError:
            return False

    @property
    def log(self) -> str:
        return (self.folder / "service.log").read_text()


@pytest.fixture
def serve(settings, tmp_path) -> Iterator[Callable[[], Served]]:
    with ExitStack() as stack:

        def serve() -> Served:
            served = Served(tmp_path)
            stack.callback(served.program.stop)
            served.program.start()
            wait_until(served.is_ready, WITHIN_S, "the service is not ready")
            return served

        yield serve


def test_what_a_request_did_is_in_the_trace_of_its_caller(collector, world, serve):
    served = serve()
    wait_until(
        lambda: served.ask("POST", "/suggest", {"user_id": "u1"}).body["strategy"] == "model",
        WITHIN_S,
        "no model serves",
    )
    unsampled = served.ask("POST", "/suggest", {"user_id": "u2"}, **caller("2" * 32, "00"))
    suggested = served.ask("POST", "/suggest", {"user_id": "u3"}, **caller("3" * 32))
    recorded = served.ask(
        "POST",
        "/log_event",
        {"event_type": "click", "proposition_id": "p1", "user_id": "u3"},
        **caller("4" * 32),
    )
    wrong = served.ask("POST", "/suggest", {"limit": "many"}, **caller("5" * 32))

    spans = collector.wait_for("3" * 32, "POST /suggest")
    assert tree(spans, bytes.fromhex(SPAN_ID)) == {
        "POST /suggest": {
            "turn": {},
            "cache": {"HMGET": {}},
            "features": {"HMGET": {}},
            "candidates": {},
            "score": {},
            "policy": {},
        }
    }
    (whole,) = (span for span in spans if span.kind == span.SPAN_KIND_SERVER)
    described = attributes(whole)
    assert described["propositions.request_id"] == suggested.body["request_id"]
    assert (described["propositions.model_version"], described["propositions.candidates"]) == ("m1", 6)
    assert (described["http.route"], described["http.response.status_code"]) == ("/suggest", 200)
    assert suggested.getheader("traceresponse") == f"00-{'3' * 32}-{whole.span_id.hex()}-01"

    spans = collector.wait_for("4" * 32, "POST /log_event")
    assert recorded.body["events"][0]["stored_in"] == "postgres"
    assert tree(spans, bytes.fromhex(SPAN_ID)) == {
        "POST /log_event": {"record": {"transaction": {"WITH": {}}, "HINCRBY": {}}}
    }

    collector.wait_for("5" * 32, "POST /suggest")
    assert (wrong.status, wrong.body["trace_id"]) == (422, "5" * 32)

    served.ask("GET", "/health/live", **caller("6" * 32))
    served.program.stop()  # sends what it has

    assert tree(collector.spans("6" * 32), bytes.fromhex(SPAN_ID)) == {"GET /health/live": {}}
    assert "u3" not in str(collector.spans())
    # Of those without a caller, or with one that does not record, there is nothing.
    assert unsampled.getheader("traceresponse") is None
    assert {span.trace_id.hex() for span in collector.spans()} == {c * 32 for c in "3456"}


def test_an_event_through_kafka_is_one_trace_from_the_request_to_postgres(
    collector, kafka_settings, open_traced
):
    web, projector = open_traced("web"), open_traced("projector")
    settings = load_settings()
    services, _, registry = build_api(settings, tracer=web)
    client = create_app(settings, services, registry).test_client()
    intake = build_intake(settings, CollectorRegistry(), projector)
    trace_id = "6" * 32

    for headers in (caller(trace_id), {}):
        body = {"event_type": "click", "proposition_id": "p1", "user_id": "u1"}
        answer = client.post("/log_event", json=body, headers=headers)
        assert answer.get_json()["events"][0]["stored_in"] == "kafka"
    deadline_s = time.monotonic() + WITHIN_S
    while count(settings, "events") < 2 and time.monotonic() < deadline_s:
        intake.run_once(0.2)
    intake.close()
    web.close()
    projector.close()

    topic = settings.kafka_events_topic
    assert tree(collector.spans(trace_id), bytes.fromhex(SPAN_ID)) == {
        "POST /log_event": {
            "record": {f"send {topic}": {}, "HINCRBY": {}},
            f"process {topic}": {"transaction": {"WITH": {}}},
        }
    }
    kinds = {span.name.split()[0]: span.kind for span in collector.spans(trace_id)}
    assert (kinds["send"], kinds["process"]) == (4, 5)  # producer, consumer
    assert {span.trace_id.hex() for span in collector.spans()} == {trace_id}


def test_batches_of_the_projector_and_rounds_of_the_keeper_are_traces_of_their_own(
    collector, open_traced, tmp_path
):
    tracer = open_traced("projector", share=1.0)
    settings = load_settings()
    projector, _ = build_projector(settings, tracer=tracer)
    services, _, registry = build_api(settings)
    client = create_app(settings, services, registry).test_client()
    client.post("/log_event", json={"event_type": "click", "proposition_id": "p1", "user_id": "u1"})

    projector.run()
    projector.run()
    tracer.close()

    (batch,) = (span for span in collector.spans() if span.name == "fold counters")
    assert attributes(batch)["propositions.events"] == 1
    parts = tree(collector.spans(), batch.span_id)
    assert list(parts) == ["transaction", "write online rows"] and "SELECT" in parts["transaction"]

    environment = {**os.environ, "OTEL_TRACES_SAMPLER_ARG": "1", "PYTHONPATH": os.getcwd()}
    keeper = Program("keeper", ["snapshot", "--follow"], environment, tmp_path)
    keeper.start()
    rounds = [s for s in collector.wait_for(None, "refresh snapshot") if s.name == "refresh snapshot"]
    keeper.stop()

    assert "transaction" in tree(collector.spans(), rounds[0].span_id)


def test_a_collector_that_hangs_delays_nobody(collector, serve, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1")
    collector.hangs = True
    served = serve()

    def seconds(path: str, body: Mapping) -> float:
        began_s = time.monotonic()
        assert served.ask("POST", path, body).status in (200, 202)
        return time.monotonic() - began_s

    taken_s = [seconds("/suggest", {"user_id": f"u{n}"}) for n in range(300)]
    began_s = time.monotonic()
    served.program.stop()

    assert np.median(taken_s) < 0.1 and max(taken_s) < 2.0
    assert time.monotonic() - began_s < 20.0
    lines = [json.loads(line) for line in served.log.splitlines()]
    losses = Counter(line["process"]["pid"] for line in lines if "traces are lost" in line["message"])
    assert set(losses.values()) <= {1}
    assert "Traceback" not in served.log


# redis-py imports what OpenTelemetry has for metrics, wherever that is installed.
LOADED = """
import sys
from app.bootstrap.web import web
web()
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])
"""


def test_a_worker_that_is_not_traced_does_not_load_opentelemetry(settings):
    loaded = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)

    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.splitlines()[-1] == "[]"
