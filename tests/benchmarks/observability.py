"""What metrics, logs and traces cost: the service with all of them, beside itself with fewer and with none."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from app.adapters.tracing import SEND_INTERVAL_S
from tests.benchmarks.bench import Bench, Loaded
from tests.benchmarks.keys import write_requests
from tests.benchmarks.load import CLOSED_CONNECTIONS
from tests.benchmarks.measure import Contender, burst, warm_up
from tests.benchmarks.rows import Row, note, summarize
from tests.benchmarks.service import SERVE, Service, gunicorn_command, start_together
from tests.benchmarks.traffic import uniform_suggestions
from tests.otlp_collector import Collector, running_collector

SHARE = 0.1
NOTHING, METRICS_AND_LOGS, EVERYTHING, ALL_TRACED = "all_off", "without_traces", "all_on", "all_traced"
TITLES = {
    NOTHING: "all off: no metrics, no request log, no traces",
    METRICS_AND_LOGS: "metrics and request log",
    EVERYTHING: f"all on: metrics, request log, traces of {SHARE:.0%} of the requests",
    ALL_TRACED: "metrics, request log, traces of all requests",
}
# Their differences are small, so they are measured so many times as often as others.
TIMES_AS_OFTEN = 2
# Nothing is refused or ranked by the rules, however slow the machine: both cost so little that they hide the rest.
DEADLINE_MS = 60_000
# Of the traces, what may be lost before it counts as a problem.
LOST_SHARE = 0.05
# After this long a service has sent what it had to send.
SENT_WITHIN_S = 2 * SEND_INTERVAL_S


@dataclass(frozen=True, slots=True)
class Observed:
    """`traced_shares` of the requests that were answered, by contender: who sends nothing costs nothing."""

    rows: Mapping[str, Row]
    traced_shares: Mapping[str, float]


class CountingCollector(Collector):
    """Keeps no spans; millions come."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.request_count = 0

    def take(self, request: ExportTraceServiceRequest, headers: Mapping[str, str]) -> None:
        spans = (s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
        self.request_count += sum(span.kind == Span.SPAN_KIND_SERVER for span in spans)


def measure_observability(bench: Bench) -> Observed:
    plan = bench.plan
    with ExitStack() as stack:
        loaded = stack.enter_context(bench.world("observability", plan.size))
        collectors = {name: stack.enter_context(_collector()) for name in (EVERYTHING, ALL_TRACED)}
        services = _services(bench, loaded, collectors)
        start_together(list(services.values()), stack)
        requests = write_requests(
            bench.folder / "requests" / "observability",
            "/suggest",
            uniform_suggestions(plan.size, plan.requests),
        )
        contenders = [Contender(name, service, loaded.stores, requests) for name, service in services.items()]
        rows = {contender.name: Row(TITLES[contender.name]) for contender in contenders}
        for contender in contenders:
            note(rows[contender.name], warm_up(contender, plan.closed_s))
        time.sleep(SENT_WITHIN_S)
        before = {name: collector.request_count for name, collector in collectors.items()}
        for contender, first in _turns(contenders, TIMES_AS_OFTEN * plan.closed_repeats, plan.requests):
            rows[contender.name].bursts.append(burst(contender, plan.closed_s, first))
        for contender in contenders:
            summarize(rows[contender.name], contender)
        stack.pop_all().close()  # what the services have not sent yet they send at their end
    shares = {}
    for name, wanted in ((EVERYTHING, SHARE), (ALL_TRACED, 1.0)):
        traced, row = collectors[name].request_count - before[name], rows[name]
        answered = max(sum(burst.requests for burst in row.bursts), 1)
        shares[name] = traced / answered
        if not _is_share(traced, wanted, answered, answered + CLOSED_CONNECTIONS * len(row.bursts)):
            note(row, f"{shares[name]:.1%} of the requests were traced instead of {wanted:.0%}")
    return Observed(rows, shares)


def _is_share(count: int, share: float, least: int, most: int) -> bool:
    """Of `least` to `most` requests: what is under way when a closed loop ends is answered, and not counted there."""
    chance = 5 * (share * (1 - share) * most) ** 0.5
    return (1 - LOST_SHARE) * share * least - chance <= count <= share * most + chance


@contextmanager
def _collector() -> Iterator[CountingCollector]:
    with running_collector(CountingCollector) as collector:
        yield collector


def _services(
    bench: Bench, loaded: Loaded, collectors: Mapping[str, CountingCollector]
) -> dict[str, Service]:
    def service(name: str, command=SERVE, **settings: object) -> Service:
        return bench.service(
            loaded, f"observability-{name}", command, SUGGEST_DEADLINE_MS=DEADLINE_MS, **settings
        )

    def traced(name: str, share: float) -> Service:
        return service(
            name,
            OTEL_EXPORTER_OTLP_ENDPOINT=collectors[name].endpoint,
            OTEL_TRACES_SAMPLER_ARG=share,
        )

    return {
        NOTHING: service(NOTHING, gunicorn_command("tests.benchmarks.unobserved:web()"), LOG_LEVEL="WARNING"),
        METRICS_AND_LOGS: service(METRICS_AND_LOGS),
        EVERYTHING: traced(EVERYTHING, SHARE),
        ALL_TRACED: traced(ALL_TRACED, 1.0),
    }


def _turns(contenders: list[Contender], repeats: int, request_count: int) -> Iterator[tuple[Contender, int]]:
    """Each contender once per turn, there and back, so that nobody is always first or last."""
    for number in range(repeats):
        first = number * request_count // repeats
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            yield contender, first
