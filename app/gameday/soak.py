"""The soak: hours in minutes. Nothing may grow while slates are asked for and things go wrong now and then."""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import theilslopes

from app.gameday.judging import Moments
from app.gameday.series import Answer, percentile
from app.gameday.serving import LOAD_SHARE, trials
from app.gameday.serving_world import World, serving_world

# What the service survives without being restarted; a worker that is killed begins anew, and so would what is measured.
FAULTS = ("redis killed", "redis frozen", "redis slow", "redis garbage", "postgres killed", "postgres silent")
FAULT_S = 3.0
# Of the whole time, what is not judged: caches fill, allocators and pools reach their size.
WARM_UP_SHARE = 0.2
# From the end of a fault on, answers are as slow as ever.
SETTLE_S = 6.0
# Growth over the time that is judged that counts as growth, as a share of the median and in the figure's own unit,
# whichever is more; and how sure one has to be of it.
LEAST_GROWTH_SHARE, CONFIDENCE = 0.05, 0.95
LEAST_GROWTH = {"memory_mb": 5.0, "descriptors": 8.0, "connections": 8.0, "p50_ms": 3.0}
# A percentile of a few requests says little.
WINDOW_S = 10.0
MB = 1e6


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """Seconds of everything: how long it lasts, how long no fault comes between two, and between two measurements."""

    seed: int
    lasts_s: float
    between_faults_s: float
    sample_s: float = 2.0


FULL = SoakPlan(seed=7, lasts_s=600.0, between_faults_s=45.0)
SHORT = SoakPlan(seed=7, lasts_s=90.0, between_faults_s=20.0, sample_s=1.0)


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure changed over the time that is judged, by the median of all slopes (Theil and Sen), with its interval."""

    name: str
    median: float
    growth: float
    low: float
    high: float

    @property
    def is_flat(self) -> bool:
        return self.low <= max(LEAST_GROWTH_SHARE * self.median, LEAST_GROWTH[self.name])


@dataclass
class SoakReport:
    seed: int
    capacity_rps: float
    rate: float
    seconds: float
    requests: int = 0
    errors: int = 0
    faults: list[str] = field(default_factory=list)
    trends: list[Trend] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        broken = [f"{trend.name} grew by {trend.growth:.3g}" for trend in self.trends if not trend.is_flat]
        return broken + ([f"{self.errors} errors"] if self.errors else [])

    @property
    def passed(self) -> bool:
        return self.requests > 0 and bool(self.trends) and not self.broken

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "broken": self.broken,
            "seed": self.seed,
            "capacity_rps": self.capacity_rps,
            "rate": self.rate,
            "seconds": self.seconds,
            "requests": self.requests,
            "errors": self.errors,
            "faults": self.faults,
            "trends": {
                trend.name: {
                    "median": trend.median,
                    "growth": trend.growth,
                    "low": trend.low,
                    "high": trend.high,
                    "is_flat": trend.is_flat,
                }
                for trend in self.trends
            },
        }


def run_soak(plan: SoakPlan, folder: Path, say: Callable[[str], None]) -> SoakReport:
    """Raises GamedayFailed: the stack did not come up."""
    say("A stack is made, with a catalog, events and a model.")
    chance = random.Random(plan.seed)
    with serving_world(folder, plan.seed) as world:
        world.measure(4.0, LOAD_SHARE)
        say(f"It gives {world.capacity_rps:.0f} slates/s; {world.rate:.0f} are asked for.")
        report = SoakReport(plan.seed, world.capacity_rps, world.rate, plan.lasts_s)
        world.start_load()
        began_s = time.perf_counter()
        samples: dict[str, list[tuple[float, float]]] = {}
        disturbed: list[tuple[float, float]] = []
        by_name = {trial.name: trial for trial in trials(world.model)}
        while time.perf_counter() < began_s + plan.lasts_s:
            _watch(world, plan, samples, chance.uniform(0.5, 1.5) * plan.between_faults_s)
            fault = by_name[chance.choice(FAULTS)]
            say(f"{time.perf_counter() - began_s:.0f} s: {fault.fault}")
            report.faults.append(fault.name)
            from_s = time.perf_counter()
            with fault.block(world, Moments(from_s, from_s)):
                time.sleep(FAULT_S)
            disturbed.append((from_s, time.perf_counter() + SETTLE_S))
            time.sleep(SETTLE_S)
        world.stop_load()
        answers = world.load.answers(began_s)
    report.requests = len(answers)
    report.errors = sum(answer.problem is not None for answer in answers)
    samples["p50_ms"] = list(typical_latencies(answers, disturbed))
    judged_from_s = began_s + WARM_UP_SHARE * plan.lasts_s
    report.trends = [trend(name, points, judged_from_s) for name, points in samples.items()]
    return report


def trend(name: str, points: Sequence[tuple[float, float]], from_s: float) -> Trend:
    """Of the points (seconds, value) since `from_s`."""
    times, values = zip(*[point for point in points if point[0] >= from_s], strict=True)
    slope, _, low, high = theilslopes(values, times, CONFIDENCE)
    lasts_s = times[-1] - times[0]
    return Trend(
        name,
        percentile(sorted(values), 50.0),
        float(slope) * lasts_s,
        float(low) * lasts_s,
        float(high) * lasts_s,
    )


def typical_latencies(
    answers: Sequence[Answer], disturbed: Sequence[tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    """The median of each window of time in which nothing was wrong, as (begin in seconds, milliseconds)."""
    windows: dict[int, list[float]] = {}
    for answer in answers:
        if answer.latency_ms is not None and not any(a <= answer.due_s < b for a, b in disturbed):
            windows.setdefault(int(answer.due_s / WINDOW_S), []).append(answer.latency_ms)
    for number, latencies in sorted(windows.items()):
        yield number * WINDOW_S, percentile(sorted(latencies), 50.0)


def _watch(
    world: World, plan: SoakPlan, samples: dict[str, list[tuple[float, float]]], seconds: float
) -> None:
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        for name, value in _figures(world.stack.service.workers).items():
            samples.setdefault(name, []).append((time.perf_counter(), value))
        time.sleep(plan.sample_s)


def _figures(pids: Sequence[int]) -> Mapping[str, float]:
    """Of all workers together."""
    opened = [target for pid in pids for target in _opened(pid)]
    return {
        "memory_mb": sum(map(_resident_bytes, pids)) / MB,
        "descriptors": float(len(opened)),
        "connections": float(sum(target.startswith("socket:") for target in opened)),
    }


def _resident_bytes(pid: int) -> int:
    """Without what is mapped from files: snapshots are shared, and not the worker's own."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1_024


def _opened(pid: int) -> Iterator[str]:
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):  # closed in the meantime
            yield os.readlink(entry.path)


def soak_table_rows(report: SoakReport) -> Iterator[Sequence[str]]:
    yield ("figure", "median", "growth", "95 % interval", "flat")
    for one in report.trends:
        yield (
            one.name,
            f"{one.median:.4g}",
            f"{one.growth:+.3g}",
            f"{one.low:+.3g} to {one.high:+.3g}",
            "yes" if one.is_flat else "NO",
        )
    yield (f"{report.requests:,} requests", "", "", f"{len(report.faults)} faults", f"{report.errors} errors")
