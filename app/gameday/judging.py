"""Whether a promise was kept, judged by what became of every request around a fault."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from app.gameday.series import Answer, percentile
from app.gameday.slates import SHED

P99_MS = 100.0
RECOVERY_S = 5.0
# Answers are at level 0 again when so many of those that were due in each bucket of time are.
BUCKET_S = 0.25
FULL_SHARE = 0.95


class Probe(Protocol):
    """What a route of the service answered at a moment; `down` are the dependencies that were."""

    at_s: float
    route: str
    status: int | None
    down: frozenset[str]


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold. Of the requests from the fault on, `errors_share` may fail, and `shed_share` may be shed.

    `recovery_s` after the fault's end all answers are at level 0, and `/health` says that `dependency` is up. What
    `is_recovery_only_stated` is not held against anybody, if it comes at all. `model`: no other one may serve.
    """

    errors_share: float = 0.0
    shed_share: float = 0.001
    p99_ms: float = P99_MS
    recovery_s: float = RECOVERY_S
    is_recovery_only_stated: bool = False
    dependency: str | None = None
    model: str | None = None

    def with_patience(self, patience: float) -> "Promise":
        return replace(
            self,
            errors_share=patience * self.errors_share,
            shed_share=min(patience**4 * self.shed_share, 1.0),
            p99_ms=patience * self.p99_ms,
            recovery_s=patience * self.recovery_s,
        )

    def __str__(self) -> str:
        recovery = (
            "recovery as it comes" if self.is_recovery_only_stated else f"{self.recovery_s:g} s to level 0"
        )
        shed = "" if self.shed_share >= 1 else f", {self.shed_share:.1%} shed"
        errors = f"errors up to {self.errors_share:.1%}" if self.errors_share else "no error"
        model = "" if self.model is None else ", the old model"
        return f"{errors}{shed}, p99 under {self.p99_ms:g} ms, {recovery}{model}"


@dataclass
class Moments:
    """When what was: before the fault, from its begin until it is `over`, and after it until the phase ends.

    `ended_s` is from when on things may recover: earlier than `over_s` for what happens in an instant.
    """

    before_s: float
    began_s: float
    over_s: float = 0.0
    ended_s: float | None = None
    until_s: float = 0.0

    @property
    def recovering_from_s(self) -> float:
        return self.over_s if self.ended_s is None else self.ended_s


@dataclass
class Phase:
    """What was seen. Counts are of requests from the fault's begin to the end of the phase, `levels` and percentiles
    without a prefix of those during the fault. Percentiles are of slates. Shed requests, and those that were sent again
    because a closed connection had never been read, are counted apart.
    """

    name: str
    fault: str
    promise: str
    moments: Moments
    requests: int
    errors: int
    shed: int
    retries: int
    problems: dict[str, int]
    levels: dict[str, float]
    levels_before: dict[str, float]
    p50_ms: float | None
    p99_ms: float | None
    before_p50_ms: float | None
    before_p99_ms: float | None
    after_p50_ms: float | None
    after_p99_ms: float | None
    detected_s: float | None
    recovery_s: float | None
    figures: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.broken


def judge(
    name: str,
    fault: str,
    promise: Promise,
    moments: Moments,
    answers: Sequence[Answer],
    probes: Sequence[Probe],
) -> Phase:
    """The phase with every promise that it broke. `answers` to whatever was due since `before_s`."""
    before = _between(answers, moments.before_s, moments.began_s)
    during = _between(answers, moments.began_s, moments.over_s)
    after = _between(answers, moments.over_s, moments.until_s)
    counted = [*during, *after]
    problems = Counter(problem for answer in counted if (problem := problem_of(answer, promise)))
    phase = Phase(
        name=name,
        fault=fault,
        promise=str(promise),
        moments=moments,
        requests=len(counted),
        errors=problems.total(),
        shed=sum(answer.status in SHED for answer in counted),
        retries=sum(answer.sends - 1 for answer in counted),
        problems=dict(problems),
        levels=_levels(during),
        levels_before=_levels(before),
        p50_ms=_percentile(during, 50.0),
        p99_ms=_percentile(during, 99.0),
        before_p50_ms=_percentile(before, 50.0),
        before_p99_ms=_percentile(before, 99.0),
        after_p50_ms=_percentile(after, 50.0),
        after_p99_ms=_percentile(after, 99.0),
        detected_s=detected_after_s(moments.began_s, answers, probes),
        recovery_s=recovered_after_s(
            moments.recovering_from_s, moments.until_s, answers, probes, promise.dependency
        ),
    )
    phase.broken += _broken(phase, promise)
    return phase


def _broken(phase: Phase, promise: Promise) -> list[str]:
    broken = []
    if not phase.requests:
        broken.append("nothing was asked")
    if phase.errors > promise.errors_share * phase.requests:
        told = ", ".join(f"{count} {problem}" for problem, count in phase.problems.items())
        broken.append(f"{phase.errors} errors ({told})")
    if phase.shed > promise.shed_share * phase.requests:
        broken.append(f"{phase.shed / phase.requests:.1%} shed")
    if phase.p99_ms is None:
        broken.append("no slate during the fault")
    elif phase.p99_ms >= promise.p99_ms:
        broken.append(f"p99 {phase.p99_ms:.0f} ms")
    if phase.recovery_s is None:
        broken.append("never recovered")
    elif phase.recovery_s > promise.recovery_s and not promise.is_recovery_only_stated:
        broken.append(f"recovered after {phase.recovery_s:.1f} s")
    return broken


def problem_of(answer: Answer, promise: Promise = Promise()) -> str | None:
    """What makes it an error; None if it is a good slate or was shed as it should be."""
    if answer.problem is not None:
        return answer.problem if answer.status in (None, 200, *SHED) else f"status-{answer.status}"
    if promise.model is not None and answer.model not in (None, promise.model):
        return "other-model"
    return None


def is_full(answer: Answer) -> bool:
    return answer.status == 200 and answer.level == 0 and answer.problem is None


def detected_after_s(began_s: float, answers: Sequence[Answer], probes: Sequence[Probe]) -> float | None:
    """Seconds until the first sign of the fault: an answer at another level, or a dependency shown as down."""
    signs = [answer.done_s for answer in answers if answer.due_s >= began_s and not is_full(answer)]
    signs += [probe.at_s for probe in probes if probe.at_s >= began_s and probe.down]
    return min(signs) - began_s if signs else None


def recovered_after_s(
    ended_s: float,
    until_s: float,
    answers: Sequence[Answer],
    probes: Sequence[Probe] = (),
    dependency: str | None = None,
) -> float | None:
    """Seconds from the fault's end until all was well again and stayed so; None: it was not, by `until_s`."""
    bucket_count = max(int((until_s - ended_s) / BUCKET_S), 1)
    all_of, full_of = [0] * bucket_count, [0] * bucket_count
    for answer in answers:
        number = int((answer.due_s - ended_s) / BUCKET_S)
        if answer.due_s >= ended_s and number < bucket_count:
            all_of[number] += 1
            full_of[number] += is_full(answer)
    bad = [n for n in range(bucket_count) if not all_of[n] or full_of[n] < FULL_SHARE * all_of[n]]
    recovered_s = (bad[-1] + 1) * BUCKET_S if bad else 0.0
    if bad and bad[-1] == bucket_count - 1:
        return None
    if dependency is None:
        return recovered_s
    later = [probe for probe in probes if ended_s <= probe.at_s < until_s and probe.route == "/health"]
    if not later or _is_unwell(later[-1], dependency):
        return None
    back = [probe.at_s - ended_s for probe in later if _is_unwell(probe, dependency)]
    return max(recovered_s, *back) if back else recovered_s


def _is_unwell(probe: Probe, dependency: str) -> bool:
    return probe.status != 200 or dependency in probe.down


def _between(answers: Sequence[Answer], from_s: float, until_s: float) -> list[Answer]:
    return [answer for answer in answers if from_s <= answer.due_s < until_s]


def _levels(answers: Sequence[Answer]) -> dict[str, float]:
    """The share of the slates at each level."""
    counts = Counter(str(answer.level) for answer in answers if answer.level is not None)
    return {level: counts[level] / counts.total() for level in sorted(counts)}


def _percentile(answers: Sequence[Answer], percent: float) -> float | None:
    latencies = sorted(answer.latency_ms for answer in answers if answer.status == 200)
    return percentile(latencies, percent) if latencies else None
