"""How the cost of a request grows with candidates, catalog and users."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from tests.benchmarks.bench import Bench, Loaded
from tests.benchmarks.data import Size
from tests.benchmarks.keys import write_requests
from tests.benchmarks.measure import Burst, Contender, burst, warm_up
from tests.benchmarks.service import Memory, NotReady, Service, start_together
from tests.benchmarks.stores import LoadTimes
from tests.benchmarks.traffic import uniform_suggestions

CANDIDATES, CATALOG, USERS = "candidates", "catalog", "users"


@dataclass
class Point:
    """The cost at one size; `problem` says why it does not count."""

    size: int
    cpu_ms: float | None = None
    redis_cpu_ms: float | None = None
    rps: float | None = None
    memory: Memory | None = None
    ready_s: float | None = None
    load: LoadTimes | None = None
    problem: str | None = None
    bursts: list[Burst] = field(default_factory=list)


def measure_growth(bench: Bench) -> dict[str, list[Point]]:
    plan = bench.plan
    return {
        CANDIDATES: _by_candidates(bench),
        CATALOG: _by_world(bench, CATALOG, {n: Size(plan.catalog_users, n) for n in plan.catalog_sizes}),
        USERS: _by_world(bench, USERS, {n: Size(n, plan.size.propositions) for n in plan.user_counts}),
    }


def _by_candidates(bench: Bench) -> list[Point]:
    with ExitStack() as stack:
        loaded = stack.enter_context(bench.world(CANDIDATES, bench.plan.size))
        points = [Point(count) for count in bench.plan.candidate_counts]
        services = [
            bench.service(loaded, f"{CANDIDATES}-{point.size}", CANDIDATE_BUDGET=point.size)
            for point in points
        ]
        start_together(services, stack)
        return _compare(bench, points, [_contender(bench, loaded, service) for service in services])


def _by_world(bench: Bench, name: str, sizes: dict[int, Size]) -> list[Point]:
    """All worlds at once, so that the small and the large are measured side by side."""
    with ExitStack() as stack:
        points, contenders = [], []
        for number, size in sizes.items():
            loaded = stack.enter_context(bench.world(f"{name}-{number}", size))
            points.append(Point(number, load=loaded.times))
            contenders.append(_start(bench, loaded, points[-1], name, stack))
        return _compare(bench, points, contenders)


def _start(bench: Bench, loaded: Loaded, point: Point, name: str, stack: ExitStack) -> Contender | None:
    """None if the service does not come up."""
    try:
        service = stack.enter_context(bench.service(loaded, f"{name}-{point.size}"))
    except NotReady as error:
        point.problem = str(error)
        return None
    point.ready_s = service.ready_s
    return _contender(bench, loaded, service)


def _contender(bench: Bench, loaded: Loaded, service: Service) -> Contender:
    name = service.folder.name
    bodies = uniform_suggestions(loaded.size, bench.plan.requests // 4)
    requests = write_requests(bench.folder / "requests" / name, "/suggest", bodies)
    return Contender(name, service, loaded.stores, requests)


def _compare(bench: Bench, points: list[Point], contenders: list[Contender | None]) -> list[Point]:
    running = [(p, c) for p, c in zip(points, contenders, strict=True) if c is not None]
    for point, contender in running:
        point.problem = warm_up(contender, bench.plan.closed_s)
    for number in range(bench.plan.closed_repeats // 2):
        for point, contender in running:
            point.bursts.append(burst(contender, bench.plan.closed_s, first=number * 1_000))
    for point, contender in running:
        point.cpu_ms = median(burst.cpu_ms["service"] for burst in point.bursts)
        point.redis_cpu_ms = median(burst.cpu_ms["redis"] for burst in point.bursts)
        point.rps = median(burst.rps for burst in point.bursts)
        point.memory = contender.service.memory()
    return points
