"""One web worker: its services, the work beside its requests, and its application."""

import atexit
import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import gevent
from flask import Flask
from prometheus_client import CollectorRegistry

from app.adapters.breaker import CircuitBreaker
from app.adapters.catalog_store import USERS, EntityStore, PropositionStore
from app.adapters.database import event_database, service_database, wait_cooperatively
from app.adapters.decision_log import PostgresDecisionLog
from app.adapters.kafka_topics import KafkaProbe
from app.adapters.keeper_process import KeeperProcess
from app.adapters.key_file import KeyFile, LiveKeys
from app.adapters.redis_client import RedisProbe, open_redis
from app.adapters.redis_wire import GuardedWire, NoConnectionFree, TracedWire, Wire, open_wire
from app.adapters.shared_counts import SharedCounts
from app.adapters.snapshots import SnapshotFolder
from app.api.admission import InProgress
from app.api.exemplars import Exemplars
from app.api.factory import ApiServices, create_app
from app.api.gunicorn_worker import Departure
from app.api.health import DependencyStatus
from app.api.http_metrics import LATENCY_BUCKETS_S
from app.api.logs import configure_logging, log_the_end
from app.api.metrics import EventMetrics, ResilienceMetrics, ServingMetrics
from app.api.overload import Overload
from app.api.request_log import RequestFormatter
from app.api.saturation import SaturationMetrics
from app.api.worker_metrics import metrics_folder
from app.bootstrap.keeper import KEYS_INTERVAL_S
from app.bootstrap.life import forget_user_of
from app.bootstrap.ranking import Ranking, build_ranking
from app.bootstrap.recording import event_recording
from app.bootstrap.saturation import SATURATION_INTERVAL_S, Saturation
from app.bootstrap.tracing import build_tracer
from app.domain.errors import StoreUnavailable
from app.domain.ports import Breaker
from app.domain.tracing import NO_TRACING, Tracer
from app.domain.types import Slate, SuggestRequest
from app.events.record import OutdateSlates
from app.life.forget import ForgetUser
from app.serving.decisions import DecisionQueue
from app.serving.refresh import Background
from app.serving.suggest import Suggest
from app.settings import Settings, load_settings

log = logging.getLogger(__name__)

# What may be missing in an installation; see setup.py.
COMPILED = ("app.features.compiled", "app.adapters.compiled_layout")

# So many outages in a row keep everybody from PostgreSQL, or events from PostgreSQL or Kafka, for so long; then one
# tries again.
BREAKER_FAILURES = 3
BREAKER_OPEN_S = 2.0
# More than are ranked at once: a worker that stalls for a moment sees all that are under way time out together.
REDIS_BREAKER_FAILURES = 6
REDIS_BREAKER_OPEN_S = 1.0
DECISION_FLUSH_S = 0.5
DRAIN_INTERVAL_S = 0.5
RATES_EXCHANGE_S = 0.1
METRICS_FLUSH_S = 1.0
ERASURES_INTERVAL_S = 60.0
KAFKA_PROBE_S, KAFKA_PROBE_TIMEOUT_S = 2.0, 1.0
# How many more objects are alive before garbage is looked for. With Python's 700 it was every 18 requests, and each tenth time took 1 to 2 ms.
GC_ALLOCATIONS = 10_000
# How long requests wait at most for the interpreter when a thread beside them computes.
SWITCH_INTERVAL_S = 0.001
# After this long without a sign of life the keeper counts as stuck, and a starting worker serves without it.
KEEPER_SILENCE_S = 10.0


def build_api(
    settings: Settings,
    run_aside: Callable[[Callable], Any] = lambda work: work(),
    tracer: Tracer = NO_TRACING,
) -> tuple[ApiServices, Background, CollectorRegistry]:
    """The services of one web worker, and the background work that keeps them fresh.

    `run_aside` runs what takes long without holding up requests.
    """
    registry = CollectorRegistry()
    metrics, resilience = ServingMetrics(registry), ResilienceMetrics(registry)
    postgres_breaker, redis_breaker, event_breaker = _breakers(settings, resilience)
    database = service_database(settings, postgres_breaker)
    online_store = open_redis(settings, settings.redis_timeout_ms, settings.redis_pool_size)
    wire = open_wire(online_store)
    guarded: Wire = GuardedWire(wire, redis_breaker)
    if tracer is not NO_TRACING:
        guarded = TracedWire(guarded)
    ranking = build_ranking(settings, metrics, resilience, guarded, run_aside)
    online_probe = RedisProbe(online_store)
    kafka_probe = KafkaProbe(settings) if settings.kafka_bootstrap_servers else None
    decisions = DecisionQueue(
        PostgresDecisionLog(database), settings.decision_queue_size, metrics.decisions_dropped
    )

    def on_decision(request: SuggestRequest, slate: Slate) -> None:
        metrics.slate_served(slate)
        decisions.put(request, slate)

    forget_user = forget_user_of(settings, database, online_store, run_aside)
    keys = LiveKeys(KeyFile(settings.snapshot_dir))
    # Not behind the breaker: nobody waits for what this wire brings.
    rate_counts = SharedCounts(open_wire(online_store))
    events_database, event_metrics = event_database(settings), EventMetrics(registry)
    outdate = OutdateSlates(ranking.kept_slates, lambda count: metrics.cache_invalidated("event", count))
    record_events, drain = event_recording(
        settings, events_database, registry, event_metrics, event_breaker, outdate, run_aside
    )
    in_progress, exemplars = InProgress(), Exemplars(metrics_folder(), LATENCY_BUCKETS_S)
    saturation = Saturation(
        settings,
        SaturationMetrics(registry),
        ranking,
        decisions,
        in_progress,
        {"postgres": database, "events": events_database, "redis": wire},
        run_aside,
    )

    for warm_up in (*ranking.warm_ups, online_probe.refresh, keys.refresh, saturation.look):
        warm_up()
    repeated = {
        **ranking.repeated,
        online_probe.refresh: settings.snapshot_refresh_s,
        keys.refresh: KEYS_INTERVAL_S,
        rate_counts.exchange: RATES_EXCHANGE_S,
        decisions.flush: DECISION_FLUSH_S,
        lambda: _finish_erasures(forget_user): ERASURES_INTERVAL_S,
        drain: DRAIN_INTERVAL_S,
        metrics.flush: METRICS_FLUSH_S,
        exemplars.flush: METRICS_FLUSH_S,
        saturation.look: SATURATION_INTERVAL_S,
    }
    if kafka_probe is not None:
        repeated[lambda: run_aside(lambda: kafka_probe.refresh(KAFKA_PROBE_TIMEOUT_S))] = KAFKA_PROBE_S
    services = ApiServices(
        suggest=Suggest(ranking.ranker, on_decision, metrics.stages_took),
        record_events=record_events,
        count_events=event_metrics.events,
        count_recorded=event_metrics.recorded,
        check_health=_health_check(
            settings, ranking, postgres_breaker, redis_breaker, event_breaker, online_probe, kafka_probe
        ),
        propositions=PropositionStore(database),
        users=EntityStore(database, USERS),
        forget_user=forget_user,
        flush_decisions=decisions.flush,
        find_key=keys.find,
        rate_counts=rate_counts,
        is_strained=ranking.is_strained,
        is_overrun=ranking.is_overrun,
        count_shed=resilience.shed,
        is_leaving=lambda: Departure.is_near,
        in_progress=in_progress,
        exemplars=exemplars,
        flush_metrics=metrics.flush,
        run_aside=run_aside,
        tracer=tracer,
    )
    return services, Background(repeated), registry


def _breakers(
    settings: Settings, resilience: ResilienceMetrics
) -> tuple[CircuitBreaker, CircuitBreaker, CircuitBreaker]:
    """Before PostgreSQL, Redis and the event log."""
    return (
        CircuitBreaker("postgres", BREAKER_FAILURES, BREAKER_OPEN_S, on_state=resilience.breaker_changed),
        CircuitBreaker(
            "redis",
            REDIS_BREAKER_FAILURES,
            REDIS_BREAKER_OPEN_S,
            on_state=resilience.breaker_changed,
            is_failure=lambda error: (
                isinstance(error, StoreUnavailable) and not isinstance(error, NoConnectionFree)
            ),
        ),
        CircuitBreaker(
            "events",
            BREAKER_FAILURES,
            BREAKER_OPEN_S,
            settings.event_primary_timeout_ms / 1_000,
            resilience.breaker_changed,
        ),
    )


def _health_check(
    settings: Settings,
    ranking: Ranking,
    postgres_breaker: Breaker,
    redis_breaker: Breaker,
    event_breaker: Breaker,
    online_probe: RedisProbe,
    kafka_probe: KafkaProbe | None,
) -> Callable[[], Mapping[str, DependencyStatus]]:
    folder = SnapshotFolder(settings.snapshot_dir)

    def check() -> Mapping[str, DependencyStatus]:
        report = folder.last_report()
        is_kept = report is not None and time.time() - report.at_s < KEEPER_SILENCE_S
        model, model_breaker, snapshot = ranking.model, ranking.model_breaker, ranking.snapshot
        statuses = {
            "postgres": DependencyStatus(
                is_kept and report.problem is None,
                (report.problem or "catalog is current")
                if is_kept
                else "the keeper of the snapshot is silent",
                postgres_breaker.state,
            ),
            "redis": DependencyStatus(
                online_probe.problem is None, online_probe.problem or "answers", redis_breaker.state
            ),
            "model": DependencyStatus(
                model.problem is None and model.current is not None and model_breaker.state == "closed",
                model.problem or f"version {model.current.version}",
                model_breaker.state,
            ),
            "snapshot": DependencyStatus(
                snapshot.is_loaded, f"{len(snapshot.current.catalog)} propositions in memory"
            ),
        }
        if kafka_probe is not None:
            problem = kafka_probe.problem
            statuses["kafka"] = DependencyStatus(problem is None, problem or "answers")
        statuses["events"] = DependencyStatus(
            event_breaker.state == "closed",
            "recorded at once" if event_breaker.state == "closed" else "recorded in the spool for now",
            event_breaker.state,
        )
        return statuses

    return check


def warn_unless_compiled() -> None:
    for module in COMPILED:
        try:
            import_module(module)
        except ImportError as error:
            log.warning(
                "%s: fewer requests are answered without it. With a C compiler and Python's headers, install this package anew",
                error,
            )


def _finish_erasures(forget_user: ForgetUser) -> None:
    try:
        forget_user.finish(datetime.now(UTC))
    except StoreUnavailable as error:
        log.warning("erasures are finished later: %s", error)


def web() -> Flask:
    """The application of one gunicorn worker. Call it after the fork."""
    settings = load_settings()
    configure_logging(settings.log_level, "web", make_formatter=RequestFormatter)
    warn_unless_compiled()
    gevent.get_hub().print_exception = lambda context, *ended: log_the_end(*ended)
    wait_cooperatively(settings.database_timeout_ms / 1_000)
    started_s = time.time()
    keeper = KeeperProcess(settings.snapshot_dir)
    keeper.ensure()
    _wait_for_keeper(SnapshotFolder(settings.snapshot_dir), started_s)
    tracer = build_tracer(settings, "web")
    services, background, registry = build_api(settings, gevent.get_hub().threadpool.apply, tracer)
    app = create_app(settings, services, registry)
    Overload.watch(services.is_strained, services.is_overrun, services.count_shed)
    atexit.register(services.flush_decisions)
    atexit.register(services.flush_metrics)
    background.start()
    Background({keeper.ensure: settings.snapshot_refresh_s}).start()
    # What is alive now stays so: looking through it again and again held requests up for 100 ms and more.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return app


def _wait_for_keeper(folder: SnapshotFolder, since_s: float) -> None:
    """Until the keeper has looked for news once, or it takes too long: what is on disk serves then."""
    while time.time() - since_s < KEEPER_SILENCE_S:
        report = folder.last_report()
        if report is not None and report.at_s >= since_s:
            return
        time.sleep(0.05)
