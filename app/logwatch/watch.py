"""What is unusual in a stream of log lines: bursts of errors, new kinds of them, slower answers, missing traffic.

Time comes from the lines, so the same lines give the same anomalies. They are counted in windows of equal length, and what
is remembered is bounded, whatever comes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from app.logwatch.counts import Traffic, Trouble
from app.logwatch.latency import TAIL, LatencyChart
from app.logwatch.lines import LogLine

DAY_S = 86_400.0
# Windows that are counted together: in more of them less shows, later.
TROUBLE_SPANS, TRAFFIC_SPANS = (1, 5, 15), (1, 5)
# Bursts, latency and traffic share the false alarms that are allowed.
JUDGED = 3
MAX_SIGNATURES, MAX_ROUTES = 1_000, 200
OTHERS = "(others)"
# Traffic is compared with that of the last hour or so: by day there is more of it than by night.
TRAFFIC_HALF_LIFE_S = 1_800.0
# An anomaly is over after so many windows without it.
QUIET_WINDOWS = 5
LEARNED_OF_A_BURST = 2.0
# Of what nobody logged for so long, nothing is said.
MAX_GAP_S = 7 * DAY_S


class Kind(StrEnum):
    NEW = "new signature"
    BURST = "burst"
    SLOW = "slow"
    MISSING = "missing traffic"


@dataclass(frozen=True, slots=True)
class Plan:
    """How to watch.

    Until `baseline_s` after the first line nothing is an anomaly. `half_life_s` is the age at which what was seen
    weighs half; `false_alarms_per_day` is what chance alone may raise; latencies that grow less than by `least_ratio` are
    of no interest.
    """

    window_s: float = 60.0
    baseline_s: float = 3_600.0
    half_life_s: float = 21_600.0
    false_alarms_per_day: float = 0.3
    least_ratio: float = 1.2

    def keep(self, half_life_s: float) -> float:
        """What is left of a weight after a window."""
        return 0.5 ** (self.window_s / half_life_s)

    def windows_between_false_alarms(self, series: int) -> float:
        """For each of so many series of one kind."""
        return DAY_S / self.window_s * JUDGED * max(series, 1) / self.false_alarms_per_day


@dataclass(slots=True)
class Anomaly:
    """`seen` and `expected` are counts per window, or milliseconds; times are seconds since the epoch.

    `began_s` is the begin of the window in which it was noticed, at `detected_s`; it was there until `last_s` at least.
    """

    kind: Kind
    subject: str
    began_s: float
    detected_s: float
    last_s: float
    seen: float
    expected: float
    is_over: bool = False

    @property
    def unit(self) -> str:
        return "ms" if self.kind == Kind.SLOW else "per window"


@dataclass(slots=True)
class Span:
    """So many windows, `elapsed` of which are over. Of trouble `threshold` are a burst, unless one that `is_told` is part
    of the count."""

    windows: int
    usual: Trouble | Traffic
    count: float = 0.0
    elapsed: int = 0
    threshold: float = float("inf")
    is_told: bool = False

    def is_over(self) -> bool:
        """Call it at the end of each window."""
        self.elapsed = (self.elapsed + 1) % self.windows
        return self.elapsed == 0


@dataclass(slots=True)
class Signature:
    last_s: float
    spans: list[Span]


@dataclass(slots=True)
class Route:
    spans: list[Span]
    latency: LatencyChart = field(default_factory=LatencyChart)


class Watch:
    """Give it the lines; it gives the anomalies, as they are noticed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.began_s: float | None = None
        self.now_s = 0.0
        self.window_end_s = 0.0
        self.windows = 0.0  # closed ones, with the weight that a rate gives them
        self.signatures: dict[str, Signature] = {}
        self.routes: dict[str, Route] = {}
        self.open: dict[tuple[Kind, str], Anomaly] = {}

    def add(self, line: LogLine) -> Iterator[Anomaly]:
        """A line that is older than the one before counts as if it were of its time."""
        yield from self.advance(line.at_s)
        if line.signature is not None:
            yield from self._note(line.signature, line)
        if line.route is not None:
            route = self._route(line.route)
            for span in route.spans:
                span.count += line.count
            if line.duration_ms is not None:
                route.latency.add(line.duration_ms, line.count)

    def advance(self, to_s: float) -> Iterator[Anomaly]:
        """Ends the windows until then. Say so at the end, if the stream should go on until then: nothing else tells that
        lines are missing at its end."""
        if self.began_s is None:
            self.began_s = self.now_s = to_s
            self.window_end_s = (to_s // self.plan.window_s + 1) * self.plan.window_s
        if to_s - self.now_s > MAX_GAP_S:
            self.window_end_s = (to_s // self.plan.window_s + 1) * self.plan.window_s
        while to_s >= self.window_end_s:
            yield from self._close()
        self.now_s = max(self.now_s, to_s)

    @property
    def is_learning(self) -> bool:
        return self.now_s < self.began_s + self.plan.baseline_s

    def _note(self, name: str, line: LogLine) -> Iterator[Anomaly]:
        known = self.signatures.get(name)
        if known is None:
            name = self._make_room_for(name)
            known = self.signatures.get(name)
        if known is None:
            known = self.signatures[name] = Signature(
                self.now_s, [self._unseen(span) for span in TROUBLE_SPANS]
            )
            if not self.is_learning and not line.of_callers:
                yield self._raise(Kind.NEW, name, line.count, 0.0)
        known.last_s = self.now_s
        new = self.open.get((Kind.NEW, name))
        for span in known.spans:
            span.count += line.count
            is_burst = span.count >= span.threshold and not span.is_told
            if is_burst and new is None and not self.is_learning:
                yield from self._confirm(
                    Kind.BURST, name, span.count / span.windows, span.usual.mean / span.windows
                )
        if new is not None:
            new.seen = max(new.seen, known.spans[0].count)
            new.last_s = self.now_s

    def _unseen(self, windows: int) -> Span:
        """With as many windows without it as there were."""
        keep = self.plan.keep(self.plan.half_life_s) ** windows
        return Span(windows, Trouble(keep, windows=self.windows / windows))

    def _make_room_for(self, name: str) -> str:
        """The name, or that of all for which there is no room: what was seen last a whole half-life ago makes some."""
        if len(self.signatures) < MAX_SIGNATURES:
            return name
        oldest = min(self.signatures, key=lambda other: self.signatures[other].last_s)
        if self.now_s - self.signatures[oldest].last_s < self.plan.half_life_s:
            return OTHERS
        del self.signatures[oldest]
        return name

    def _route(self, name: str) -> Route:
        if name not in self.routes and len(self.routes) >= MAX_ROUTES:
            name = OTHERS
        if name not in self.routes:
            keep, keep_dispersion = self.plan.keep(TRAFFIC_HALF_LIFE_S), self.plan.keep(self.plan.half_life_s)
            spans = [Span(n, Traffic(keep**n, keep_dispersion**n)) for n in TRAFFIC_SPANS]
            self.routes[name] = Route(spans)
        return self.routes[name]

    def _close(self) -> Iterator[Anomaly]:
        end_s = self.now_s = self.window_end_s
        self._learn_signatures()
        for name, route in self.routes.items():
            yield from self._close_traffic(name, route)
            yield from self._close_latency(name, route)
        self.windows = self.windows * self.plan.keep(self.plan.half_life_s) + 1.0
        self._end_quiet_anomalies()
        self.window_end_s = end_s + self.plan.window_s

    def _end_quiet_anomalies(self) -> None:
        quiet_s = QUIET_WINDOWS * self.plan.window_s
        for (kind, subject), anomaly in list(self.open.items()):
            if self.now_s - anomaly.last_s > quiet_s:
                anomaly.is_over = True
                del self.open[kind, subject]
                if kind in (Kind.NEW, Kind.BURST) and subject in self.signatures:
                    for span in self.signatures[subject].spans:
                        span.is_told = True

    def _learn_signatures(self) -> None:
        for name, known in self.signatures.items():
            for span in known.spans:
                if span.is_over():
                    self._learn(name, span)

    def _learn(self, name: str, span: Span) -> None:
        # Of a burst only the begin is learned, and no more than tells that there are bursts: else the next one, which may be
        # of another cause, would be nothing special.
        trouble = self.open.get((Kind.NEW, name)) or self.open.get((Kind.BURST, name))
        begin_s = self.window_end_s - span.windows * self.plan.window_s
        if trouble is None or trouble.detected_s > begin_s or self._is_to_stay(trouble):
            span.usual.learn(min(span.count, LEARNED_OF_A_BURST * span.threshold))
        span.count, span.is_told = 0.0, False
        series = len(TROUBLE_SPANS) * len(self.signatures)
        spans = self.plan.windows_between_false_alarms(series) / span.windows
        span.threshold = span.usual.surprising_count(1.0 / spans)

    def _close_traffic(self, name: str, route: Route) -> Iterator[Anomaly]:
        for span in route.spans:
            if not span.is_over():
                continue
            spans = (
                self.plan.windows_between_false_alarms(len(TRAFFIC_SPANS) * len(self.routes)) / span.windows
            )
            is_missing = not self.is_learning and span.usual.chance_of_at_most(span.count) < 1.0 / spans
            if is_missing:
                seen, expected = span.count / span.windows, span.usual.mean / span.windows
                yield from self._confirm(Kind.MISSING, name, seen, expected)
            if not is_missing or self._is_to_stay(self.open[Kind.MISSING, name]):
                span.usual.learn(span.count)
            span.count = 0.0

    def _is_to_stay(self, anomaly: Anomaly) -> bool:
        return self.now_s - anomaly.began_s > DAY_S

    def _close_latency(self, name: str, route: Route) -> Iterator[Anomaly]:
        run_length = self.plan.windows_between_false_alarms(2 * len(self.routes))
        keep = self.plan.keep(self.plan.half_life_s)
        for shift in route.latency.close(keep, run_length, self.plan.least_ratio):
            if not self.is_learning:
                what = f"{name}, {'p99' if shift.share == TAIL else 'median'}"
                yield from self._confirm(Kind.SLOW, what, shift.now_ms, shift.usual_ms)

    def _confirm(self, kind: Kind, subject: str, seen: float, expected: float) -> Iterator[Anomaly]:
        """Yields it if it is new; else it goes on."""
        known = self.open.get((kind, subject))
        if known is None:
            yield self._raise(kind, subject, seen, expected)
        else:
            known.seen = min(known.seen, seen) if kind == Kind.MISSING else max(known.seen, seen)
            known.last_s = self.now_s

    def _raise(self, kind: Kind, subject: str, seen: float, expected: float) -> Anomaly:
        began_s = self.window_end_s - self.plan.window_s
        anomaly = Anomaly(kind, subject, began_s, self.now_s, self.now_s, seen, expected)
        self.open[kind, subject] = anomaly
        return anomaly
