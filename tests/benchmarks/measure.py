"""One measurement of a contender: throughput and what it costs; and how much of it counts."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.gameday.load import SEPARATOR, Outcome
from app.serving.rounds import CALM_S
from tests.benchmarks.load import CLOSED_CONNECTIONS, closed_loop
from tests.benchmarks.service import Service, tree_cpu_s
from tests.benchmarks.stores import Stores

PROBES = 20
LONGEST_WAIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A running service and the requests that it gets. `has_levels`: its answers name their level.

    `connections` are those of the closed loop.
    """

    name: str
    service: Service
    stores: Stores
    requests: Path
    has_levels: bool = True
    connections: int = CLOSED_CONNECTIONS


@dataclass(frozen=True, slots=True)
class Burst:
    """A closed loop. CPU in milliseconds per answered request, by process tree."""

    requests: int
    errors: int
    rps: float
    cpu_ms: Mapping[str, float]


def burst(contender: Contender, seconds: float, first: int = 0) -> Burst:
    before = _cpu_s(contender)
    throughput = closed_loop(
        contender.service.port, contender.requests, seconds, first, contender.connections
    )
    after = _cpu_s(contender)
    answered = max(throughput.requests, 1)
    return Burst(
        throughput.requests,
        throughput.errors,
        throughput.rps,
        {name: (after[name] - before[name]) * 1e3 / answered for name in after},
    )


def warm_up(contender: Contender, seconds: float) -> str | None:
    """Lets all workers answer for a while; says what is wrong with the answers, if anything.

    The first snapshot of a large catalog takes longer than the start of a worker, so it is waited for.
    """
    if contender.has_levels:
        _wait_for_level_0(contender)
    closed_loop(contender.service.port, contender.requests, seconds)
    if not contender.has_levels:
        return None
    time.sleep(CALM_S)  # after a long queue the rules rank for so long
    levels = _probe(contender)
    return None if set(levels) == {0} else f"answers by degradation level: {dict(levels)}"


def _wait_for_level_0(contender: Contender) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_S
    while set(_probe(contender)) != {0} and time.monotonic() < deadline:
        time.sleep(1.0)


def _probe(contender: Contender) -> Counter:
    """Answers to some requests by degradation level."""
    requests = contender.requests.read_bytes().split(SEPARATOR)[:PROBES]
    return Counter(contender.service.ask(request).get("degradation_level", "refused") for request in requests)


def problem_of(outcome: Outcome, has_levels: bool = True) -> str | None:
    """Why an open loop does not show a healthy service; None if it does."""
    if outcome.errors:
        return f"{outcome.errors} of {outcome.due} requests were not answered"
    if set(map(int, outcome.statuses)) - {200, 202}:
        return f"answers by status: {outcome.statuses}"
    if has_levels and outcome.levels != {"0": outcome.answers}:
        return f"answers by degradation level: {outcome.levels}"
    return None


def _cpu_s(contender: Contender) -> dict[str, float]:
    return {
        "service": contender.service.cpu_s(),
        "redis": tree_cpu_s(contender.stores.pid("redis")),
        "postgres": tree_cpu_s(contender.stores.pid("postgres")),
    }
