"""Metrics that cost a request a small part of what a shared one costs.

What the workers of a machine share lies in mapped files, and to add to one number there takes more than a microsecond. A
tally is kept in the memory of the process and brought to the file by `flush`, which is to be called about once a
second. What a worker has not brought there when it is killed is lost.
"""

from bisect import bisect_left
from typing import Any

from prometheus_client import Counter, Histogram


class _Tally:
    """What both have in common: `_add` brings the tally of a child to the file."""

    def flush(self) -> None:
        """Of all label sets."""
        for child in list(self._metrics.values()) if self._is_parent() else [self]:
            child._add()

    def _child_samples(self) -> Any:
        self._add()
        return super()._child_samples()


class TallyCounter(_Tally, Counter):
    def _metric_init(self) -> None:
        super()._metric_init()
        self._tally = 0.0

    def inc(self, amount: float = 1, exemplar: None = None) -> None:
        self._tally += amount

    def _add(self) -> None:
        tally, self._tally = self._tally, 0.0
        if tally:
            super().inc(tally)


class TallyHistogram(_Tally, Histogram):
    def _metric_init(self) -> None:
        super()._metric_init()
        self._clear()

    def observe(self, amount: float, exemplar: None = None) -> None:
        self._counts[bisect_left(self._upper_bounds, amount)] += 1
        self._total += amount

    def _add(self) -> None:
        counts, total = self._counts, self._total
        self._clear()
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        if total:
            self._sum.inc(total)

    def _clear(self) -> None:
        self._counts = [0] * len(self._upper_bounds)
        self._total = 0.0
