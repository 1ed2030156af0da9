"""A service under gunicorn, as it is deployed, and what it costs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil

from tests.benchmarks.keys import HEADERS
from tests.benchmarks.stores import ROOT

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0
MB = 1e6


class NotReady(Exception):
    """The service did not come up; the text ends with its log."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one worker, in MB. `pss` counts shared pages once among those that share them, `uss` not at all."""

    rss_mb: float
    pss_mb: float
    uss_mb: float


def gunicorn_command(application: str) -> Sequence[str]:
    """Another application under the service's own gunicorn settings."""
    return (
        sys.executable,
        "-m",
        "gunicorn",
        "--config",
        "python:app.api.gunicorn_conf",
        "--chdir",
        str(ROOT),
        application,
    )


SERVE = (sys.executable, "-m", "app", "serve")


class Service:
    """One gunicorn in a process group of its own, for as long as the `with` block runs."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.port = _free_port()
        self.folder = folder
        self.ready_s: float | None = None
        self._command = command
        self.environment = {**environment, "DATA_DIR": str(folder), "PORT": str(self.port)}
        self._log = folder / "service.log"
        self._started = 0.0
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Service":
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        self._started = time.monotonic()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Until `/health/ready` says so; `ready_s` is the time since the start.

        Raises:
            NotReady: the process ended, or it takes too long.
        """
        while not self._is_ready():
            is_late = time.monotonic() > self._started + READY_TIMEOUT_S
            if is_late or self._process.poll() is not None:
                raise NotReady(f"{self._command}: {self._log.read_text(errors='replace')[-3_000:]}")
            time.sleep(0.05)
        self.ready_s = time.monotonic() - self._started

    def stop(self) -> None:
        """Ends the master gracefully, then whatever is left of its group."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def cpu_s(self) -> float:
        """CPU seconds of master and workers since they started."""
        return tree_cpu_s(self._process.pid)

    def workers(self) -> list[psutil.Process]:
        """The forks of the master; what else it may have started has a command of its own."""
        master = psutil.Process(self._process.pid)
        return [child for child in master.children() if child.cmdline() == master.cmdline()]

    def memory(self) -> Memory:
        """Of the worker that holds most."""
        return max((_memory(worker) for worker in self.workers()), key=lambda memory: memory.pss_mb)

    def ask(self, raw_request: bytes) -> dict:
        """The JSON answer to one prepared request."""
        body = raw_request.partition(b"\r\n\r\n")[2]
        route = raw_request.split(b" ", 2)[1].decode()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", route, body, HEADERS)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def _is_ready(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def start_together(services: Sequence[Service], stack: ExitStack) -> None:
    """Faster than one after the other; what `ready_s` says then is of no use."""
    for service in services:
        service.start()
        stack.callback(service.stop)
    for service in services:
        service.wait_until_ready()


def tree_cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of a process, its descendants, and those of them that have ended."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def _memory(process: psutil.Process) -> Memory:
    full = process.memory_full_info()
    return Memory(full.rss / MB, full.pss / MB, full.uss / MB)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
