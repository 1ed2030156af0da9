"""Looks again and again how full everything of a web worker is, so that no request has to."""

import time
from collections.abc import Callable, Mapping, Sized
from typing import Any, Protocol

from app.adapters.machine import machine_use
from app.adapters.snapshots import SnapshotFolder
from app.api.admission import InProgress
from app.api.saturation import SaturationMetrics
from app.bootstrap.ranking import Ranking
from app.settings import Settings

SATURATION_INTERVAL_S = 2.0


class Pool(Protocol):
    """Connections to one place."""

    @property
    def connections_in_use(self) -> int: ...
    @property
    def most_connections(self) -> int: ...


class Saturation:
    """`run_aside` runs what may wait for the disk."""

    def __init__(
        self,
        settings: Settings,
        metrics: SaturationMetrics,
        ranking: Ranking,
        decisions: Sized,
        in_progress: InProgress,
        pools: Mapping[str, Pool],
        run_aside: Callable[[Callable], Any],
    ) -> None:
        self._data_dir = settings.data_dir
        self._folder = SnapshotFolder(settings.snapshot_dir)
        self._metrics = metrics
        self._ranking = ranking
        self._decisions, self._in_progress, self._pools = decisions, in_progress, pools
        self._run_aside = run_aside
        self._shown_version: str | None = None
        self._started_s = time.time()
        metrics.started_at_s.set(self._started_s)
        metrics.decision_queue_capacity.set(settings.decision_queue_size)
        metrics.spool_capacity_bytes.set(settings.spool_max_bytes)

    def look(self) -> None:
        metrics = self._metrics
        metrics.requests_in_progress.set(self._in_progress.count)
        metrics.rankings_waiting.set(self._ranking.turns.waiting)
        metrics.event_loop_lag_s.set(self._ranking.rounds.take_longest_s())
        metrics.decision_queue_length.set(len(self._decisions))
        for name, pool in self._pools.items():
            metrics.connections_in_use.labels(name).set(pool.connections_in_use)
            metrics.connections_limit.labels(name).set(pool.most_connections)
        self._look_at_model()
        metrics.catalog_propositions.set(len(self._ranking.snapshot.current.catalog))
        metrics.snapshot_age_s.set(time.time() - self._snapshot_current_at_s())
        use = self._run_aside(lambda: machine_use(self._data_dir))
        metrics.resident_bytes.set(use.resident_bytes)
        metrics.open_descriptors.set(use.open_descriptors)
        metrics.descriptors_limit.set(use.descriptors_limit)
        metrics.memory_limit_bytes.set(use.memory_limit_bytes)
        metrics.disk_free_bytes.set(use.disk_free_bytes)
        metrics.disk_size_bytes.set(use.disk_size_bytes)
        metrics.workers.set(1)  # last: who is counted has a part in all sums

    def _look_at_model(self) -> None:
        model = self._ranking.model.current
        if model is None or model.version == self._shown_version:
            return
        if self._shown_version is not None:
            self._metrics.model_active.labels(self._shown_version).set(0)
        self._metrics.model_active.labels(model.version).set(1)
        trained_at = self._ranking.models.trained_at(model.version)
        if trained_at is not None:
            self._metrics.model_trained_at_s.set(trained_at.timestamp())
        self._shown_version = model.version

    def _snapshot_current_at_s(self) -> float:
        """If it never was, then as of the start of this worker."""
        report = self._folder.last_report()
        return self._started_s if report is None or report.current_at_s is None else report.current_at_s
