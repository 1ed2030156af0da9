"""Promotions of models while requests come in."""

import time
from dataclasses import dataclass

from app.gameday.load import DEADLINE_MS, Outcome
from tests.benchmarks.bench import FEW, OTHER, Bench
from tests.benchmarks.keys import write_requests
from tests.benchmarks.load import closed_loop, finish_open_loop, start_open_loop
from tests.benchmarks.measure import Contender, warm_up
from tests.benchmarks.traffic import uniform_suggestions

LOAD = 0.4
HEAD_START_S = 1.0
LONGEST_S = 900.0


@dataclass(frozen=True, slots=True)
class PromotionResult:
    """`bad_requests` failed or took longer than the deadline, from the moment they were due."""

    promotions: int
    rate: float
    deadline_ms: float
    bad_requests: int | None
    problem: str | None
    outcome: Outcome


def measure_promotions(bench: Bench) -> PromotionResult:
    plan = bench.plan
    with (
        bench.world("promotion", plan.size) as loaded,
        bench.service(loaded, "promotion") as service,
    ):
        requests = write_requests(
            bench.folder / "requests" / "promotion", "/suggest", uniform_suggestions(plan.size, plan.requests)
        )
        warm_up(Contender("promotion", service, loaded.stores, requests), plan.closed_s)
        rate = LOAD * closed_loop(service.port, requests, plan.closed_s).rps
        load = start_open_loop(service.port, requests, rate, LONGEST_S)
        time.sleep(HEAD_START_S)
        for number in range(plan.promotions):
            version = (OTHER, FEW)[number % 2]
            forced = ("--force", "--reason", "benchmark")
            loaded.stores.run("models", "promote", version, *forced, DATA_DIR=service.folder)
            time.sleep(plan.promotion_interval_s)
        return _judge(finish_open_loop(load), plan.promotions, rate)


def _judge(outcome: Outcome, promotions: int, rate: float) -> PromotionResult:
    good = outcome.statuses.get("200", 0)
    bad = outcome.errors + outcome.answers - good + outcome.over_deadline
    is_seen = set(outcome.models) == {FEW, OTHER}
    return PromotionResult(
        promotions=promotions,
        rate=rate,
        deadline_ms=DEADLINE_MS,
        bad_requests=bad if is_seen else None,
        problem=None if is_seen else f"answers by model: {outcome.models}",
        outcome=outcome,
    )
