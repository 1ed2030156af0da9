"""Promotions of models while requests come in."""

import time
from dataclasses import dataclass

from app.gameday.load import DEADLINE_MS, Outcome
from tests.benchmarks.bench import FEW, OTHER, Bench
from tests.benchmarks.keys import write_requests
from tests.benchmarks.load import closed_loop, finish_open_loop, open_loop, start_open_loop
from tests.benchmarks.measure import Contender, warm_up
from tests.benchmarks.traffic import uniform_suggestions

LOAD = 0.4
HEAD_START_S = 1.0
LONGEST_S = 900.0


@dataclass(frozen=True, slots=True)
class PromotionResult:
    """`bad_requests` failed or took longer than the deadline, from the moment they were due.

    `steady` is the same load for as long without promotions: what is bad there is not their doing.
    """

    promotions: int
    rate: float
    deadline_ms: float
    bad_requests: int | None
    problem: str | None
    outcome: Outcome
    steady: Outcome
    steady_bad_requests: int


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
        outcome = finish_open_loop(load)
        steady = open_loop(service.port, requests, rate, outcome.seconds)
        return _judge(outcome, steady, plan.promotions, rate)


def _judge(outcome: Outcome, steady: Outcome, promotions: int, rate: float) -> PromotionResult:
    is_seen = set(outcome.models) == {FEW, OTHER}
    return PromotionResult(
        promotions=promotions,
        rate=rate,
        deadline_ms=DEADLINE_MS,
        bad_requests=_bad(outcome) if is_seen else None,
        problem=None if is_seen else f"answers by model: {outcome.models}",
        outcome=outcome,
        steady=steady,
        steady_bad_requests=_bad(steady),
    )


def _bad(outcome: Outcome) -> int:
    return outcome.errors + outcome.answers - outcome.statuses.get("200", 0) + outcome.over_deadline
