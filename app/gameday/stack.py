"""The whole service in a folder of its own, on free ports: servers and processes that may be killed one by one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.error import URLError
from urllib.request import urlopen

from app.adapters.child_process import ending_with_parent
from app.adapters.embedded import EmbeddedServers
from app.adapters.free_ports import free_port
from app.domain.errors import PropositionsError
from app.settings import Settings, load_settings

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05
PROJECTOR_NICENESS = 10
_ADDRESSES = {"postgres": "database_url", "redis": "redis_url"}


class GamedayFailed(PropositionsError):
    """The stack did not come up, so that nothing can be said about it."""


class Part(Protocol):
    """Something of the stack that can fail."""

    name: str

    def start(self) -> None: ...
    def kill(self) -> None: ...


class Program:
    """A `propositions` command that runs until it is ended.

    `niceness`: what is not on the service's machine in production should not take the processor from it here.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        niceness: int = 0,
    ) -> None:
        self.name = name
        self._arguments = arguments
        self.environment = dict(environment)
        self._folder = folder
        self._niceness = niceness
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app", *self._arguments],
                cwd=self._folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ending_with_parent(self._niceness),
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def workers(self) -> Sequence[int]:
        """The pids of its forks; what else it may have started has a command of its own."""
        return [pid for pid in _children(self._process.pid) if _command(pid) == _command(self._process.pid)]

    def renew_workers(self) -> None:
        """Tells gunicorn to start new ones and to end the old ones as they finish; returns at once."""
        os.kill(self._process.pid, signal.SIGHUP)

    def kill(self) -> None:
        """With all its workers, in the middle of whatever they do."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        if self.is_running:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            self._process.wait()


class Server:
    """One of the embedded servers."""

    def __init__(self, name: str, servers: EmbeddedServers, folder: Path) -> None:
        self.name = name
        self.data = folder / name
        self._servers = servers

    def start(self) -> None:
        self._servers.up(die_with_parent=True)

    def kill(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)

    def freeze(self) -> None:
        """It keeps its connections and answers nobody, until `thaw`."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    @property
    def address(self) -> str:
        """With its password."""
        return self._servers.addresses()[_ADDRESSES[self.name]]

    @property
    def _pid(self) -> int | None:
        (pid,) = (status.pid for status in self._servers.status() if status.name == self.name)
        return pid

    def _signal_all(self, number: signal.Signals) -> None:
        """To the parent first, so that it makes no child that is missed."""
        pid = self._pid
        for process in (pid, *_children(pid)):
            with suppress(ProcessLookupError):
                os.kill(process, number)


class Stack:
    """PostgreSQL, Redis, the web service and projectors."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.port = free_port()
        self._environment = {
            **os.environ,
            # Nobody outside has a key of this stack.
            "DEVELOPMENT_MODE": "true",
            **environment,
            "DATA_DIR": str(folder / "data"),
            "PORT": str(self.port),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        embedded = folder / "data" / "embedded"
        self._servers = EmbeddedServers(embedded)
        self.postgres = Server("postgres", self._servers, embedded)
        self.redis = Server("redis", self._servers, embedded)
        self.service = Program("service", ["serve"], self._environment, folder)
        self.projectors: list[Program] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add_projector(self) -> Program:
        """One more projector beside those that run."""
        name = f"projector-{len(self.projectors) + 1}"
        projector = Program(name, ["project", "--follow"], self._environment, self.folder, PROJECTOR_NICENESS)
        projector.start()
        self.projectors.append(projector)
        return projector

    def run(self, *arguments: str) -> None:
        """Runs a `propositions` command to its end.

        Raises:
            GamedayFailed: it failed; the text ends with what it said.
        """
        done = subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise GamedayFailed(f"`propositions {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")

    def settings(self) -> Settings:
        """The settings of the stack's processes, for looking into its stores."""
        before = dict(os.environ)
        os.environ.update(self._environment)
        try:
            return load_settings()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def wait_until_ready(self) -> None:
        wait_until(
            self._is_ready, READY_TIMEOUT_S, f"the service is not ready: see {self.folder}/service.log"
        )

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/health/ready", timeout=5):
                return True
        except (URLError, OSError):
            return False

    def run_together(self, *commands: Sequence[str]) -> None:
        """Runs commands beside each other, to the end of all.

        Raises:
            GamedayFailed: one failed.
        """
        with ThreadPoolExecutor(len(commands)) as pool:
            list(pool.map(lambda command: self.run(*command), commands))

    def start(self, *beside: Sequence[str]) -> None:
        """Starts the servers and makes the tables; `beside` are commands that need no more than these."""
        self._servers.up(die_with_parent=True)
        self.run("migrate")
        self.run_together(("feast", "apply"), *beside)

    def stop(self) -> None:
        for program in (self.service, *self.projectors):
            program.stop()
        self._servers.down()


@contextmanager
def running_stack(folder: Path, environment: Mapping[str, str], *beside: Sequence[str]) -> Iterator[Stack]:
    """A stack as `Stack.start` leaves it; everything of it is gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stack = Stack(folder, environment)
    try:
        stack.start(*beside)
        yield stack
    finally:
        stack.stop()


def wait_until(condition: Callable[[], bool], timeout_s: float, problem: str) -> float:
    """Seconds until the condition held.

    Raises:
        GamedayFailed: it did not in time; says `problem`.
    """
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > timeout_s:
            raise GamedayFailed(problem)
        time.sleep(POLL_S)
    return time.monotonic() - began_s


def _children(pid: int) -> Sequence[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
