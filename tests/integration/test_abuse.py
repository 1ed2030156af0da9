"""Thousands of requests that are none, on raw connections: no 5xx, no crash, nothing left behind, and others are served."""

import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
import pytest

from app.gameday.stack import Stack, running_stack, wait_until

REQUESTS = 10_000
CONNECTIONS_AT_ONCE = 64
SLOW_CLIENTS = 300
# What the server has not answered by then it waits for more of.
PATIENCE_S = 0.25
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
HEAD = b"POST /suggest HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: 2\r\n\r\n{}"


def garbage(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(1, 500))


def after_a_good_one(chance: random.Random) -> bytes:
    return GOOD + garbage(chance)


def huge_header(chance: random.Random) -> bytes:
    return HEAD + b"X-Huge: " + b"x" * chance.choice((9_000, 70_000, 300_000)) + b"\r\n\r\n"


def many_headers(chance: random.Random) -> bytes:
    return HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(chance.choice((101, 2_000)))) + b"\r\n"


def long_line(chance: random.Random) -> bytes:
    return b"GET /" + b"a" * chance.choice((5_000, 200_000)) + b" HTTP/1.1\r\nHost: h\r\n\r\n"


def wrong_length(chance: random.Random) -> bytes:
    length = chance.choice((b"-1", b"abc", b"1e3", b"+5", b"99999999999999999999", b"5, 6", b""))
    return HEAD + b"Content-Length: " + length + b"\r\n\r\n{}"


def two_lengths(chance: random.Random) -> bytes:
    return HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + garbage(chance)


def wrong_chunks(chance: random.Random) -> bytes:
    chunk = chance.choice(
        (b"zz\r\n{}\r\n", b"-1\r\n", b"FFFFFFFFFFFF\r\n", b"2\r\n{}xx\r\n", b"2;" + b"e" * 9_000)
    )
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk


def other_coding(chance: random.Random) -> bytes:
    return (
        HEAD
        + b"Transfer-Encoding: "
        + chance.choice((b"gzip", b"xchunked", b"chunked, identity"))
        + b"\r\n\r\n"
    )


def wrong_line(chance: random.Random) -> bytes:
    return chance.choice(
        (
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: h\r\n\r\n",
            b"GET / HTTP/1.1 extra\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"G\x00ET / HTTP/1.1\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET http://[::1 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /%00%ff%2e%2e/ HTTP/1.1\r\nHost: h\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
            b"TRACE /suggest HTTP/1.1\r\nHost: h\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        )
    )


def wrong_header(chance: random.Random) -> bytes:
    return b"GET /health HTTP/1.1\r\n" + chance.choice(
        (b": x\r\n", b"A B: x\r\n", b"Host\r\n", b"X: \x00\r\n", b" folded\r\n", b"Host: h\nX: y\r\n", b"Expect: 200\r\n")
    ) + b"\r\n"  # fmt: skip


def wrong_body(chance: random.Random) -> bytes:
    body = chance.choice(
        (
            b"[" * 5_000,
            b'{"a":' * 3_000,
            b"\xff\xfe",
            b"nul",
            b'{"limit": 1e999}',
            b'"\\ud800"',
            garbage(chance),
        )
    )
    path = chance.choice((b"/suggest", b"/log_event", b"/propositions", b"/users/u", b"/propositions/p"))
    method = b"PUT" if path.count(b"/") > 1 else b"POST"
    return b"%b %b HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        method,
        path,
        len(body),
        body,
    )


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    garbage,
    after_a_good_one,
    huge_header,
    many_headers,
    long_line,
    wrong_length,
    two_lengths,
    wrong_chunks,
    other_coding,
    wrong_line,
    wrong_header,
    wrong_body,
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    # So much patience that nothing is shed on a busy machine: it is about what bad requests do, not too many.
    environment = {"DEVELOPMENT_MODE": "true", "SUGGEST_DEADLINE_MS": "60000"}
    with running_stack(tmp_path_factory.mktemp("abuse") / "stack", environment) as stack:
        stack.service.start()
        stack.wait_until_ready()
        yield stack


def send(port: int, data: bytes, patience_s: float = PATIENCE_S) -> list[bytes]:
    """The statuses of all answers until the server closes or waits for more."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(patience_s)
            while part := connection.recv(65_536):
                received += part
        except (TimeoutError, ConnectionError):
            pass
    return STATUS.findall(received)


def is_served(port: int) -> bool:
    request = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    return send(port, request, patience_s=5) == [b"200"]


def processes(stack: Stack) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in stack.service.workers]


def descriptors(stack: Stack) -> int:
    return sum(process.num_fds() for process in processes(stack))


def test_ten_thousand_requests_that_are_none_cause_no_error_no_crash_and_no_leak(stack):
    chance = random.Random(7)
    requests = [(kind, kind(chance)) for n in range(REQUESTS) for kind in (KINDS[n % len(KINDS)],)]
    warm_up = requests[: REQUESTS // 10]
    before: dict[str, int] = {}
    statuses: Counter[bytes] = Counter()
    failed: set[tuple[str, bytes]] = set()

    def try_all(some) -> None:
        with ThreadPoolExecutor(CONNECTIONS_AT_ONCE) as pool:
            answers = pool.map(lambda request: send(stack.port, request[1]), some)
            for (kind, data), seen in zip(some, answers, strict=True):
                statuses.update(seen)
                failed.update((kind.__name__, data[:120]) for status in seen if status >= b"500")

    try_all(warm_up)
    pids = sorted(stack.service.workers)
    memory = sum(process.memory_info().rss for process in processes(stack))
    before["descriptors"] = descriptors(stack)
    try_all(requests[len(warm_up) :])

    assert not failed
    assert statuses[b"400"] > REQUESTS / 4, statuses
    assert sorted(stack.service.workers) == pids
    assert is_served(stack.port)
    wait_until(lambda: descriptors(stack) <= before["descriptors"] + 5, 20, "connections are left open")
    grown = sum(process.memory_info().rss for process in processes(stack)) - memory
    assert grown < 30_000_000, f"{grown / 1e6:.0f} MB more"
    log = (stack.folder / "service.log").read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3_000]


def test_while_slow_clients_hold_connections_others_are_served(stack):
    chance = random.Random(7)
    with ExitStack() as held:
        slow = [
            held.enter_context(socket.create_connection(("127.0.0.1", stack.port), 10))
            for _ in range(SLOW_CLIENTS)
        ]
        for connection in slow:
            connection.sendall(HEAD + chance.choice((b"", b"Content-Length: 1000\r\n\r\n{")))

        began_s = time.monotonic()
        assert [is_served(stack.port) for _ in range(50)] == [True] * 50
        assert time.monotonic() - began_s < 10
    assert is_served(stack.port)
