"""`python -m tests.benchmarks.log_anomalies`: what `propositions logs anomalies` notices in made-up logs, and what it makes up.

The logs are of a shop: three times as many requests by day as by night, latencies that wander, errors of which one kind
comes in bursts by nature. From the second day on a fault begins every few hours. An anomaly that is of no fault's kind,
or at no fault's time, is a false alarm.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.logwatch.lines import LogLine
from app.logwatch.watch import Anomaly, Kind, Plan, Watch

MINUTE_S, DAY_MINUTES = 60.0, 1_440
BEGIN_S = 1_767_225_600.0  # 2026-01-01
REQUESTS_PER_MINUTE = 120.0
FAULT_EVERY_MINUTES = 180
# What belongs to a fault though it comes after it: the windows with its rest, and traffic that catches up.
AFTERMATH_S = 3 * MINUTE_S
# Share of lines that are warnings of a kind, per minute; the last kind comes eight at a time.
WARNINGS = {"app.a: the store is slow": 0.3, "app.b: a retry was needed": 0.02, "app.c: decisions wait": 0.01}
BURSTY, BURST = "app.c: decisions wait", 8


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    kind: Kind
    minutes: int
    latency: float = 1.0
    tail_share: float = 0.0
    traffic: float = 1.0
    signature: str | None = None
    per_minute: float = 0.0


FAULTS = (
    Fault("errors that are known, 4 a minute instead of 0.3", Kind.BURST, 10, signature="app.a: the store is slow", per_minute=4),
    Fault("errors that are rare, 2 a minute instead of 0.02", Kind.BURST, 10, signature="app.b: a retry was needed", per_minute=2),
    Fault("1 % of requests fail", Kind.NEW, 10, signature="app.access: POST /suggest 503", per_minute=1.2),
    Fault("an error never seen, one in two minutes", Kind.NEW, 10, signature="app.z: %d is broken", per_minute=0.5),
    Fault("all latencies 1.5-fold", Kind.SLOW, 15, latency=1.5),
    Fault("all latencies 3-fold", Kind.SLOW, 15, latency=3.0),
    Fault("5 % of requests take 10 times as long", Kind.SLOW, 15, tail_share=0.05),
    Fault("half of the traffic", Kind.MISSING, 15, traffic=0.5),
    Fault("no traffic at all", Kind.MISSING, 5, traffic=0.0),
)  # fmt: skip


@dataclass(slots=True)
class Verdict:
    """`delays_s` from the begin of a fault of this name to the first anomaly of its kind; None: not noticed."""

    delays_s: dict[str, list[float | None]]
    false_alarms: list[Anomaly]
    days: float


def judge(days: int, seed: int, plan: Plan, faults: Sequence[Fault] = FAULTS) -> Verdict:
    chance = np.random.default_rng(seed)
    schedule = [
        (DAY_MINUTES + number * FAULT_EVERY_MINUTES + int(chance.integers(30)), faults[number % len(faults)])
        for number in range((days - 1) * DAY_MINUTES // FAULT_EVERY_MINUTES if faults else 0)
    ]
    watch = Watch(plan)
    found = [anomaly for line in lines(days, chance, schedule) for anomaly in watch.add(line)]
    found += watch.advance(BEGIN_S + days * DAY_MINUTES * MINUTE_S)
    delays: dict[str, list[float | None]] = {fault.name: [] for fault in faults}
    claimed: set[int] = set()
    for minute, fault in schedule:
        begin_s = BEGIN_S + minute * MINUTE_S
        end_s = begin_s + fault.minutes * MINUTE_S + AFTERMATH_S
        during = [anomaly for anomaly in found if begin_s <= anomaly.detected_s <= end_s]
        claimed |= {id(anomaly) for anomaly in during}
        right = [anomaly.detected_s for anomaly in during if _is_of(fault, anomaly)]
        delays[fault.name].append(min(right) - begin_s if right else None)
    return Verdict(delays, [anomaly for anomaly in found if id(anomaly) not in claimed], float(days))


def _is_of(fault: Fault, anomaly: Anomaly) -> bool:
    # What was new once is a burst the next time.
    kinds = {Kind.NEW, Kind.BURST} if fault.signature else {fault.kind}
    return anomaly.kind in kinds


def lines(days: int, chance: np.random.Generator, schedule: Sequence[tuple[int, Fault]]) -> Iterator[LogLine]:
    """In the order of time."""
    wander = 0.0
    for minute in range(days * DAY_MINUTES):
        fault = next((f for begin, f in schedule if begin <= minute < begin + f.minutes), None)
        wander = 0.9 * wander + chance.normal(0.0, 0.02)
        yield from sorted(_minute(minute, wander, chance, fault), key=lambda line: line.at_s)


def _minute(
    minute: int, wander: float, chance: np.random.Generator, fault: Fault | None
) -> Iterator[LogLine]:
    begin_s = BEGIN_S + minute * MINUTE_S
    by_day = 1.0 + 0.5 * np.sin(2 * np.pi * minute / DAY_MINUTES)
    rate = REQUESTS_PER_MINUTE * by_day * chance.gamma(50.0, 1 / 50.0) * (fault.traffic if fault else 1.0)
    count = chance.poisson(rate)
    durations_ms = 12.0 * np.exp(wander + chance.normal(0.0, 0.4, count)) * (fault.latency if fault else 1.0)
    if fault and fault.tail_share:
        durations_ms[chance.random(count) < fault.tail_share] *= 10
    for duration_ms in durations_ms:
        yield LogLine(begin_s + MINUTE_S * chance.random(), 1.0, None, "/suggest", float(duration_ms))
    for name, per_minute in WARNINGS.items():
        for _ in range(chance.poisson(per_minute) * (BURST if name == BURSTY else 1)):
            yield LogLine(begin_s + MINUTE_S * chance.random(), 1.0, name)
    if fault and fault.signature:
        name = fault.signature % minute if "%d" in fault.signature else fault.signature
        for _ in range(chance.poisson(fault.per_minute)):
            yield LogLine(begin_s + MINUTE_S * chance.random(), 1.0, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    delays: dict[str, list[float | None]] = {}
    alarms: list[Anomaly] = []
    began_s = time.perf_counter()
    for seed in range(options.seeds):
        verdict = judge(options.days, seed, Plan())
        alarms += verdict.false_alarms
        for name, some in verdict.delays_s.items():
            delays.setdefault(name, []).extend(some)
    for name, some in delays.items():
        noticed = sorted(delay for delay in some if delay is not None)
        times = f"after {noticed[len(noticed) // 2]:.0f} s, at most {noticed[-1]:.0f} s" if noticed else ""
        print(f"{name}: {len(noticed)} of {len(some)} noticed {times}")
    days = options.days * options.seeds
    print(f"{len(alarms)} false alarms in {days} days; {time.perf_counter() - began_s:.0f} s")
    for anomaly in alarms:
        print("   ", anomaly.kind, anomaly.subject, f"{anomaly.seen:.1f} instead of {anomaly.expected:.1f}")


if __name__ == "__main__":
    main()
