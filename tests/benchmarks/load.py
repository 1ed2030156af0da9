"""Load on a running service, from processes of their own: wrk, or our own generator where that cannot do it."""

import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from app.gameday.load import Outcome
from tests.benchmarks.stores import ROOT

# Enough to keep the workers busy. More would stand in line for longer than the service ranks in full.
CLOSED_CONNECTIONS = 8
# Enough that requests share commits.
MANY_CONNECTIONS = 128
OPEN_CONNECTIONS = 128
# How long the answers to the last requests are waited for.
LAST_ANSWERS_S = 2.0
_CLOSED_LOOP = Path(__file__).with_name("closed_loop.lua")
_OPEN_LOOP = Path(__file__).with_name("open_loop.lua")


@dataclass(frozen=True, slots=True)
class Throughput:
    requests: int
    errors: int
    rps: float


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def closed_loop(
    port: int, requests: Path, seconds: float, first: int = 0, connections: int = CLOSED_CONNECTIONS
) -> Throughput:
    """As many requests as the service answers.

    wrk counts in whole seconds; for less, and where it is not installed, our own generator does it, at
    a higher cost.
    """
    if not has_wrk() or seconds < 1.0:
        outcome = _generate(port, requests, seconds, first, connections)
        return Throughput(outcome.answers, _not_good(outcome), outcome.answers / outcome.seconds)
    command = _wrk(_CLOSED_LOOP, port, seconds, connections, requests, first)
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = json.loads(output.partition("RESULT ")[2])
    return Throughput(result["requests"], result["errors"], result["requests"] / result["seconds"])


def open_loop(port: int, requests: Path, rate: float, seconds: float, first: int = 0) -> Outcome:
    """`rate` requests per second, however long the answers take."""
    process = _open_loop(port, requests, rate, seconds, first)
    return _outcome(process.communicate()[0])


def start_open_loop(port: int, requests: Path, rate: float, seconds: float) -> subprocess.Popen:
    """The same in the background, until `finish_open_loop` or for `seconds`."""
    return _open_loop(port, requests, rate, seconds, first=0)


def finish_open_loop(process: subprocess.Popen) -> Outcome:
    process.send_signal(signal.SIGINT)
    return _outcome(process.communicate()[0])


def _open_loop(port: int, requests: Path, rate: float, seconds: float, first: int) -> subprocess.Popen:
    if has_wrk() and seconds >= 1.0:
        lasts_s = seconds + LAST_ANSWERS_S
        command = _wrk(_OPEN_LOOP, port, lasts_s, OPEN_CONNECTIONS, requests, first, rate, seconds)
    else:
        command = _command(port, requests, seconds, first, OPEN_CONNECTIONS, f"--rate={rate}")
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _outcome(output: str) -> Outcome:
    """What a generator printed: JSON, which wrk puts behind its own report and the word RESULT."""
    return Outcome(**json.loads(output.rpartition("RESULT ")[2]))


def _wrk(script: Path, port: int, seconds: float, connections: int, *arguments) -> list[str]:
    return [
        "wrk",
        "--threads=1",
        f"--connections={connections}",
        f"--duration={math.ceil(seconds)}s",
        "--timeout=10s",
        f"--script={script}",
        f"http://127.0.0.1:{port}",
        "--",
        *map(str, arguments),
    ]


def _generate(port: int, requests: Path, seconds: float, first: int, connections: int, *more: str) -> Outcome:
    command = _command(port, requests, seconds, first, connections, *more)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return _outcome(done.stdout)


def _command(
    port: int, requests: Path, seconds: float, first: int, connections: int, *more: str
) -> list[str]:
    return [
        sys.executable,
        "-m",
        "app.gameday.load",
        str(requests),
        f"--port={port}",
        f"--first={first}",
        f"--seconds={seconds}",
        f"--connections={connections}",
        *more,
    ]


def _not_good(outcome: Outcome) -> int:
    good = sum(count for status, count in outcome.statuses.items() if status.startswith("2"))
    return outcome.errors + outcome.answers - good
