"""A load generator of its own process: requests at fixed times (or one after the other), answers checked.

Latency counts from the moment at which a request was due, so a service that falls behind cannot hide the
wait of those that came later. Standard library only, raw sockets, one thread: it shares the machine with
what it measures and must cost little.
"""

import argparse
import json
import resource
import select
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from app.gameday.series import Answer, SeriesWriter, percentile
from app.gameday.slates import CACHED, LEVEL, MODEL, STRATEGY, Asked, first_group, is_whole

SEPARATOR = b"\0"
GRACE_S = 5.0
DEADLINE_MS = 80.0
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
# How often requests are looked through for those that take too long.
SWEEP_S = 0.05


@dataclass
class Outcome:
    """`late_sends` had to wait for a free connection; `over_deadline` took longer than 80 ms.

    `retries` were sent again because the server had closed the kept connection without reading them.
    """

    due: int = 0
    answers: int = 0
    errors: int = 0
    retries: int = 0
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
        self.is_idle = True
        # Whether it has brought an answer before, and whether what it carries is sent for the second time.
        self.is_kept = self.is_retry = False
        self.due = 0.0
        self.number = 0
        self._received = b""

    def send(self, request: bytes, number: int, due: float, is_retry: bool) -> None:
        self.due, self.number, self.is_retry, self.is_idle = due, number, is_retry, False
        self._received = b""
        self.socket.sendall(request)

    def was_closed(self) -> bool:
        """Whether the server has closed this idle connection, as far as is known here."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def receive(self) -> bytes | None:
        """The whole answer once it is there.

        Raises:
            Unread: the server closed this kept connection and never read the request, which may be sent again. That
                is so if it resets the connection before any answer: what it has read it ends in good order.
            ConnectionError: the server closed the connection.
        """
        try:
            part = self.socket.recv(65_536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None  # what was to be read was another connection's, whose number this one has now
        except ConnectionResetError as error:
            if self.is_kept and not self.is_idle and not self._received and not self.is_retry:
                raise Unread from error
            raise
        if not part:
            raise ConnectionAbortedError("closed by the server")
        self._received += part
        return self._received if is_whole(self._received) else None


class Unread(ConnectionError):
    """The request may be sent again."""


class Generator:
    """`timeout_s`: what takes longer is given up and counts as an error. `series`: told of every request."""

    def __init__(
        self,
        port: int,
        requests: list[bytes],
        first: int,
        connection_count: int,
        timeout_s: float | None = None,
        asked: Asked | None = None,
        series: SeriesWriter | None = None,
    ) -> None:
        self._port = port
        self._requests = requests
        self._next = first
        self._timeout_s = timeout_s
        self._asked = asked
        self._series = series
        self._swept_s = 0.0
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        # Connections that could not be made: the service does not listen.
        self._missing = connection_count
        # The longest idle connection goes first: all of them, and so all workers, take part.
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._latencies_ms: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._levels: Counter[str] = Counter()
        self._models: Counter[str] = Counter()
        self._outcome = Outcome()
        self._is_stopped = False
        self._connect_missing()

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
            pause_s = begin + sent / rate - time.perf_counter() if sent < total else SWEEP_S
            self._take_answers(max(pause_s, 0.0))
            self._sweep(now)
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
            self._sweep(now)
        return self._finish(begin, self._outcome.answers + self._outcome.errors)

    def stop(self) -> None:
        """Sends no more; the answers that are due are still waited for."""
        self._is_stopped = True

    def close(self) -> None:
        """Ends all connections."""
        for connection in self._connections.values():
            connection.socket.close()
        self._epoll.close()

    def _connect_missing(self) -> None:
        while self._missing:
            try:
                connection = Connection(self._port)
            except OSError:
                return
            self._missing -= 1
            self._connections[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
            self._idle.append(connection)

    def _start(self, due: float) -> None:
        if self._missing and not self._idle:
            self._connect_missing()
        if self._idle:
            self._send(due)
        elif not self._connections:
            self._fail(due, "refused")
        else:
            self._outcome.late_sends += 1
            self._waiting.append(due)

    def _send(self, due: float) -> None:
        number = self._next % len(self._requests)
        self._next += 1
        self._send_number(number, due)

    def _send_number(self, number: int, due: float, is_retry: bool = False) -> None:
        """On the longest idle connection that is open still."""
        for _ in range(len(self._connections) + 1):
            if not self._idle:
                break
            connection = self._idle.popleft()
            if not connection.was_closed():
                with suppress(OSError):
                    connection.send(self._requests[number], number, due, is_retry)
                    return
            self._drop(connection)
        self._fail(due, "closed")

    def _take_answers(self, pause_s: float) -> None:
        # epoll itself counts in milliseconds; select on it in microseconds.
        select.select([self._epoll.fileno()], [], [], pause_s)
        for descriptor, _ in self._epoll.poll(0):
            connection = self._connections.get(descriptor)
            if connection is not None:
                self._take_from(connection)

    def _take_from(self, connection: Connection) -> None:
        try:
            answer = connection.receive()
        except Unread:
            self._drop(connection)
            self._outcome.retries += 1
            self._send_number(connection.number, connection.due, is_retry=True)
            return
        except OSError:
            if connection.is_idle:
                self._idle.remove(connection)
            else:
                self._fail(connection.due, "cut")
            self._drop(connection)
            return
        if answer is not None and not connection.is_idle:
            self._note(answer, connection)
            connection.is_idle = connection.is_kept = True
            self._idle.append(connection)
            if self._waiting:
                self._send(self._waiting.popleft())

    def _note(self, answer: bytes, connection: Connection) -> None:
        latency_ms = (time.perf_counter() - connection.due) * 1e3
        outcome = self._outcome
        outcome.answers += 1
        self._latencies_ms.append(latency_ms)
        status = answer[9:12].decode()
        level, model = first_group(LEVEL, answer), first_group(MODEL, answer)
        self._statuses[status] += 1
        outcome.cached += CACHED in answer
        if level is not None:
            self._levels[level] += 1
        if model is not None:
            self._models[model] += 1
        if self._series is not None:
            problem = None
            if self._asked is not None:
                problem = self._asked.problem(connection.number, int(status), answer)
            strategy = first_group(STRATEGY, answer)
            number = None if level is None else int(level)
            sends = 1 + connection.is_retry
            self._series.add(
                Answer(connection.due, latency_ms, int(status), number, strategy, model, problem, sends)
            )

    def _fail(self, due: float, problem: str) -> None:
        self._outcome.errors += 1
        if self._series is not None:
            latency_ms = (time.perf_counter() - due) * 1e3
            self._series.add(Answer(due, latency_ms, None, None, None, None, problem))

    def _drop(self, connection: Connection) -> None:
        self._epoll.unregister(connection.socket.fileno())
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        self._missing += 1
        self._connect_missing()

    def _sweep(self, now: float) -> None:
        """Gives up what takes too long, and lets the series be read as far as it got."""
        if now < self._swept_s + SWEEP_S:
            return
        self._swept_s = now
        if self._timeout_s is not None:
            self._give_up(now - self._timeout_s)
        if self._series is not None:
            self._series.flush()

    def _give_up(self, due_before: float) -> None:
        for connection in list(self._connections.values()):
            if not connection.is_idle and connection.due < due_before:
                self._fail(connection.due, "timeout")
                self._drop(connection)
        while self._waiting and self._waiting[0] < due_before:
            self._next += 1
            self._fail(self._waiting.popleft(), "timeout")
        while self._waiting and self._idle:
            self._send(self._waiting.popleft())

    def _finish(self, begin: float, due: int) -> Outcome:
        if self._series is not None:
            busy = [c.due for c in self._connections.values() if not c.is_idle]
            for waited in (*busy, *self._waiting):
                self._series.add(Answer(waited, None, None, None, None, None, "unanswered"))
            self._series.flush()
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


def write_requests(path: Path, route: str, bodies: Iterable[Mapping], token: str | None = None) -> Path:
    """Raw HTTP that the generator sends, one request after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SEPARATOR.join(_http(route, json.dumps(body).encode(), token) for body in bodies))
    return path


def _http(route: str, body: bytes, token: str | None) -> bytes:
    authorization = b"" if token is None else b"Authorization: Bearer %s\r\n" % token.encode()
    return (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (route.encode(), authorization, len(body), body)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, help="Requests per second; left out: a closed loop.")
    parser.add_argument("--timeout-s", type=float, help="Give up what takes longer.")
    parser.add_argument("--series", type=Path, help="File for a line per request, see app.gameday.series.")
    parser.add_argument(
        "--eligible", type=Path, help="Ids that slates may hold, one a line; slates must be full, too."
    )
    options = parser.parse_args()
    requests = options.requests.read_bytes().split(SEPARATOR)
    asked = None
    if options.eligible is not None:
        asked = Asked(requests, options.eligible.read_bytes().split())
    with SeriesWriter.to(options.series) as series:
        generator = Generator(
            options.port,
            requests,
            options.first,
            options.connections,
            options.timeout_s,
            asked,
            series,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: generator.stop())
        if options.rate is None:
            outcome = generator.run_closed(options.seconds)
        else:
            outcome = generator.run_open(options.rate, options.seconds)
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
