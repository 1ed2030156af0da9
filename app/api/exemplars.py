"""Exemplars: of each bucket of a histogram the newest request that has a trace to look at.

prometheus_client keeps none where several processes count, so each worker writes its own to a small file beside its
numbers, and whoever answers for all of them reads the files.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import orjson
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

TRACE_LABEL = "trace_id"
_PREFIX = "exemplars_"

# The values of a histogram's labels, and the bound of one of its buckets.
BucketName = tuple[tuple[str, ...], str]


class Exemplars:
    """Of this process, for a histogram with these buckets. Bounded by the number of its series."""

    def __init__(
        self, folder: Path, buckets_s: Sequence[float], now_s: Callable[[], float] = time.time
    ) -> None:
        self._path = folder / f"{_PREFIX}{os.getpid()}.json"
        self._buckets_s = (*buckets_s, float("inf"))
        self._now_s = now_s
        self._newest: dict[BucketName, tuple[str, float, float]] = {}
        self._is_changed = False

    def note(self, labels: tuple[str, ...], seconds: float, trace_id: str) -> None:
        bound = floatToGoString(self._buckets_s[bisect_left(self._buckets_s, seconds)])
        self._newest[labels, bound] = trace_id, seconds, self._now_s()
        self._is_changed = True

    def flush(self) -> None:
        """Lets the other processes see what is new. While the disk is full they do not."""
        if not self._is_changed:
            return
        self._is_changed = False
        draft = self._path.with_suffix(".draft")
        with suppress(OSError):
            draft.write_bytes(orjson.dumps([(*name, *of_name) for name, of_name in self._newest.items()]))
            draft.replace(self._path)


def read_exemplars(folder: Path) -> dict[BucketName, Exemplar]:
    """The newest ones of all processes that have their files there."""
    newest: dict[BucketName, Exemplar] = {}
    for path in folder.glob(f"{_PREFIX}*.json"):
        with suppress(OSError, ValueError):
            for labels, bound, trace_id, seconds, at_s in orjson.loads(path.read_bytes()):
                known = newest.get((tuple(labels), bound))
                if known is None or known.timestamp < at_s:
                    newest[tuple(labels), bound] = Exemplar({TRACE_LABEL: trace_id}, seconds, at_s)
    return newest


def forget_exemplars(folder: Path, pid: int) -> None:
    (folder / f"{_PREFIX}{pid}.json").unlink(missing_ok=True)
