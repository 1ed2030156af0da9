"""The rows of the benchmark: all contenders on one world, turn by turn."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

import orjson

from app.gameday.load import SEPARATOR, Outcome
from app.serving.rounds import CALM_S
from tests.benchmarks import bare_flask
from tests.benchmarks.bench import MANY, Bench, Loaded, Plan
from tests.benchmarks.keys import write_requests
from tests.benchmarks.load import MANY_CONNECTIONS, closed_loop, open_loop
from tests.benchmarks.measure import Burst, Contender, burst, problem_of, warm_up
from tests.benchmarks.service import Memory, gunicorn_command, start_together
from tests.benchmarks.traffic import (
    BATCH_EVENTS,
    click_batches,
    clicks,
    uniform_suggestions,
    zipf_suggestions,
)

CACHE_TTL_S = 30
LOADS = (0.5, 0.8)

FLASK, SERVING, SERVING_MANY = "flask", "serving", "serving_300_trees"
ZIPF, CACHED, FEAST = "zipf_without_cache", "zipf_with_cache", "feast_way"
FLASK_MANY, EVENTS, BATCHES = "flask_many_connections", "log_event", "log_event_batches"
TITLES = {
    FLASK: "bare Flask, an answer of the same size",
    SERVING: "service, 100 trees",
    SERVING_MANY: "service, 300 trees",
    ZIPF: "service, 100 trees, Zipf mix, no response cache",
    CACHED: "service, 100 trees, Zipf mix, response cache",
    FEAST: "the straightforward Feast way, 100 trees",
    FLASK_MANY: f"bare Flask, {MANY_CONNECTIONS} connections",
    EVENTS: f"/log_event, one event each, {MANY_CONNECTIONS} connections",
    BATCHES: f"/log_event, batches of {BATCH_EVENTS}",
}


@dataclass
class Row:
    """What one contender did. `open_loops` by share of its own closed-loop throughput just before."""

    title: str
    rps: float = 0.0
    bursts: list[Burst] = field(default_factory=list)
    cpu_ms: dict[str, float] = field(default_factory=dict)
    memory: Memory | None = None
    ready_s: float | None = None
    open_loops: dict[str, Outcome] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def measure_rows(bench: Bench) -> dict[str, Row]:
    with ExitStack() as stack:
        loaded = stack.enter_context(bench.world("rows", bench.plan.size))
        contenders = _start(bench, loaded, stack)
        rows = {contender.name: Row(TITLES[contender.name]) for contender in contenders}
        for contender in contenders:
            note(rows[contender.name], warm_up(contender, bench.plan.closed_s))
        of_cache = [contender for contender in contenders if contender.name in (ZIPF, CACHED)]
        others = [contender for contender in contenders if contender not in of_cache]
        for contender, number in _turns(others, bench.plan.closed_repeats):
            first = number * bench.plan.requests // bench.plan.closed_repeats
            rows[contender.name].bursts.append(burst(contender, bench.plan.closed_s, first))
        _measure_cache(bench, of_cache, rows)
        for contender in contenders:
            summarize(rows[contender.name], contender)
        for share in LOADS:
            for contender in contenders:
                _measure_open(rows[contender.name], contender, share, bench.plan)
        return rows


def _start(bench: Bench, loaded: Loaded, stack: ExitStack) -> list[Contender]:
    """All contenders, each with workers of its own; idle ones cost next to nothing."""
    size, count, folder = loaded.size, bench.plan.requests, bench.folder / "requests"
    uniform = write_requests(folder / "uniform", "/suggest", uniform_suggestions(size, count))
    zipf = write_requests(folder / "zipf", "/suggest", zipf_suggestions(size, 2 * count))
    events = write_requests(folder / "events", "/log_event", clicks(size, count))
    batches = write_requests(folder / "batches", "/log_event", click_batches(size, count))

    serving = stack.enter_context(bench.service(loaded, SERVING))
    answer = serving.ask(uniform.read_bytes().split(SEPARATOR)[0])
    answer_file = folder / "answer.json"
    answer_file.write_bytes(orjson.dumps(answer))
    serving_many = bench.service(loaded, SERVING_MANY, model=MANY)
    cached = bench.service(loaded, CACHED, SUGGEST_CACHE_TTL_S=CACHE_TTL_S)
    feast = bench.service(loaded, FEAST, gunicorn_command("tests.benchmarks.feast_way:web()"))
    flask = bench.service(
        loaded,
        FLASK,
        gunicorn_command("tests.benchmarks.bare_flask:web()"),
        **{bare_flask.ANSWER_FILE: answer_file},
    )
    start_together([serving_many, cached, feast, flask], stack)
    stores = loaded.stores
    return [
        # The answer that bare Flask repeats may be one of the rules.
        Contender(FLASK, flask, stores, uniform, has_levels=False),
        Contender(SERVING, serving, stores, uniform),
        Contender(SERVING_MANY, serving_many, stores, uniform),
        Contender(ZIPF, serving, stores, zipf),
        Contender(CACHED, cached, stores, zipf),
        Contender(FEAST, feast, stores, uniform, has_levels=False),
        Contender(FLASK_MANY, flask, stores, uniform, has_levels=False, connections=MANY_CONNECTIONS),
        Contender(EVENTS, serving, stores, events, has_levels=False, connections=MANY_CONNECTIONS),
        Contender(BATCHES, serving, stores, batches, has_levels=False),
    ]


def _measure_cache(bench: Bench, contenders: Sequence[Contender], rows: dict[str, Row]) -> None:
    """With and without the cache, turn by turn, each time after as long as it takes to fill.

    What is kept grows old while the other has its turn, which it does not in a service that goes on all the time. Each goes
    on in the mix where it was, so that nobody's requests come again before their time.
    """
    plan = bench.plan
    positions = {contender.name: 0 for contender in contenders}
    for contender, _ in _turns(contenders, plan.cache_repeats):
        if contender.name == CACHED:
            first, port = positions[CACHED], contender.service.port
            positions[CACHED] += closed_loop(port, contender.requests, plan.cache_fill_s, first).requests
        measured = burst(contender, plan.closed_s, positions[contender.name])
        positions[contender.name] += measured.requests
        rows[contender.name].bursts.append(measured)


def _turns(contenders: Sequence[Contender], repeats: int) -> Iterator[tuple[Contender, int]]:
    """Each contender once per turn, so that what else happens on the machine hits all of them."""
    for number in range(repeats):
        for contender in contenders:
            yield contender, number


def summarize(row: Row, contender: Contender) -> None:
    row.rps = median(burst.rps for burst in row.bursts)
    row.cpu_ms = {name: median(burst.cpu_ms[name] for burst in row.bursts) for name in row.bursts[0].cpu_ms}
    row.memory = contender.service.memory()
    row.ready_s = contender.service.ready_s
    failed = sum(burst.errors for burst in row.bursts)
    note(row, f"{failed} requests of the closed loops failed" if failed else None)


def _measure_open(row: Row, contender: Contender, share: float, plan: Plan) -> None:
    """At a share of what it can do now: some minutes ago the machine may have been a third faster."""
    possible = burst(contender, 2 * plan.closed_s, plan.requests // 2).rps
    time.sleep(CALM_S)
    outcome = open_loop(contender.service.port, contender.requests, share * possible, plan.open_s)
    row.open_loops[f"{share:.0%}"] = outcome
    problem = problem_of(outcome, contender.has_levels)
    note(row, problem and f"at {share:.0%} load: {problem}")


def note(row: Row, problem: str | None) -> None:
    if problem is not None:
        row.problems.append(problem)
