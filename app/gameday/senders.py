"""Clients that tell of events at a steady rate, and tell again until they are told that it was stored."""

import json
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException

CONNECTIONS = 32
TIMEOUT_S = 5.0
PAUSE_S = 0.2


@dataclass
class Sent:
    """What the clients saw. Latencies in seconds, from when an event was due until it was acknowledged at first try."""

    acknowledged: set[str] = field(default_factory=set)
    statuses: Counter = field(default_factory=Counter)
    places: Counter = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    unreachable: int = 0

    @property
    def server_errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500)

    @property
    def p99_ms(self) -> float | None:
        if not self.latencies_s:
            return None
        return sorted(self.latencies_s)[int(0.99 * (len(self.latencies_s) - 1))] * 1e3


class Senders:
    """`events` at `rate` per second from now on, whatever happens, until `stop`."""

    def __init__(self, port: int, events: Iterable[Mapping], rate: float) -> None:
        self._port = port
        self._events = iter(events)
        self._rate = rate
        self._due: queue.SimpleQueue = queue.SimpleQueue()
        self._is_stopped = threading.Event()
        self._is_abandoned = threading.Event()
        self._lock = threading.Lock()
        self._sent = Sent()
        self._threads = [threading.Thread(target=self._schedule)]
        self._threads += [threading.Thread(target=self._send_all) for _ in range(CONNECTIONS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every event that was due be acknowledged, and ends."""
        self._is_stopped.set()
        for thread in self._threads:
            thread.join()

    def abandon(self) -> None:
        """Ends without waiting for what is not acknowledged yet."""
        self._is_abandoned.set()
        self.stop()

    def take(self) -> Sent:
        """What was seen since the last time."""
        with self._lock:
            sent, self._sent = self._sent, Sent()
            return sent

    def acknowledged(self) -> set[str]:
        """Ids of events that were acknowledged since the last `take`."""
        with self._lock:
            return set(self._sent.acknowledged)

    def _schedule(self) -> None:
        began_s, number = time.monotonic(), 0
        while not self._is_stopped.wait(max(began_s + number / self._rate - time.monotonic(), 0.0)):
            self._due.put((began_s + number / self._rate, next(self._events)))
            number += 1
        for _ in range(CONNECTIONS):
            self._due.put(None)

    def _send_all(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        for due_s, event in iter(self._due.get, None):
            is_first = True
            while not (
                self._is_abandoned.is_set() or self._try(connection, event, due_s if is_first else None)
            ):
                is_first = False
                time.sleep(PAUSE_S)
        connection.close()

    def _try(self, connection: HTTPConnection, event: Mapping, due_s: float | None) -> bool:
        status, answer = post(connection, "/log_event", event)
        with self._lock:
            if status is None:
                self._sent.unreachable += 1
                return False
            self._sent.statuses[status] += 1
            if status != 202:
                return False
            self._sent.acknowledged.add(event["event_id"])
            for one in answer["events"]:
                self._sent.places[one["stored_in"]] += 1
            if due_s is not None:
                self._sent.latencies_s.append(time.monotonic() - due_s)
            return True


def post(connection: HTTPConnection, path: str, body: Mapping) -> tuple[int | None, dict | None]:
    """Status and answer; None for both if there was none."""
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content)
    except (OSError, HTTPException, ValueError):
        connection.close()
        return None, None


def made_up_events(seed: int, name: str, user_count: int, proposition_count: int) -> Iterator[dict]:
    """Events without end; the same for the same seed. `name` keeps their ids apart from others'."""
    chance, number = random.Random(f"{seed} {name}"), 0
    while True:
        number += 1
        yield {
            "event_id": f"{name}-{number}",
            "event_type": chance.choices(("impression", "click", "conversion", "dismiss"), (80, 15, 3, 2))[0],
            "user_id": f"u{chance.randrange(user_count)}",
            "proposition_id": f"p{chance.randrange(proposition_count)}",
            "context": {"page": chance.choice(("home", "cart", "search")), "device": "phone"},
        }
