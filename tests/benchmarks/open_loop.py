"""A load generator of its own process: requests at fixed times (or one after the other), answers checked.

Latency counts from the moment at which a request was due, so a service that falls behind cannot hide the
wait of those that came later. Standard library only, raw sockets, one thread: it shares the machine with
what it measures and must cost little.
"""

import argparse
import json
import math
import re
import resource
import select
import signal
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LEVEL = re.compile(rb'"degradation_level":(\d)')
MODEL = re.compile(rb'"model_version":"([^"]*)"')
CACHED = b'"cached":true'
GRACE_S = 5.0
DEADLINE_MS = 80.0
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass
class Outcome:
    """`late_sends` had to wait for a free connection; `over_deadline` took longer than 80 ms."""

    due: int = 0
    answers: int = 0
    errors: int = 0
    seconds: float = 0.0
    over_deadline: int = 0
    late_sends: int = 0
    cpu_s: float = 0.0
    latency_ms: dict[str, float] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    cached: int = 0


class Connection:
    """One request at a time over a kept connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._received = b""
        self._size = 0

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self._received, self._size = b"", 0
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """The whole answer once it is there.

        Raises:
            ConnectionError: the server closed the connection.
        """
        part = self.socket.recv(65_536)
        if not part:
            raise ConnectionResetError("closed by the server")
        self._received += part
        if not self._size:
            head, end, _ = self._received.partition(b"\r\n\r\n")
            if not end:
                return None
            length = CONTENT_LENGTH.search(head)
            self._size = len(head) + len(end) + (int(length[1]) if length else 0)
        return self._received if len(self._received) >= self._size else None


class Generator:
    def __init__(self, port: int, requests: list[bytes], first: int, connection_count: int) -> None:
        self._port = port
        self._requests = requests
        self._next = first
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        # The longest idle connection goes first: all of them, and so all workers, take part.
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._latencies_ms: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._levels: Counter[str] = Counter()
        self._models: Counter[str] = Counter()
        self._outcome = Outcome()
        self._is_stopped = False
        for _ in range(connection_count):
            self._connect()

    def run_open(self, rate: float, seconds: float) -> Outcome:
        """One request every 1 / `rate` seconds, whatever happened to those before, or until `stop`."""
        begin = time.perf_counter()
        total, sent = int(rate * seconds), 0
        end = begin + seconds + GRACE_S
        while self._outcome.answers + self._outcome.errors < total:
            now = time.perf_counter()
            if now > end:
                break
            if self._is_stopped:
                total, end, self._is_stopped = sent, now + GRACE_S, False
            while sent < total and begin + sent / rate <= now:
                self._start(begin + sent / rate)
                sent += 1
            pause_s = begin + sent / rate - time.perf_counter() if sent < total else 0.1
            self._take_answers(max(pause_s, 0.0))
        return self._finish(begin, total)

    def run_closed(self, seconds: float) -> Outcome:
        """The next request on each connection as soon as the one before is answered.

        Lasts longer than `seconds` if no answer came until then.
        """
        begin = time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds or (
            not self._outcome.answers and now < begin + seconds + GRACE_S
        ):
            while self._idle:
                self._start(now)
            self._take_answers(0.1)
        return self._finish(begin, self._outcome.answers + self._outcome.errors)

    def stop(self) -> None:
        """Sends no more; the answers that are due are still waited for."""
        self._is_stopped = True

    def _connect(self) -> None:
        connection = Connection(self._port)
        self._connections[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        self._idle.append(connection)

    def _start(self, due: float) -> None:
        if self._idle:
            self._send(self._idle.popleft(), due)
        else:
            self._outcome.late_sends += 1
            self._waiting.append(due)

    def _send(self, connection: Connection, due: float) -> None:
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        try:
            connection.send(request, due)
        except OSError:
            self._replace(connection)

    def _take_answers(self, pause_s: float) -> None:
        # epoll itself counts in milliseconds; select on it in microseconds.
        select.select([self._epoll.fileno()], [], [], pause_s)
        for descriptor, _ in self._epoll.poll(0):
            connection = self._connections[descriptor]
            try:
                answer = connection.receive()
            except OSError:
                self._replace(connection)
                continue
            if answer is not None:
                self._note(answer, (time.perf_counter() - connection.due) * 1e3)
                self._idle.append(connection)
                if self._waiting:
                    self._send(self._idle.popleft(), self._waiting.popleft())

    def _note(self, answer: bytes, latency_ms: float) -> None:
        outcome = self._outcome
        outcome.answers += 1
        self._latencies_ms.append(latency_ms)
        self._statuses[answer[9:12].decode()] += 1
        outcome.cached += CACHED in answer
        if level := LEVEL.search(answer):
            self._levels[level[1].decode()] += 1
        if model := MODEL.search(answer):
            self._models[model[1].decode()] += 1

    def _replace(self, connection: Connection) -> None:
        self._outcome.errors += 1
        self._epoll.unregister(connection.socket.fileno())
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        self._connect()

    def _finish(self, begin: float, due: int) -> Outcome:
        outcome, usage = self._outcome, resource.getrusage(resource.RUSAGE_SELF)
        outcome.seconds = time.perf_counter() - begin
        outcome.due = due
        outcome.errors += due - outcome.answers - outcome.errors
        outcome.cpu_s = usage.ru_utime + usage.ru_stime
        outcome.over_deadline = sum(latency_ms > DEADLINE_MS for latency_ms in self._latencies_ms)
        self._latencies_ms.sort()
        outcome.latency_ms = {f"p{p:g}": percentile(self._latencies_ms, p) for p in PERCENTILES}
        outcome.statuses, outcome.levels = dict(self._statuses), dict(self._levels)
        outcome.models = dict(self._models)
        return outcome


def percentile(ascending: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed; NaN of none.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50.0)
    2.0
    """
    if not ascending:
        return float("nan")
    return ascending[max(math.ceil(len(ascending) * percent / 100) - 1, 0)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, help="Requests per second; left out: a closed loop.")
    options = parser.parse_args()
    with open(options.requests, "rb") as file:
        requests = file.read().split(b"\0")
    generator = Generator(options.port, requests, options.first, options.connections)
    signal.signal(signal.SIGINT, lambda *_: generator.stop())
    if options.rate is None:
        outcome = generator.run_closed(options.seconds)
    else:
        outcome = generator.run_open(options.rate, options.seconds)
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
