"""What a projector tells of itself, and of what came of slates."""

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.domain.outcomes import NONE, OTHER, CategoryOutcomes, SlateOutcomes
from app.domain.types import EventType, Strategy
from app.features.slots import COVISIT_SLOT

_BATCH_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_FRESHNESS_S = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 5.0, 15.0, 60.0)


COUNTERS, COVISITS = "counters", "covisits"


def part_of(slots: Collection[int]) -> str:
    """The name of what is folded in these slots: counters and co-visits are felt at different times."""
    return COVISITS if set(slots) == {COVISIT_SLOT} else COUNTERS


class ProjectorMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._oldest_waiting: dict[str, datetime | None] = {}
        self._events = Counter("propositions_projected_events", "Events folded.", ["part"], registry=registry)
        self._batch_s = Histogram(
            "propositions_projection_batch_seconds",
            "From the begin of a batch to its rows in both stores.",
            ["part"],
            buckets=_BATCH_S,
            registry=registry,
        )
        self._freshness_s = Histogram(
            "propositions_freshness_seconds",
            "From the receipt of events to the features that count them in the online store.",
            ["part"],
            buckets=_FRESHNESS_S,
            registry=registry,
        )
        self._slots = Gauge(
            "propositions_projection_slots", "Slots that this process folds.", registry=registry
        )
        self._rebuilds = Counter("propositions_rebuilds", "Replays of the whole log.", registry=registry)
        delay_s = Gauge(
            "propositions_projection_delay_seconds",
            "Age of the oldest event that waits to be folded; 0 if none does.",
            ["part"],
            registry=registry,
        )
        for part in (COUNTERS, COVISITS):
            delay_s.labels(part).set_function(partial(self._delay_s_now, part))

    def waits(self, part: str, since: datetime | None) -> None:
        """The receipt of the oldest event that is known to wait; None if none does."""
        self._oldest_waiting[part] = since

    def delay_s(self, part: str, now: datetime) -> float:
        oldest = self._oldest_waiting.get(part)
        return 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)

    def _delay_s_now(self, part: str) -> float:
        return self.delay_s(part, datetime.now(UTC))

    def batch_done(self, part: str, event_count: int, took_s: float) -> None:
        self._events.labels(part).inc(event_count)
        self._batch_s.labels(part).observe(took_s)

    def served(self, part: str, received_at: Iterable[datetime], now: datetime) -> None:
        """Commits of the log whose events can be felt from `now` on; each counts once, whatever its size."""
        for moment in received_at:
            self._freshness_s.labels(part).observe((now - moment).total_seconds())

    def owns(self, slot_count: int) -> None:
        self._slots.set(slot_count)

    def rebuilt(self) -> None:
        self._rebuilds.inc()


# Versions of models whose outcomes are told apart: those that were seen last.
MOST_VERSIONS = 10


class OutcomeMetrics:
    """Impressions, clicks, conversions and dismissals. The number of series is bounded, whatever is seen."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._outcomes = Counter(
            "propositions_outcomes",
            "Events by what ranked the slate that they belong to.",
            ["event_type", "strategy", "model_version"],
            registry=registry,
        )
        for strategy in (NONE, Strategy.RULES, Strategy.DEFAULT):
            self._begin(self._outcomes, strategy, NONE)
        self._versions: dict[str, None] = {}  # in the order in which they were seen last
        self._of_categories = Counter(
            "propositions_category_outcomes",
            "Events by the category of the proposition.",
            ["event_type", "category"],
            registry=registry,
        )
        self._categories: set[str] = set()
        for category in (NONE, OTHER):
            self._begin(self._of_categories, category)
        self._coverage = Gauge(
            "propositions_catalog_coverage_ratio",
            "Share of active propositions that were shown in the last 24 hours.",
            registry=registry,
        )
        self._coverage.set(math.nan)
        self._view_age_s = Gauge(
            "propositions_feature_view_age_seconds",
            "Age of the newest row of a feature view.",
            ["view"],
            registry=registry,
        )

    def came_of(self, slates: Sequence[SlateOutcomes], categories: Sequence[CategoryOutcomes]) -> None:
        for of_slates in sorted(slates, key=lambda outcomes: outcomes.count):
            self._see(of_slates)
        for of_slates in slates:
            version = of_slates.model_version
            named = version if version == NONE or version in self._versions else OTHER
            self._outcomes.labels(of_slates.event_type, of_slates.strategy, named).inc(of_slates.count)
        for of_category in categories:
            category = of_category.category
            named = category if category == NONE or category in self._categories else OTHER
            self._of_categories.labels(of_category.event_type, named).inc(of_category.count)

    def name_categories(self, names: Collection[str]) -> None:
        """These are told apart from now on; those that were before and are not any more are forgotten."""
        for gone in self._categories - set(names):
            _forget(self._of_categories, category=gone)
        self._categories = set(names)
        for name in names:
            self._begin(self._of_categories, name)

    def covers(self, share: float | None) -> None:
        """None: there is no active proposition."""
        self._coverage.set(math.nan if share is None else share)

    def newest(self, rows: Mapping[str, datetime]) -> None:
        """When the newest row of each view is from."""
        for view, moment in rows.items():
            self._view_age_s.labels(view).set_function(partial(_age_s, moment))

    def _see(self, outcomes: SlateOutcomes) -> None:
        version = outcomes.model_version
        if version == NONE:
            return
        if version not in self._versions:
            self._begin(self._outcomes, outcomes.strategy, version)
        self._versions.pop(version, None)
        self._versions[version] = None
        if len(self._versions) > MOST_VERSIONS:
            oldest = next(iter(self._versions))
            del self._versions[oldest]
            _forget(self._outcomes, model_version=oldest)

    def _begin(self, counter: Counter, *labels: str) -> None:
        """With 0, so that there are clicks where there are impressions."""
        for event_type in EventType:
            counter.labels(event_type, *labels)


def _forget(counter: Counter, **labels: str) -> None:
    with warnings.catch_warnings():
        # Not possible with several processes, it says, as soon as Feast has set a variable; a projector is alone.
        warnings.simplefilter("ignore", UserWarning)
        counter.remove_by_labels(labels)


def _age_s(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()
