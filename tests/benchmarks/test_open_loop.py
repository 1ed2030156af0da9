"""Both load generators, against a server whose answers are known."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.gameday.load import write_requests
from tests.benchmarks.load import finish_open_loop, has_wrk, open_loop, start_open_loop
from tests.benchmarks.stores import ROOT


class Answers(BaseHTTPRequestHandler):
    """Answers by the request's own wish; the connection is kept."""

    protocol_version = "HTTP/1.1"
    was_asked = threading.Event()

    def do_POST(self) -> None:
        self.was_asked.set()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("hang_up"):
            self.close_connection = True
            return
        time.sleep(body.get("wait_s", 0.0))
        answer = f'{{"model_version":"m1","degradation_level":{body.get("level", 0)},"cached":true}}'.encode()
        self.send_response(body.get("status", 200))
        self.send_header("Content-Length", str(len(answer)))
        if "X-Request-Id" in self.headers and not body.get("is_anonymous"):
            self.send_header("X-Request-Id", self.headers["X-Request-Id"])
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Answers.was_asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(params=[0.4, pytest.param(1.0, marks=pytest.mark.skipif(not has_wrk(), reason="needs wrk"))])
def seconds(request) -> float:
    """Our own generator does what is shorter than a second, wrk the rest."""
    return request.param


def test_answers_are_counted_by_status_level_model_and_cache(port, tmp_path, seconds):
    requests = write_requests(tmp_path / "r", "/suggest", [{}, {"level": 2}, {"status": 503}, {}])
    count = round(100 * seconds)

    outcome = open_loop(port, requests, rate=100, seconds=seconds)

    assert (outcome.due, outcome.answers, outcome.errors) == (count, count, 0)
    assert outcome.statuses == {"200": count * 3 // 4, "503": count // 4}
    assert outcome.levels == {"0": count * 3 // 4, "2": count // 4}
    assert outcome.models == {"m1": count}
    assert outcome.cached == count


def test_a_connection_that_is_closed_is_an_error_and_the_rest_goes_on(port, tmp_path, seconds):
    requests = write_requests(tmp_path / "r", "/suggest", [{}, {"hang_up": True}])
    count = round(100 * seconds)

    outcome = open_loop(port, requests, rate=100, seconds=seconds)

    assert (outcome.answers, outcome.errors) == (count // 2, count // 2)


def test_a_load_in_the_background_ends_when_it_is_told_to(port, tmp_path, seconds):
    requests = write_requests(tmp_path / "r", "/suggest", [{}])

    load = start_open_loop(port, requests, rate=100, seconds=seconds * 60)
    Answers.was_asked.wait(timeout=30)
    outcome = finish_open_loop(load)

    assert outcome.errors == 0
    assert outcome.due < 100 * seconds * 60


@pytest.mark.skipif(not has_wrk(), reason="needs wrk")
def test_an_answer_counts_from_when_its_request_was_due_whatever_overtook_it(port, tmp_path):
    requests = write_requests(tmp_path / "r", "/suggest", [{"wait_s": 0.5}, *[{}] * 99])

    outcome = open_loop(port, requests, rate=100, seconds=1.0)

    assert outcome.over_deadline >= 1
    assert outcome.latency_ms["p99"] < 500 <= outcome.latency_ms["p99.9"]  # of 100, one and no other


@pytest.mark.skipif(not has_wrk(), reason="needs wrk")
def test_a_refusal_without_an_id_is_not_taken_for_the_answer_to_an_earlier_request(port, tmp_path):
    refused = {"status": 503, "is_anonymous": True}
    requests = write_requests(tmp_path / "r", "/suggest", [{"wait_s": 0.5}, refused, *[{}] * 98])

    outcome = open_loop(port, requests, rate=100, seconds=1.0)

    assert (outcome.answers, outcome.errors) == (100, 0)
    assert outcome.statuses == {"200": 99, "503": 1}
    assert outcome.latency_ms["p90"] < 500 <= outcome.latency_ms["p99.9"]


def test_the_wait_for_a_busy_connection_counts_from_when_the_request_was_due(port, tmp_path):
    requests = write_requests(tmp_path / "r", "/suggest", [{"wait_s": 0.1}])

    command = ["app.gameday.load", str(requests), f"--port={port}", "--connections=1"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--rate=100", "--seconds=0.05"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )

    # Five requests, due every 10 ms, one after the other over one connection that takes 100 ms for each.
    outcome = json.loads(done.stdout)
    assert outcome["answers"] == 5
    assert outcome["late_sends"] == 4
    assert outcome["latency_ms"]["p99.9"] >= 5 * 100 - 4 * 10
    assert outcome["over_deadline"] == 5
