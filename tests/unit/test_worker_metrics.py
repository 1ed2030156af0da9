"""The numbers of several workers in one answer, and what becomes of those who are gone."""

import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.api import worker_metrics
from app.api.exemplars import Exemplars, read_exemplars
from app.api.tallies import TallyCounter, TallyHistogram
from app.api.worker_metrics import WorkerMetrics, metrics_folder, retire

BUCKETS = (0.1, 1.0)


def work(amount: float) -> None:
    registry = CollectorRegistry()
    Counter("slates", "-", ["level"], registry=registry).labels(0).inc(amount)
    Histogram("seconds", "-", buckets=BUCKETS, registry=registry).observe(amount)
    Gauge("waiting", "-", multiprocess_mode="livesum", registry=registry).set(amount)
    Gauge("seen", "-", multiprocess_mode="livemostrecent", registry=registry).set(amount)
    exemplars = Exemplars(metrics_folder(), BUCKETS)
    exemplars.note(("POST",), amount, f"trace-{amount}")
    exemplars.flush()


def worker(amount: float) -> int:
    """The number of a process that has counted and is gone."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(amount,))
    process.start()
    process.join()
    return process.pid


def shown(**arguments) -> dict[str, float]:
    metrics = WorkerMetrics(metrics_folder(), **arguments).collect()
    return {
        f"{s.name}{{{','.join(s.labels.values())}}}": s.value for metric in metrics for s in metric.samples
    }


def test_what_those_who_are_gone_have_counted_stays_and_their_gauges_and_files_go():
    pids = [worker(0.5), worker(0.05), worker(0.5)]
    before = shown()
    assert (before["slates_total{0}"], before["waiting{}"]) == (1.05, 1.05)

    for pid in pids[:2]:
        retire(metrics_folder(), pid)

    after = shown()
    assert after == {**before, "waiting{}": 0.5}
    assert {name: after[name] for name in after if "seconds" in name} == {
        "seconds_bucket{0.1}": 1.0,
        "seconds_bucket{1.0}": 3.0,
        "seconds_bucket{+Inf}": 3.0,
        "seconds_count{}": 3.0,
        "seconds_sum{}": 1.05,
    }
    assert {path.stem.rpartition("_")[2] for path in metrics_folder().glob("*_*")} == {"gone", str(pids[2])}


def test_a_worker_that_has_counted_nothing_yet_leaves_nothing():
    retire(metrics_folder(), 12_345)

    assert shown() == {}


def test_while_somebody_reads_without_end_nobody_waits_for_it_and_all_is_counted_once(monkeypatch):
    monkeypatch.setattr(worker_metrics, "RETIRE_WAIT_S", 0.05)
    pid = worker(0.5)
    with (metrics_folder() / "files.lock").open("w") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)

        retire(metrics_folder(), pid)

    assert shown()["slates_total{0}"] == 0.5
    retire(metrics_folder(), pid)
    assert shown()["slates_total{0}"] == 0.5


def test_samples_can_be_asked_for_by_name():
    worker(0.5)

    assert set(shown(names=["waiting", "seconds_sum"])) == {"waiting{}", "seconds_sum{}"}


def test_of_a_bucket_the_newest_exemplar_of_all_workers_is_shown(tmp_path, monkeypatch):
    def noted(pid: int, seconds: float, trace: str, at_s: float) -> None:
        monkeypatch.setattr(os, "getpid", lambda: pid)
        exemplars = Exemplars(tmp_path, BUCKETS, lambda: at_s)
        exemplars.note(("POST",), seconds, trace)
        exemplars.flush()

    noted(1, 0.1, "old", 10.0)
    noted(2, 0.02, "new", 20.0)
    noted(3, 7.0, "slow", 5.0)
    (tmp_path / "exemplars_4.json").write_bytes(b"[")

    assert {
        bound: (exemplar.labels["trace_id"], exemplar.value, exemplar.timestamp)
        for (_, bound), exemplar in read_exemplars(tmp_path).items()
    } == {"0.1": ("new", 0.02, 20.0), "+Inf": ("slow", 7.0, 5.0)}


def test_exemplars_are_for_nobody_while_the_disk_is_full():
    exemplars = Exemplars(Path("/proc/nowhere"), BUCKETS)

    exemplars.note(("POST",), 0.1, "t")
    exemplars.flush()


@pytest.mark.parametrize("is_flushed", [True, False])
def test_tallies_are_seen_by_others_when_they_are_flushed_and_always_here(is_flushed):
    registry = CollectorRegistry()
    rows = TallyCounter("rows", "-", ["state"], registry=registry)
    seconds = TallyHistogram("seconds", "-", ["stage"], buckets=BUCKETS, registry=registry)
    for amount in (0.1, 0.2, 0.3, 3.0):
        rows.labels("fresh").inc(2)
        seconds.labels("score").observe(amount)

    if is_flushed:
        rows.flush()
        seconds.flush()

    seen = shown()
    assert seen["rows_total{fresh}"] == (8 if is_flushed else 0)
    assert seen["seconds_bucket{score,1.0}"] == (3 if is_flushed else 0)
    assert registry.get_sample_value("rows_total", {"state": "fresh"}) == 8
    assert registry.get_sample_value("seconds_sum", {"stage": "score"}) == pytest.approx(3.6)
    assert registry.get_sample_value("seconds_bucket", {"stage": "score", "le": "0.1"}) == 1
    assert shown()["seconds_count{score}"] == 4
