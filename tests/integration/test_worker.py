"""The gunicorn worker among clients that are slow, that send nonsense, and that stay on when it has to leave."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException

import psutil
import pytest

TIMEOUT_S = 20.0
KEEP_OPEN_S = 60


class Gunicorn:
    def __init__(self, folder, drain_s: float, workers: int = 1, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._workers = workers
        self.log_path = folder / "gunicorn.log"
        command = (
            f"{sys.executable} -m gunicorn --config python:app.api.gunicorn_conf --workers {workers} "
            f"--bind 127.0.0.1:{self.port} --keep-alive {KEEP_OPEN_S} --graceful-timeout {KEEP_OPEN_S} "
            "--no-control-socket tests.integration.worker_application:application"
        )
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                command.split(),
                env={
                    **os.environ,
                    "SHUTDOWN_DRAIN_S": str(drain_s),
                    "DATA_DIR": str(folder),
                    **environment,
                },
                stdout=log,
                stderr=log,
            )

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)

    def get(self, path: str) -> int | None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def wait_until_all_serve(self) -> None:
        """Until each worker has answered a request."""
        seen: set[int] = set()

        def have_all_answered() -> bool:
            with closing(HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)) as connection:
                connection.request("GET", "/pid")
                seen.add(int(connection.getresponse().read()))
            workers = set(self.connections())
            return len(workers) == self._workers and workers <= seen

        wait_until(have_all_answered)

    def connections(self) -> dict[int, int]:
        """How many connections each worker has."""
        counts = {}
        for worker in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                counts[worker.pid] = sum(
                    connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == self.port
                    for connection in worker.net_connections("tcp")
                )
        return counts


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(params=[0.0])
def gunicorn(request, tmp_path) -> Iterator[Gunicorn]:
    server = Gunicorn(tmp_path, request.param)
    try:
        wait_until(lambda: server.get("/ready") == 200)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    while part := connection.recv(65_536):
        received += part
    return received


@pytest.mark.parametrize("missing", [97, 1])
def test_a_body_that_trickles_in_is_given_up_and_its_connection_closed(gunicorn, missing):
    with gunicorn.connect() as connection:
        head = b"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head + b"x" * (100 - missing))

        received = answer(connection)

    assert received.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in received
    assert b"the body did not arrive in time" in received


@pytest.mark.parametrize("length", ["5", "999"], ids=["small", "the largest"])
def test_a_body_that_arrives_in_time_is_read(gunicorn, length):
    with gunicorn.connect() as connection:
        head = f"POST /read HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * int(length))

        assert answer(connection).endswith(length.encode())


@pytest.mark.parametrize("chunks", [b"zz\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n"])
def test_chunks_that_are_none_are_the_callers_mistake(gunicorn, chunks):
    with gunicorn.connect() as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

        received = answer(connection)

    assert received.startswith(b"HTTP/1.1 400 "), received
    assert gunicorn.get("/ready") == 200


def test_who_hangs_up_in_the_middle_of_a_body_leaves_no_error_behind(gunicorn):
    with gunicorn.connect() as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")

    assert gunicorn.get("/ready") == 200
    assert "Traceback" not in gunicorn.log_path.read_text()


def test_a_request_that_is_under_way_is_answered_and_idle_connections_hold_nobody_up(gunicorn):
    with gunicorn.connect() as idle, gunicorn.connect() as half, gunicorn.connect() as busy:
        idle.sendall(b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n")
        received = b""
        while not received.endswith(b"ready"):
            received += idle.recv(65_536)
        half.sendall(b"GET /ready HT")
        busy.sendall(b"GET /slow/1.5 HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_until(lambda: gunicorn.get("/begun") == 200)

        gunicorn.process.terminate()

        received = answer(busy)
        assert b"200 OK" in received and received.endswith(b"done")
        assert b"connection: close" in received.lower()
        assert answer(idle) == answer(half) == b""
    assert gunicorn.process.wait(TIMEOUT_S) == 0
    assert "graceful timeout" not in gunicorn.log_path.read_text()


@pytest.mark.parametrize("gunicorn", [3.0], indirect=True)
def test_it_is_not_ready_before_it_takes_no_more_requests(gunicorn):
    gunicorn.process.terminate()

    wait_until(lambda: gunicorn.get("/ready") == 503)
    assert gunicorn.get("/slow/0.0") == 200

    wait_until(lambda: gunicorn.get("/slow/0.0") is None)
    assert gunicorn.process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize(
    "request_",
    [
        b"PUT /refuse HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc",
    ],
    ids=["chunks that are none", "a body that does not come"],
)
def test_a_body_that_nobody_wanted_gets_no_second_answer(gunicorn, request_):
    with gunicorn.connect() as connection:
        connection.sendall(request_)

        received = answer(connection)

    assert received.startswith(b"HTTP/1.1 4") and received.count(b"HTTP/1.1") == 1
    assert "Traceback" not in gunicorn.log_path.read_text()


def test_who_connects_in_the_last_moment_does_not_hold_it_up(gunicorn):
    gunicorn.process.terminate()
    late = []
    while len(late) < 50 and gunicorn.process.poll() is None:
        try:
            late.append(gunicorn.connect())
        except OSError:
            break

    assert gunicorn.process.wait(TIMEOUT_S) == 0
    for connection in late:
        connection.close()


def test_a_worker_that_is_told_to_end_while_it_starts_ends_when_it_has(tmp_path):
    server = Gunicorn(tmp_path, drain_s=0.0, HOLD_UP=str(tmp_path))
    try:
        wait_until((tmp_path / "starting").exists)
        server.process.terminate()
        (tmp_path / "go").touch()

        assert server.process.wait(TIMEOUT_S) == 0
        assert "Traceback" not in server.log_path.read_text()
    finally:
        server.process.kill()


def test_workers_share_connections_out_evenly_also_after_one_has_died(tmp_path):
    server = Gunicorn(tmp_path, 0.0, workers=2)
    try:
        wait_until(lambda: server.get("/ready") == 200)
        server.wait_until_all_serve()
        first = [server.connect() for _ in range(8)]
        wait_until(lambda: sorted(server.connections().values()) == [4, 4])

        dead = next(iter(server.connections()))
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: dead not in server.connections())
        server.wait_until_all_serve()
        second = [server.connect() for _ in range(10)]
        wait_until(lambda: sorted(server.connections().values()) == [7, 7])

        for client in first + second:
            client.close()
    finally:
        server.process.kill()
        server.process.wait()


def test_answers_say_at_what_second_they_were_given(gunicorn):
    def date() -> datetime:
        with closing(HTTPConnection("127.0.0.1", gunicorn.port, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", "/pid")
            return parsedate_to_datetime(connection.getresponse().headers["Date"])

    first = date()

    assert abs((first - datetime.now(UTC)).total_seconds()) < TIMEOUT_S
    wait_until(lambda: date() > first)


def packets_received(connection: socket.socket) -> int:
    """Those with data, by Linux' `struct tcp_info`."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return struct.unpack_from("I", info, 152)[0]


def test_an_answer_arrives_in_one_packet(gunicorn):
    with gunicorn.connect() as connection:
        for count in range(1, 4):
            connection.sendall(b"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
            received = b""
            while not received.endswith(b"\r\n\r\n3"):
                part = connection.recv(65_536)
                assert part, received
                received += part

            assert packets_received(connection) == count
