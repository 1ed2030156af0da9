"""What one web worker ranks with: model, snapshot, cache, rules, and how they stand in for each other."""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import monkey
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original

from app.adapters.breaker import CircuitBreaker
from app.adapters.file_lock import held
from app.adapters.model_store import ModelStore
from app.adapters.model_trial import require_fast_if_large
from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_wire import Wire
from app.adapters.schema_file import SchemaFile
from app.adapters.snapshots import SnapshotFolder
from app.adapters.suggestion_cache import RedisSlateStore
from app.api.metrics import ResilienceMetrics, ServingMetrics
from app.bootstrap.stores import FEAST_PROJECT
from app.domain.ports import Ranker
from app.domain.types import Proposition
from app.features.catalog import Catalog
from app.features.ports import Model
from app.features.snapshot import Snapshot
from app.serving.audit import FeatureSampling
from app.serving.cache import CachedRanker
from app.serving.candidates import CandidateGenerator
from app.serving.current_scorer import CurrentScorer
from app.serving.rankers import DefaultRanker, Fallback, ModelRanker, Relieved, RulesRanker
from app.serving.refresh import LiveModel, LiveSnapshot
from app.serving.rounds import Rounds
from app.serving.trial import require_fast
from app.serving.turns import TakingTurns
from app.settings import Settings

SLATES_FLUSH_S = 0.02
# Of a request's deadline, what scoring may take of the processor. A model that needs more does not get to serve; one
# that comes to need more twice in a row is tried beside the requests until it does not.
SCORING_SHARE = 0.5
SLOW_SCORINGS = 2
SCORING_TRIAL_INTERVAL_S = 1.0
# Of a request's deadline, how late in a round of the event loop it may be handled, and what those who wait for their turn
# may need of the processor; and from when on, if that goes on, slates are ranked by what costs least.
QUEUE_SHARE, STANDING_SHARE = 0.5, 0.125
# Enough that the others compute while one waits for Redis.
RANKINGS_AT_ONCE = 4
# How often it is seen whether candidates' features are to be renewed, as a part of how old they may be.
SCORER_RENEWAL = 0.1


@dataclass(frozen=True, slots=True)
class Ranking:
    """`warm_ups` are to run once before the first request, `repeated` beside requests, every so many seconds."""

    ranker: Ranker
    model: LiveModel
    models: ModelStore
    snapshot: LiveSnapshot
    model_breaker: CircuitBreaker
    kept_slates: RedisSlateStore | None
    is_strained: Callable[[], bool]
    is_overrun: Callable[[], bool]
    rounds: Rounds
    turns: TakingTurns
    warm_ups: tuple[Callable[[], None], ...]
    repeated: Mapping[Callable[[], None], float]


def build_ranking(
    settings: Settings,
    metrics: ServingMetrics,
    resilience: ResilienceMetrics,
    wire: Wire,
    run_aside: Callable[[Callable], Any],
) -> Ranking:
    deadline_s = settings.suggest_deadline_ms / 1_000
    model_breaker = CircuitBreaker(
        "model",
        SLOW_SCORINGS,
        math.inf,
        SCORING_SHARE * deadline_s,
        resilience.breaker_changed,
        is_failure=lambda error: isinstance(error, Exception),
        work_clock=time.thread_time,
    )
    snapshot = LiveSnapshot(
        SnapshotFolder(settings.snapshot_dir),
        settings.half_lives_s,
        lambda: metrics.cache_invalidated("catalog"),
    )
    scorer = CurrentScorer(
        settings.candidate_features_max_age_s,
        settings.scorer_memory_mb << 20,
        sleep=get_original("time", "sleep"),  # in a thread of the system: see `run_aside`
    )

    def current_snapshot() -> Snapshot:
        return snapshot.current

    def prepare_scorer(model: Model) -> Callable[[], None]:
        prepared = scorer.prepared(model, snapshot.current, time.time())
        require_fast(prepared, settings.candidate_budget, SCORING_SHARE * deadline_s)
        return lambda: scorer.adopt(prepared)

    def run_in_turn(work: Callable) -> Any:
        """One worker after the other: all at once they would take the whole machine from the requests."""

        def work_alone() -> Any:
            with held(settings.snapshot_dir / "loading.lock"):
                return work()

        return run_aside(work_alone)

    models = ModelStore(settings.model_dir, settings.half_lives_s)
    model = LiveModel(
        models,
        SchemaFile(settings.snapshot_dir),
        metrics.model_load,
        run_in_turn,
        prepare_scorer,
        lambda version: require_fast_if_large(models, version),
    )

    def renew_scorer() -> None:
        run_aside(lambda: scorer.renew(model.current, snapshot.current, time.time()))

    def try_scoring() -> None:
        current = model.current
        if current is not None:
            trial = scorer.prepared(current, snapshot.current, time.time())
            model_breaker.probe(
                lambda: require_fast(trial, settings.candidate_budget, SCORING_SHARE * deadline_s)
            )

    def try_scoring_again() -> None:
        if model_breaker.state != "closed":
            run_aside(try_scoring)

    generator = CandidateGenerator(settings.candidate_budget)
    by_model: Ranker = ModelRanker(
        lambda: model.current,
        current_snapshot,
        RedisOnlineReader(wire, FEAST_PROJECT),
        generator,
        scorer,
        FeatureSampling(settings.decision_features_share, random.random),
        model_breaker,
        metrics.features_read,
    )
    repeated = {
        snapshot.refresh: settings.snapshot_refresh_s,
        model.refresh: settings.snapshot_refresh_s,
        renew_scorer: SCORER_RENEWAL * settings.candidate_features_max_age_s,
        try_scoring_again: SCORING_TRIAL_INTERVAL_S,
    }
    kept_slates: RedisSlateStore | None = None
    if settings.suggest_cache_ttl_s > 0:
        kept_slates = RedisSlateStore(wire, settings.suggest_cache_ttl)
        by_model = cached = CachedRanker(
            by_model,
            kept_slates,
            lambda: model.current,
            current_snapshot,
            settings.suggest_cache_ttl,
            metrics.cache_request,
        )
        repeated[cached.flush] = SLATES_FLUSH_S
    without_model = Fallback(
        RulesRanker(current_snapshot, generator, settings.rules_weights),
        DefaultRanker(_default_catalog(settings), current_snapshot),
        metrics.fell_back,
    )
    rounds = Rounds(QUEUE_SHARE * deadline_s, STANDING_SHARE * deadline_s)
    has_event_loop = monkey.is_module_patched("socket")
    if has_event_loop:
        _follow_rounds(rounds)
    turns = TakingTurns(
        Fallback(by_model, without_model, metrics.fell_back),
        BoundedSemaphore(RANKINGS_AT_ONCE),
        QUEUE_SHARE * deadline_s,
        STANDING_SHARE * deadline_s,
        RANKINGS_AT_ONCE,
    )

    def is_strained() -> bool:
        return (has_event_loop and rounds.is_strained) or turns.is_strained

    return Ranking(
        ranker=Relieved(turns, without_model, is_strained, metrics.fell_back),
        model=model,
        models=models,
        snapshot=snapshot,
        model_breaker=model_breaker,
        kept_slates=kept_slates,
        is_strained=is_strained,
        is_overrun=lambda: (has_event_loop and rounds.is_overrun) or turns.is_overrun,
        rounds=rounds,
        turns=turns,
        warm_ups=(snapshot.refresh, model.refresh),
        repeated=repeated,
    )


def try_model(settings: Settings, version: str) -> None:
    """Scores a slate's candidates of the snapshot on this machine.

    Raises:
        ModelRefused: it cannot be read, is for other features, or takes too long.
    """
    snapshot = LiveSnapshot(SnapshotFolder(settings.snapshot_dir), settings.half_lives_s, lambda: None)
    snapshot.refresh()
    schema = SchemaFile(settings.snapshot_dir).read()
    model = ModelStore(settings.model_dir, settings.half_lives_s).load(version, schema)
    scorer = CurrentScorer(math.inf, settings.scorer_memory_mb << 20).prepared(
        model, snapshot.current, time.time()
    )
    require_fast(scorer, settings.candidate_budget, SCORING_SHARE * settings.suggest_deadline_ms / 1_000)


def _follow_rounds(rounds: Rounds) -> None:
    """Tells when the event loop of this thread begins to work off what is ready, and when it waits again."""
    loop = gevent.get_hub().loop
    for watcher, action in ((loop.check(), rounds.begin), (loop.prepare(), rounds.end)):
        watcher.priority = loop.MAXPRI
        watcher.start(action)
        _WATCHERS.append(watcher)


_WATCHERS: list[Any] = []  # else they would be collected, and silent


def _default_catalog(settings: Settings) -> Catalog:
    return Catalog.of([Proposition(p.proposition_id, p.title, p.category) for p in settings.default_slate])
