"""The numbers of all workers of a machine, which lie in files that each worker maps: the sums, and what becomes of a worker's
when it is gone."""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.api.exemplars import forget_exemplars, read_exemplars

# Under this name in the place of a process's number lies what those who are gone had counted.
GONE = "gone"
# Who supervises the workers waits no longer for somebody who reads the files.
RETIRE_WAIT_S, _POLL_S = 1.0, 0.01


def metrics_folder() -> Path:
    """Where this process's numbers lie; prometheus_client takes it from the same place."""
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


class WorkerMetrics(Collector):
    """The sums over all workers, also over those that are gone, with exemplars at the buckets of one histogram.

    Args:
        exemplified: the name of that histogram, and those of its labels.
        names: of the samples to show only these.
    """

    def __init__(
        self,
        folder: Path,
        exemplified: tuple[str, Collection[str]] | None = None,
        names: Collection[str] | None = None,
    ) -> None:
        self._folder = folder
        self._exemplified, self._label_names = exemplified or (None, ())
        self._names = names

    def collect(self) -> Iterator[Metric]:
        with _lock(self._folder) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            metrics = MultiProcessCollector(None, str(self._folder)).collect()
        for metric in metrics:
            if metric.name == self._exemplified:
                self._add_exemplars(metric)
            if self._names is not None:
                metric.samples = [sample for sample in metric.samples if sample.name in self._names]
            if metric.samples:
                yield metric

    def _add_exemplars(self, metric: Metric) -> None:
        exemplars = read_exemplars(self._folder)
        for number, (name, labels, *_) in enumerate(metric.samples):
            if name.endswith("_bucket"):
                bucket = tuple(labels[label] for label in self._label_names), labels["le"]
                metric.samples[number] = metric.samples[number]._replace(exemplar=exemplars.get(bucket))


def retire(folder: Path, pid: int) -> None:
    """Takes a worker that is gone off the gauges, and adds what it had counted to the sum of all that are gone.

    So there are as many files as workers, however many came and went. A file that cannot be added now is left as it
    is, and counts all the same.
    """
    forget_exemplars(folder, pid)
    for path in folder.glob(f"gauge_*_{pid}.db"):
        path.unlink(missing_ok=True)
    with _lock(folder) as lock:
        if not _try_for(RETIRE_WAIT_S, lock):
            return
        for kind in ("counter", "histogram"):
            _add_to_gone(folder, kind, pid)


def _add_to_gone(folder: Path, kind: str, pid: int) -> None:
    path, gone = folder / f"{kind}_{pid}.db", folder / f"{kind}_{GONE}.db"
    if not path.exists():
        return
    sums: Counter[str] = Counter()
    for part in (gone, path):
        if part.exists():
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(part)):
                sums[key] += value
    draft = gone.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    written = MmapedDict(str(draft))
    for key, value in sums.items():
        written.write_value(key, value, 0.0)
    written.close()
    draft.replace(gone)
    path.unlink()


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """A descriptor to lock: nobody reads the files while one of them is added to another."""
    lock = os.open(folder / "files.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def _try_for(seconds: float, lock: int) -> bool:
    deadline_s = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
