"""What the game day of serving is played on: a stack behind proxies, under load, watched all the time."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.adapters.model_store import ModelStore
from app.gameday.bad_models import BadModels, write_bad_models
from app.gameday.broker import Broker, running
from app.gameday.instrument import as_instrument
from app.gameday.load import write_requests
from app.gameday.proxy import Proxy, proxy_to
from app.gameday.series import Answer, SeriesReader
from app.gameday.serving_data import PROPOSITIONS, default_slate, eligible_ids, questions, write_imports
from app.gameday.stack import GamedayFailed, Server, Stack, running_stack

REQUESTS = 40_000
MEASUREMENTS = 3
CLOSED_CONNECTIONS, OPEN_CONNECTIONS, MANY_CONNECTIONS = 16, 128, 512
# What a client waits for an answer before it counts as none.
TIMEOUT_S = 2.0
LONGEST_S = 36_000.0
PROBE_S = 0.2
SLOW_S = 0.5

# Contexts that do not change with the time of day; nobody is turned away for asking often.
ENVIRONMENT = {
    "CONTEXT_FIELDS": "page,device",
    "DEFAULT_SLATE": default_slate(),
    "RATE_LIMIT_PER_KEY": "none",
    "RATE_LIMIT_PER_ADDRESS": "none",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """What `/health` (or another route) answered. `down`: the dependencies that are. No `status`: no answer in time."""

    at_s: float
    route: str
    status: int | None
    down: frozenset[str] = frozenset()


class Watch:
    """Asks `/health` five times a second, in a thread; beside it `routes` when they are set."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.routes: tuple[str, ...] = ()
        self.probes: list[Probe] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._is_stopped.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._is_stopped.wait(PROBE_S):
            for route in ("/health", *self.routes):
                self.probes.append(self._ask(route))

    def _ask(self, route: str) -> Probe:
        at_s = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", route)
            response = connection.getresponse()
            content = response.read()
            down = _down(content) if route == "/health" else frozenset()
            return Probe(at_s, route, response.status, down)
        except (OSError, HTTPException, ValueError):
            return Probe(at_s, route, None)
        finally:
            connection.close()


def _down(content: bytes) -> frozenset[str]:
    dependencies = json.loads(content).get("dependencies", {})
    return frozenset(name for name, one in dependencies.items() if one["status"] != "up")


@dataclass
class Load:
    """Load generators, each a process of its own, and all that they saw."""

    port: int
    folder: Path
    requests: Path
    eligible: Path
    _readers: list[SeriesReader] = field(default_factory=list)

    def capacity(self, seconds: float) -> float:
        """Slates at level 0 per second: the least of three measurements, since no machine is equally fast all the time.

        Each takes `seconds`, after a warm-up of half of that for all. Each goes on in the requests where the one before ended:
        what that asked for is in the cache.
        """
        first = self._closed_loop(seconds / 2, 0)["answers"]
        rates = []
        for _ in range(MEASUREMENTS):
            outcome = self._closed_loop(seconds, first % REQUESTS)
            first += outcome["answers"]
            rates.append(outcome["levels"].get("0", 0) / outcome["seconds"])
        return min(rates)

    def _closed_loop(self, seconds: float, first: int) -> dict[str, Any]:
        """Requests one after the other over a few connections.

        They are checked and noted as under the later load, since that takes its part of the same processors.
        """
        process = self._start(CLOSED_CONNECTIONS, seconds, f"--first={first}", *self._checks("capacity"))
        return json.loads(process.communicate()[0])

    def start(self, rate: float, connections: int = OPEN_CONNECTIONS) -> subprocess.Popen:
        """From now on, until `stop`."""
        series = f"series-{len(self._readers)}"
        self._readers.append(SeriesReader(self.folder / series))
        # Each begins elsewhere, lest one finds the slates of another.
        first = len(self._readers) * REQUESTS // 7
        return self._start(
            connections, LONGEST_S, f"--rate={rate}", f"--first={first}", *self._checks(series)
        )

    def _checks(self, series: str) -> Sequence[str]:
        return f"--series={self.folder / series}", f"--eligible={self.eligible}", f"--timeout-s={TIMEOUT_S}"

    def stop(self, process: subprocess.Popen) -> None:
        """Ends it when all that was due is answered, or given up."""
        process.terminate()
        process.communicate()

    def answers(self, since_s: float) -> list[Answer]:
        """To what was due since then, as far as there are any."""
        return [a for reader in self._readers for a in reader.answers() if a.due_s >= since_s]

    def _start(self, connections: int, seconds: float, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "app.gameday.load", str(self.requests), f"--port={self.port}"]
        return subprocess.Popen(
            [*command, f"--connections={connections}", f"--seconds={seconds}", *more],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=as_instrument(),
        )


@dataclass
class World:
    """`capacity_rps` and `rate` are known once `measure` was called."""

    seed: int
    stack: Stack
    redis: Proxy
    postgres: Proxy
    watch: Watch
    load: Load
    store: ModelStore
    model: str
    bad_models: BadModels
    is_corrupt_refused: bool
    capacity_rps: float = 0.0
    rate: float = 0.0
    _process: subprocess.Popen | None = None

    def measure(self, seconds: float, share: float) -> None:
        """Finds out what the service can do, after a while to warm up; the load will be a share of it."""
        self.capacity_rps = self.load.capacity(seconds)
        self.rate = share * self.capacity_rps

    def revive(self) -> list[str]:
        """Starts projectors again that have ended, as whoever runs them would; returns their names."""
        ended = [projector for projector in self.stack.projectors if not projector.is_running]
        for projector in ended:
            projector.start()
        return [projector.name for projector in ended]

    def start_load(self) -> None:
        self._process = self.load.start(self.rate)

    def stop_load(self) -> None:
        if self._process is not None:
            self.load.stop(self._process)
            self._process = None


@contextmanager
def serving_world(
    folder: Path, seed: int, broker: Broker | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[World]:
    """A service that is ready and knows everybody, with a model. Its events go to the broker, if there is one. `settings` are
    further ones, by their names in the environment.

    Its way to PostgreSQL and Redis leads through proxies; projectors and commands go past them.

    Raises:
        GamedayFailed: it did not come up.
    """
    imports = write_imports(folder / "imports", seed, datetime.now(UTC))
    environment, beside = {**ENVIRONMENT, **(settings or {})}, [("import", *map(str, imports))]
    if broker is not None:
        environment["KAFKA_BOOTSTRAP_SERVERS"] = broker.address
        environment["KAFKA_OPTIONS"] = json.dumps(dict(broker.client_options))
        beside.append(("kafka", "init"))
    with (
        nullcontext() if broker is None else running(broker),
        running_stack(folder / "stack", environment, *beside) as stack,
        _proxy(stack, stack.redis, "REDIS_URL", seed) as redis,
        _proxy(stack, stack.postgres, "DATABASE_URL", seed) as postgres,
    ):
        stack.run("project")
        stack.service.start()
        stack.add_projector()
        stack.run("train", "--seed", str(seed))
        known = stack.settings()
        store = ModelStore(known.model_dir, known.half_lives_s)
        (model,) = store.versions()
        bad_models = write_bad_models(store, model, PROPOSITIONS, SLOW_S)
        if not _is_promoted(stack, model):
            raise GamedayFailed(f"model {model} is not promoted")
        is_corrupt_refused = not _is_promoted(stack, bad_models.corrupt)
        watch = Watch(stack.port)
        load = _load(stack, seed)
        world = World(seed, stack, redis, postgres, watch, load, store, model, bad_models, is_corrupt_refused)
        stack.wait_until_ready()
        with watch.running():
            try:
                yield world
            finally:
                world.stop_load()
                stack.service.stop()  # while it has a way to its stores


@contextmanager
def _proxy(stack: Stack, server: Server, setting: str, seed: int) -> Iterator[Proxy]:
    """A proxy on the service's way to a server."""
    port = urlsplit(server.address).port
    with proxy_to(port, seed) as proxy:
        stack.service.environment[setting] = server.address.replace(f":{port}/", f":{proxy.port}/")
        yield proxy


def _is_promoted(stack: Stack, version: str) -> bool:
    try:
        stack.run("models", "promote", version, "--force", "--reason", "game day")
    except GamedayFailed:
        return False
    return True


def _load(stack: Stack, seed: int) -> Load:
    eligible = stack.folder / "eligible"
    eligible.write_text("\n".join(eligible_ids()))
    requests = write_requests(stack.folder / "requests", "/suggest", questions(seed, REQUESTS))
    return Load(stack.port, stack.folder, requests, eligible)
