"""A real Prometheus and Alertmanager on this machine, for tests and game days.

The programs are those on the PATH, else those that `make` unpacked from Debian's packages beside the virtual
environment's own.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from app.adapters.child_process import ending_with_parent
from app.adapters.free_ports import free_port
from app.domain.errors import ConfigurationError, StoreUnavailable

UNPACKED = Path(sys.prefix) / "monitoring/usr/bin"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
POLL_S = 0.05


def find_program(name: str) -> Path:
    """prometheus, promtool, alertmanager or amtool.

    Raises:
        ConfigurationError: it is not to be had.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), str(UNPACKED)))
    # Debian has the longer name for Alertmanager.
    found = shutil.which(name, path=path) or shutil.which(f"prometheus-{name}", path=path)
    if found is None:
        raise ConfigurationError(
            f"`{name}` is neither on the PATH nor in {UNPACKED}: install it, or run `make monitoring` where Debian's "
            "packages are to be had"
        )
    return Path(found)


class Monitor:
    """One of the servers, in a process of its own that ends with this one."""

    def __init__(self, name: str, port: int, process: subprocess.Popen) -> None:
        self.name, self.port, self._process = name, port, process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def ask(self, path: str, **parameters: Any) -> Any:
        """The JSON at this path; parameters that are lists are repeated.

        Raises:
            HTTPError: the server refused, for example a wrong query.
        """
        query = f"?{urlencode(parameters, doseq=True)}" if parameters else ""
        with urlopen(f"{self.url}{path}{query}", timeout=ANSWER_TIMEOUT_S) as answer:
            return json.loads(answer.read())

    def reload(self) -> None:
        """Reads its files again."""
        with urlopen(Request(f"{self.url}/-/reload", method="POST"), timeout=ANSWER_TIMEOUT_S):
            pass

    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=ANSWER_TIMEOUT_S):
                return True
        except (URLError, OSError):
            return False

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Prometheus(Monitor):
    def query(self, expression: str, at_s: float | None = None) -> list[dict]:
        """The series at a moment (None: now), as Prometheus gives them: `metric` and `value`."""
        moment = {} if at_s is None else {"time": at_s}
        answer = self.ask("/api/v1/query", query=expression, **moment)["data"]
        # A scalar is a series without labels.
        return [{"metric": {}, "value": answer["result"]}] if _is_scalar(answer) else answer["result"]

    def query_range(self, expression: str, from_s: float, to_s: float, step_s: float) -> list[dict]:
        """The series between two moments, as Prometheus gives them: `metric` and `values`."""
        window = {"start": from_s, "end": to_s, "step": step_s}
        return self.ask("/api/v1/query_range", query=expression, **window)["data"]["result"]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self.ask("/api/v1/alerts")["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


class Alertmanager(Monitor):
    def alerts(self) -> list[dict]:
        """Those it knows of, with the receivers that it routes them to."""
        return self.ask("/api/v2/alerts")


@contextmanager
def prometheus(folder: Path, configuration: Mapping[str, Any], *more: str) -> Iterator[Prometheus]:
    """One that keeps its data in the folder, until the end of the block. `more` are further options.

    Its first scrapes come about five seconds after it is ready. Paths in the configuration are absolute, or relative
    to the folder.

    Raises:
        ConfigurationError: the program is not to be had.
        StoreUnavailable: it did not start; the text ends with its log.
    """
    options = (
        f"--storage.tsdb.path={folder.absolute() / 'data'}",
        "--enable-feature=exemplar-storage",
        "--web.enable-lifecycle",
        "--log.level=warn",
        *more,
    )
    yield from _running(Prometheus, "prometheus", folder, configuration, options)


@contextmanager
def alertmanager(folder: Path, configuration: Mapping[str, Any]) -> Iterator[Alertmanager]:
    """One that keeps its data in the folder, until the end of the block; it looks for no others.

    Raises:
        ConfigurationError: the program is not to be had.
        StoreUnavailable: it did not start; the text ends with its log.
    """
    options = (
        f"--storage.path={folder.absolute() / 'data'}",
        "--cluster.listen-address=",
        "--log.level=warn",
    )
    yield from _running(Alertmanager, "alertmanager", folder, configuration, options)


def _running(
    kind: type[Monitor], name: str, folder: Path, configuration: Mapping[str, Any], options: Sequence[str]
) -> Iterator[Any]:
    program, port = find_program(name), free_port()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config_path, log_path = folder / f"{name}.yml", folder / f"{name}.log"
    config_path.write_text(json.dumps(configuration, indent=2))  # which is YAML, too
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [program, f"--config.file={config_path}", f"--web.listen-address=127.0.0.1:{port}", *options],
            cwd=program.parents[
                2
            ],  # the root of the package, where an unpacked Alertmanager looks for its templates
            stdout=log,
            stderr=log,
            preexec_fn=ending_with_parent(),
        )
    monitor = kind(name, port, process)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not monitor.is_ready():
            if not monitor.is_running() or time.monotonic() > deadline_s:
                raise StoreUnavailable(f"{name} did not start:\n{log_path.read_text()[-2_000:]}")
            time.sleep(POLL_S)
        yield monitor
    finally:
        monitor.stop()


def _is_scalar(answer: Mapping) -> bool:
    return answer["resultType"] in ("scalar", "string")
