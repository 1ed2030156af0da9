"""Log lines in the Elastic Common Schema, as far as anomalies show in them, from files and streams."""

import gzip
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from app.domain.errors import ConfigurationError

REQUESTS = "app.access"
STDIN = Path("-")
FOLLOW_S = 0.2
ALARMING_LEVELS = frozenset({"warning", "error", "critical"})
# From this level on a slate was ranked without a model; below, people are only new, or not seen for long.
DEGRADED = 2
MAX_TEMPLATE = 200
# What holds a digit, or stands in quotes, is the part of a message that differs from time to time (He et al., "Drain",
# ICWS 2017, do the same before they look for templates).
_VARIABLE = re.compile(r"\"[^\"]*\"|'[^']*'|[\w.:/+-]*\d[\w.:/+-]*")


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a line tells.

    `at_s` is its own time in seconds since the epoch, `count` how many requests it stands for. `signature` is None where
    there is nothing to worry about; what is `of_callers` (4xx) is one only when there is a lot of it. A line about a
    request has the route that took it; `duration_ms` if that went well: how fast something is refused is another matter.
    """

    at_s: float
    count: float
    signature: str | None
    route: str | None = None
    duration_ms: float | None = None
    of_callers: bool = False


def parse(raw: bytes) -> LogLine | None:
    """None for what is no line of this service. What stands before the first brace, as shippers put there, is left out."""
    try:
        line = orjson.loads(raw[raw.index(b"{") :])
        at_s = datetime.fromisoformat(line["@timestamp"]).timestamp()
        logger, level, message = line["log"]["logger"], line["log.level"], line["message"]
        if logger != REQUESTS:
            error = line["error"].get("type") if "error" in line else None
            return LogLine(at_s, 1.0, signature(logger, message, error) if level in ALARMING_LEVELS else None)
        status = line["http"]["response"]["status_code"]
        return LogLine(
            at_s,
            float(line["transaction"]["representative_count"]),
            _signature_of_request(line),
            line["http"].get("route"),
            line["event"]["duration"] / 1e6 if status < 400 else None,
            400 <= status < 500,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def signature(logger: str, message: str, error: str | None) -> str:
    """What messages of one cause have in common.

    >>> signature("app.cli", 'no reply from "10.0.0.7" within 2.5 s', "TimeoutError")
    'app.cli: no reply from * within * s (TimeoutError)'
    """
    first_line = message.partition("\n")[0]
    template = _VARIABLE.sub("*", first_line)[:MAX_TEMPLATE]
    return f"{logger}: {template} ({error})" if error else f"{logger}: {template}"


def _signature_of_request(line: dict[str, Any]) -> str | None:
    if line["http"]["response"]["status_code"] >= 400:
        return f"{REQUESTS}: {line['message']}"
    level = line.get("propositions", {}).get("slate", {}).get("level", 0)
    return f"{REQUESTS}: {line['message']} at level {level}" if level >= DEGRADED else None


class Reader:
    """Lines of several files in the order of time, each of which is in order by itself."""

    def __init__(self) -> None:
        self.unreadable = 0

    def read(self, paths: Sequence[Path]) -> Iterator[LogLine]:
        """`-` is stdin, and what ends with .gz is unpacked.

        Raises:
            ConfigurationError: a file cannot be read.
        """
        return merge(*(self._parsed(_raw_lines(path)) for path in paths), key=lambda line: line.at_s)

    def follow(self, path: Path) -> Iterator[LogLine]:
        """Also what comes later, without an end. A file that is replaced or emptied is read from its new beginning."""
        return self._parsed(_raw_lines(path) if path == STDIN else _growing(path))

    def _parsed(self, raw_lines: Iterable[bytes]) -> Iterator[LogLine]:
        for raw in raw_lines:
            line = parse(raw)
            if line is None:
                self.unreadable += 1
            else:
                yield line


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            yield from file
    except (OSError, EOFError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _open(path: Path) -> Any:
    if path == STDIN:
        return nullcontext(sys.stdin.buffer)
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _growing(path: Path) -> Iterator[bytes]:
    while True:
        try:
            with path.open("rb") as file:
                yield from _growing_file(path, file)
        except FileNotFoundError as error:
            raise ConfigurationError(f"{path} does not exist") from error


def _growing_file(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The whole lines of an open file until another one is in its place."""
    begun = b""
    while True:
        part = file.readline()
        begun += part
        if begun.endswith(b"\n"):
            yield begun
            begun = b""
        elif not part:
            if _is_replaced(path, file):
                return
            time.sleep(FOLLOW_S)


def _is_replaced(path: Path, file: BinaryIO) -> bool:
    try:
        there, here = path.stat(), os.fstat(file.fileno())
    except FileNotFoundError:
        return False  # the next one is not there yet
    return there.st_ino != here.st_ino or there.st_size < file.tell()
