"""What becomes of work in traces, up to a collector that is a real server."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from app.adapters.free_ports import free_port
from app.adapters.tracing import CLOSE_S, MOST_AT_ONCE, OpenTelemetryTracer, open_tracer
from app.api.problems import problem_response
from app.api.trace_context import current_trace_id, recorded_trace_id
from app.domain.errors import StoreUnavailable
from app.domain.ports import Receipt
from app.domain.tracing import (
    NO_TRACING,
    SharedSpan,
    SpanKind,
    current_span,
    parse_traceparent,
    part,
    recording,
    working_for,
)
from app.domain.types import StoredIn
from app.events.commit import GroupCommit
from app.settings import Settings
from tests.builders import event
from tests.otlp_collector import Collector, attributes, running_collector, tree

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}
LONG_S = 30.0


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture
def make_tracer(collector) -> Iterator[Callable[..., OpenTelemetryTracer]]:
    tracers = []

    def make(**changes) -> OpenTelemetryTracer:
        settings = Settings(_env_file=None, **{"otel_exporter_otlp_endpoint": collector.endpoint, **changes})
        tracers.append(open_tracer(settings, "test"))
        return tracers[-1]

    yield make
    for tracer in tracers:
        tracer.close()


@pytest.fixture
def tracer(make_tracer) -> OpenTelemetryTracer:
    return make_tracer(otel_traces_sampler_arg=1)


@pytest.mark.parametrize("flags", ["01", "03", "ff"])
def test_a_caller_that_records_its_trace_is_told_from_one_that_does_not(flags):
    sampled = parse_traceparent(f"00-{TRACE_ID}-{SPAN_ID}-{flags}")
    unsampled = parse_traceparent(UNSAMPLED["traceparent"])

    assert (sampled.trace_id, sampled.span_id, sampled.is_sampled) == (TRACE_ID, SPAN_ID, True)
    assert not unsampled.is_sampled


def test_a_later_version_may_say_more():
    assert parse_traceparent(f"01-{TRACE_ID}-{SPAN_ID}-01-more").trace_id == TRACE_ID


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
    ],
)
def test_what_is_no_trace_context_counts_as_none(header):
    assert parse_traceparent(header) is None


def test_work_lies_within_the_work_during_which_it_was_done(tracer, collector):
    with recording(tracer.begin("request", SpanKind.SERVER, SAMPLED)):
        with part("one"), part("inner"), part("innermost"):
            pass
        with part("two"):
            with part("first"):
                pass
            with part("second"):
                pass

    tracer.close()
    spans = collector.spans(TRACE_ID)
    assert tree(spans, bytes.fromhex(SPAN_ID)) == {
        "request": {"one": {"inner": {"innermost": {}}}, "two": {"first": {}, "second": {}}}
    }


def test_stages_that_are_told_when_they_are_over_hold_what_was_done_in_them(tracer, collector):
    span = tracer.begin("request", SpanKind.SERVER, SAMPLED)
    began_s = time.perf_counter()
    with working_for(span), part("ask"):
        pass
    middle_s = time.perf_counter()
    span.add("features", began_s, middle_s)
    span.add("score", middle_s, time.perf_counter())
    span.end()

    tracer.close()
    spans = collector.spans(TRACE_ID)
    assert tree(spans, bytes.fromhex(SPAN_ID)) == {"request": {"features": {"ask": {}}, "score": {}}}
    (whole,) = (span for span in spans if span.name == "request")
    assert all(
        whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        and span.end_time_unix_nano <= whole.end_time_unix_nano
        for span in spans
    )
    assert abs(whole.end_time_unix_nano / 1e9 - time.time()) < LONG_S


def test_what_fails_says_so_and_what_its_error_is(tracer, collector):
    with (
        pytest.raises(StoreUnavailable),
        recording(tracer.begin("request", caller=SAMPLED)),
        part("ask", SpanKind.CLIENT, {"db.system.name": "redis"}),
    ):
        raise StoreUnavailable("of user u1")

    tracer.close()
    spans = {span.name: span for span in collector.spans(TRACE_ID)}
    assert attributes(spans["ask"]) == {"db.system.name": "redis", "error.type": "StoreUnavailable"}
    assert attributes(spans["request"]) == {"error.type": "StoreUnavailable"}
    assert {span.status.code for span in spans.values()} == {Status.STATUS_CODE_ERROR}
    assert "u1" not in str(spans)


def test_the_caller_decides_whether_a_trace_is_recorded(make_tracer):
    always, never = make_tracer(otel_traces_sampler_arg=1), make_tracer(otel_traces_sampler_arg=0)

    assert never.begin("request", caller=SAMPLED).trace_id == TRACE_ID
    assert always.begin("request", caller=UNSAMPLED) is None
    assert never.begin("request") is None and always.begin("request") is not None


def test_without_a_caller_as_many_are_recorded_as_the_setting_says(make_tracer):
    tracer = make_tracer(otel_traces_sampler_arg=0.1)

    recorded = sum(tracer.begin("request") is not None for _ in range(20_000))

    assert abs(recorded - 2_000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_those_who_go_on_elsewhere_get_the_trace_and_what_others_said_of_it(tracer):
    span = tracer.begin("request", caller={**SAMPLED, "tracestate": "vendor=x,other=y"})

    headers = span.headers()

    assert headers["tracestate"] == "vendor=x,other=y"
    went_on = parse_traceparent(headers["traceparent"])
    assert went_on.trace_id == TRACE_ID and went_on.is_sampled and went_on.span_id != SPAN_ID


def test_what_comes_after_the_end_or_is_discarded_is_not_told(tracer, collector):
    ended, discarded = (tracer.begin(name, caller=SAMPLED) for name in ("ended", "discarded"))
    discarded.discard()
    for span in (discarded, ended):
        span.end()
        span.add("late", 0.0, 1.0)
        span.end()

    tracer.close()
    assert [span.name for span in collector.spans(TRACE_ID)] == ["ended"]


def test_spans_name_the_service_and_the_headers_are_those_of_the_settings(
    make_tracer, collector, monkeypatch
):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    tracer = make_tracer(
        otel_traces_sampler_arg=1, otel_service_name="shop", otel_exporter_otlp_headers="X-Key=a%20b,x-two=2"
    )

    tracer.begin("request").end()

    tracer.close()
    assert collector.resources[0]["service.name"] == "shop"
    assert collector.resources[0]["deployment.environment.name"] == "test"
    headers = {name.lower(): value for name, value in collector.headers[0].items()}
    assert (headers["x-key"], headers["x-two"]) == ("a b", "2")


class WaitingLog:
    """An event log that is a part of the trace, and waits until it is let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def append(self, events):
        self.began.release()
        with part("append"):
            assert self.go.acquire(timeout=LONG_S)
        return Receipt(tuple(e.event_id for e in events), (), StoredIn.POSTGRES)


def test_a_commit_that_requests_share_is_in_the_trace_of_each(tracer, collector):
    log, told = WaitingLog(), []
    commit = GroupCommit(log, LONG_S, 10, lambda events: told.append(current_span()))

    def send(event_id, trace_id):
        caller = {"traceparent": f"00-{trace_id}-{SPAN_ID}-01"} if trace_id else UNSAMPLED
        with recording(tracer.begin("request", caller=caller)) as span:
            commit.append([event(event_id)])
            return span

    ids = ["1" * 32, "2" * 32, "3" * 32, None]
    with ThreadPoolExecutor(len(ids)) as pool:
        first = pool.submit(send, "e0", ids[0])
        assert log.began.acquire(timeout=LONG_S)
        others = [pool.submit(send, f"e{n}", ids[n]) for n in (1, 2, 3)]
        while len(commit._waiting) < 3:
            time.sleep(0.001)
        log.go.release(2)
        spans = [first.result(LONG_S), *(other.result(LONG_S) for other in others)]

    tracer.close()
    for trace_id in ids[:3]:
        assert tree(collector.spans(trace_id), bytes.fromhex(SPAN_ID)) == {"request": {"append": {}}}
    assert told[0].of("e0") is spans[0]
    assert [told[1].of(f"e{n}") for n in (1, 2, 3)] == [spans[1], spans[2], None]


def test_a_commit_of_requests_that_are_not_recorded_belongs_to_no_trace(tracer):
    told = []
    log = WaitingLog()
    commit = GroupCommit(log, LONG_S, 10, lambda events: told.append(current_span()))
    log.go.release(2)

    with recording(tracer.begin("request", caller=SAMPLED)):
        commit.append([event("e1")])
    commit.append([event("e2")])

    assert isinstance(told[0], SharedSpan) and told[1] is None


def test_a_collector_that_takes_nothing_is_mentioned_once_and_so_is_its_return(tracer, collector, caplog):
    caplog.set_level(logging.DEBUG)
    collector.status = 400

    def send_until(is_done: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + LONG_S
        while not is_done():
            assert time.monotonic() < deadline_s
            for _ in range(MOST_AT_ONCE):
                tracer.begin("request").end()
            time.sleep(0.01)

    send_until(lambda: collector.post_count >= 3)
    collector.status = 200
    send_until(collector.spans)
    tracer.close()

    told = [r.getMessage() for r in caplog.records if r.name.startswith(("app", "opentelemetry"))]
    assert len(told) == 2, told
    assert "400" in told[0] and "takes traces again" in told[1]


GEVENT_WORKER = """
from gevent import monkey
monkey.patch_all()
import os, subprocess, threading, time
from app.adapters.tracing import open_tracer
from app.settings import Settings

parent = os.getpid()

def answer_requests():
    while True:
        if os.getpid() != parent:
            os.write(1, b"answered in a child")
        time.sleep(0)

tracer = open_tracer(Settings(_env_file=None, otel_exporter_otlp_endpoint="http://127.0.0.1:9"), "web")
threading.Thread(target=answer_requests, daemon=True).start()
time.sleep(0.01)
for _ in range(5):
    subprocess.run(["true"], preexec_fn=lambda: None, check=True)
print("over")
"""


def test_requests_of_a_traced_worker_do_not_go_on_in_the_processes_that_it_starts():
    """They would with OpenTelemetry's own BatchSpanProcessor."""
    done = subprocess.run([sys.executable, "-c", GEVENT_WORKER], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout.strip()) == (0, "over"), done.stderr


@pytest.mark.parametrize("is_there", [True, False], ids=["hangs", "is not there"])
def test_a_collector_that_does_not_answer_holds_up_neither_the_work_nor_its_end(
    make_tracer, collector, is_there
):
    collector.hangs = True
    elsewhere = {} if is_there else {"otel_exporter_otlp_endpoint": f"http://127.0.0.1:{free_port()}"}
    tracer = make_tracer(otel_traces_sampler_arg=1, **elsewhere)
    began_s = time.monotonic()

    for _ in range(10_000):
        tracer.begin("request").end()
    worked_s = time.monotonic() - began_s
    tracer.close()

    assert worked_s < 5.0
    assert time.monotonic() - began_s - worked_s < CLOSE_S + 1.0


def test_what_waits_is_sent_when_the_process_ends(tracer, collector):
    tracer.begin("last", caller=SAMPLED).end()

    tracer.close()

    assert [span.name for span in collector.spans(TRACE_ID)] == ["last"]


def test_without_tracing_the_id_in_problems_is_that_of_the_caller():
    app = Flask("test")
    app.add_url_rule("/", "index", lambda: problem_response(404, "Not Found", "it is not there"))

    ids = [
        app.test_client().get("/", headers=headers).get_json()["trace_id"]
        for headers in (SAMPLED, UNSAMPLED, {"traceparent": "nonsense"}, {})
    ]

    assert ids == [TRACE_ID, TRACE_ID, None, None]


def test_an_id_that_leads_to_a_trace_is_one_that_somebody_records(tracer):
    app = Flask("test")

    def known(headers):
        with app.test_request_context("/", headers=headers):
            return current_trace_id(), recorded_trace_id()

    assert known(SAMPLED) == (TRACE_ID, TRACE_ID)
    assert known(UNSAMPLED) == (TRACE_ID, None)
    assert (current_trace_id(), recorded_trace_id()) == (None, None)
    with working_for(tracer.begin("request", caller=SAMPLED)):
        assert (current_trace_id(), recorded_trace_id()) == (TRACE_ID, TRACE_ID)


def test_without_tracing_nothing_is_current():
    with recording(NO_TRACING.begin("request", caller=SAMPLED)) as span, part("work"):
        assert span is current_span() is None
