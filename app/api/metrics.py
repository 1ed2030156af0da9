"""What a web worker counts beside the HTTP metrics. Gauges that have to be looked for are in `app.api.saturation`.

Counters whose labels are known exist from the start: of one that appears with its first count, Prometheus sees no increase.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.api.admission import MOST_AT_ONCE, SUGGEST
from app.api.schemas import EventOutcome
from app.api.tallies import TallyCounter, TallyHistogram
from app.domain.types import DegradationLevel, EventType, FeatureState, Slate, StoredIn, Strategy
from app.features.ports import OnlineRows
from app.serving.cache import CacheOutcome

STAGES = ("turn", "cache", "features", "candidates", "score", "policy", "rules", "default")
_STAGE_S = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.02, 0.035, 0.05, 0.08, 0.1, 0.25, 1.0),
)
_CANDIDATES = (1, 5, 10, 25, 50, 100, 200, 300, 400, 500, 750, 1_000, 2_500, 10_000)
_AGE_S = (1, 5, 15, 60, 300, 900, 3_600, 21_600, 86_400, 604_800, 2_592_000, 31_536_000)
# Of rows that a request reads; the default of a request without a user is none.
_ROW_STATES = (FeatureState.FRESH, FeatureState.STALE, FeatureState.MISSING)
_LEVELS = {
    Strategy.MODEL: (DegradationLevel.FULL, DegradationLevel.FEATURES_STALE_OR_MISSING),
    Strategy.RULES: (DegradationLevel.RULES,),
    Strategy.DEFAULT: (DegradationLevel.STATIC_DEFAULT,),
}
# Others, if there are any, are names of errors as well.
_FALLBACK_REASONS = ("bug", "strained", "OutOfTime", "LeftAlone", "FeaturesUnavailable", "ModelRefused")


class ServingMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._slates = Counter(
            "propositions_slates", "Slates served.", ["strategy", "level"], registry=registry
        )
        # Remembered, because to look a counter up by its labels takes longer than to count.
        self._slates_of = cache(self._slates.labels)
        for strategy, levels in _LEVELS.items():
            for level in levels:
                self._slates_of(strategy, int(level))
        self._fallbacks = Counter(
            "propositions_fallbacks",
            "Rankers that could not answer, by reason.",
            ["reason"],
            registry=registry,
        )
        _begin(self._fallbacks, _FALLBACK_REASONS)
        self._stage_s = TallyHistogram(
            "propositions_stage_seconds",
            "Where the time of a request for a slate went.",
            ["stage"],
            buckets=_STAGE_S,
            registry=registry,
        )
        self._stage_s_of = cache(self._stage_s.labels)
        for stage in STAGES:
            self._stage_s_of(stage)
        self._candidates = TallyHistogram(
            "propositions_candidates_scored",
            "Candidates scored for a slate.",
            ["strategy"],
            buckets=_CANDIDATES,
            registry=registry,
        )
        self._candidates_of = {strategy: self._candidates.labels(strategy) for strategy in Strategy}
        self._feature_rows = TallyCounter(
            "propositions_feature_rows",
            "Rows of online features that were read, by what they were.",
            ["view", "state"],
            registry=registry,
        )
        self._feature_age_s = TallyHistogram(
            "propositions_feature_age_seconds",
            "Age of the newest row of a view that a request read.",
            ["view"],
            buckets=_AGE_S,
            registry=registry,
        )
        self._rows_of = cache(
            lambda view: {state: self._feature_rows.labels(view, state) for state in _ROW_STATES}
        )
        self._age_s_of = cache(self._feature_age_s.labels)
        self._dropped = Counter(
            "propositions_decisions_dropped",
            "Decisions lost because their queue was full.",
            registry=registry,
        )
        self._model_loads = Counter(
            "propositions_model_loads", "Models loaded or refused.", ["outcome"], registry=registry
        )
        _begin(self._model_loads, ("loaded", "refused"))
        self._cache_requests = TallyCounter(
            "propositions_cache_requests",
            "Requests by what the suggestion cache did for them.",
            ["outcome"],
            registry=registry,
        )
        self._cache_requests_of = {outcome: self._cache_requests.labels(outcome) for outcome in CacheOutcome}
        self._cache_invalidations = Counter(
            "propositions_cache_invalidations",
            "What made kept slates outdated.",
            ["reason"],
            registry=registry,
        )
        _begin(self._cache_invalidations, ("event", "model", "catalog"))
        self._tallies = (
            self._stage_s,
            self._candidates,
            self._feature_rows,
            self._feature_age_s,
            self._cache_requests,
        )

    def slate_served(self, slate: Slate) -> None:
        self._slates_of(slate.strategy, int(slate.degradation_level)).inc()
        if not slate.is_cached:
            self._candidates_of[slate.strategy].observe(slate.candidate_count)

    def stages_took(self, stages_s: Mapping[str, float]) -> None:
        for stage, seconds in stages_s.items():
            self._stage_s_of(stage).observe(seconds)

    def features_read(self, rows: Mapping[str, OnlineRows]) -> None:
        for view, online in rows.items():
            counters, states = self._rows_of(view), online.states
            for state in set(states):
                counters[state].inc(states.count(state))
            if online.age_s is not None:
                self._age_s_of(view).observe(online.age_s)

    def flush(self) -> None:
        """Shows the others what was tallied here."""
        for tally in self._tallies:
            tally.flush()

    def fell_back(self, reason: str) -> None:
        self._fallbacks.labels(reason).inc()

    def decisions_dropped(self, count: int) -> None:
        self._dropped.inc(count)

    def model_load(self, outcome: str) -> None:
        self._model_loads.labels(outcome).inc()
        if outcome == "loaded":
            self.cache_invalidated("model")

    def cache_request(self, outcome: CacheOutcome) -> None:
        self._cache_requests_of[outcome].inc()

    def cache_invalidated(self, reason: str, count: int = 1) -> None:
        self._cache_invalidations.labels(reason).inc(count)


BREAKER_STATES = {"closed": 0, "half-opened": 1, "opened": 2}


class ResilienceMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._breaker = Gauge(
            "propositions_breaker_state",
            "Of the breaker before a dependency, the worst of all workers: 0 closed, 1 half open, 2 open.",
            ["dependency"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._breaker_changes = Counter(
            "propositions_breaker_changes",
            "Changes of breakers, by the new state.",
            ["dependency", "state"],
            registry=registry,
        )
        self._dependencies: set[str] = set()
        self._shed = Counter(
            "propositions_requests_shed",
            "Requests refused because they would have waited too long.",
            ["route"],
            registry=registry,
        )
        self._shed_of = cache(lambda route: self._shed.labels(f"/{route}"))
        for route in (SUGGEST, *MOST_AT_ONCE):
            self._shed_of(route)

    def breaker_changed(self, dependency: str, state: str) -> None:
        """Is told for the first time when the breaker is made, which is no change."""
        self._breaker.labels(dependency).set(BREAKER_STATES[state])
        if dependency in self._dependencies:
            self._breaker_changes.labels(dependency, state).inc()
        else:
            self._dependencies.add(dependency)
            for state in BREAKER_STATES:
                self._breaker_changes.labels(dependency, state)

    def shed(self, route: str) -> None:
        self._shed_of(route).inc()


class EventMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "propositions_events",
            "Events by what became of them.",
            ["outcome", "stored_in"],
            registry=registry,
        )
        for outcome, stored_in in product((EventOutcome.RECORDED, EventOutcome.DUPLICATE), StoredIn):
            self._events.labels(outcome, stored_in)
        self._events.labels(EventOutcome.REJECTED, "nowhere")
        self._event_types = Counter(
            "propositions_event_types",
            "Events that were recorded, by type.",
            ["event_type"],
            registry=registry,
        )
        _begin(self._event_types, EventType)
        # All workers look at the same folder: the latest look counts, whoever took it.
        self._spool_bytes = Gauge(
            "propositions_spool_bytes",
            "Bytes that wait to be drained.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._spool_events = Gauge(
            "propositions_spool_events",
            "Events that wait to be drained.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._drained = Counter(
            "propositions_spool_drained", "Events that were drained from the spool.", registry=registry
        )
        self._lost_bytes = Counter(
            "propositions_spool_unreadable_bytes",
            "Bytes of the spool that are no events that can be recorded.",
            ["kind"],
            registry=registry,
        )
        _begin(self._lost_bytes, ("torn", "damaged", "refused"))

    def events(self, outcome: EventOutcome, stored_in: StoredIn | None, count: int) -> None:
        self._events.labels(outcome, stored_in or "nowhere").inc(count)

    def recorded(self, event_type: EventType, count: int) -> None:
        self._event_types.labels(event_type).inc(count)

    def spool_holds(self, bytes_: int, events: int) -> None:
        self._spool_bytes.set(bytes_)
        self._spool_events.set(events)

    def spool_drained(self, count: int) -> None:
        self._drained.inc(count)

    def spool_unreadable(self, kind: str, bytes_: int) -> None:
        self._lost_bytes.labels(kind).inc(bytes_)


def _begin(counter: Counter, values: Iterable[str]) -> None:
    for value in values:
        counter.labels(value)
