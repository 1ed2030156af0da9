"""The composition root: builds everything from settings, and is the only module that knows every layer.

Feast and XGBoost take seconds to import, so what needs them is imported where it is built.
"""

import atexit
import gc
import logging
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import redis
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from flask import Flask
from gevent import monkey
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original
from prometheus_client import CollectorRegistry, start_http_server

from app.adapters import import_loader
from app.adapters.breaker import CircuitBreaker
from app.adapters.catalog_store import USERS, EntityStore, PropositionStore
from app.adapters.database import (
    Database,
    batch_database,
    event_database,
    service_database,
    wait_cooperatively,
)
from app.adapters.decision_log import PostgresDecisionLog
from app.adapters.embedded import EmbeddedServers
from app.adapters.erasures import PostgresErasures
from app.adapters.event_log import PostgresEventLog
from app.adapters.feature_tables import FeatureTables
from app.adapters.file_lock import held
from app.adapters.import_loader import ImportLoader
from app.adapters.kafka_client import MAX_DEAD_LETTER_BYTES, consumer_config, producer_config
from app.adapters.kafka_event_log import KafkaEventLog
from app.adapters.kafka_intake import KafkaIntake
from app.adapters.kafka_metrics import IntakeMetrics, SenderMetrics
from app.adapters.kafka_sender import KafkaSender
from app.adapters.kafka_topics import KafkaProbe
from app.adapters.keeper_process import KeeperProcess
from app.adapters.key_file import KeyFile, KeyKeeper, LiveKeys
from app.adapters.key_store import KeyStore
from app.adapters.maintenance import PostgresMaintenance
from app.adapters.model_store import ModelStore
from app.adapters.model_trial import require_fast_if_large
from app.adapters.online_eraser import RedisEraser
from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_client import ClusterClient, RedisProbe, connect_redis
from app.adapters.redis_wire import GuardedWire, NoConnectionFree, open_wire
from app.adapters.schema_file import RegistrySchema, SchemaFile
from app.adapters.shared_counts import SharedCounts
from app.adapters.snapshots import KeeperReport, SnapshotFolder, SnapshotSource
from app.adapters.spool import Loss, SpoolFolder
from app.adapters.suggestion_cache import RedisSlateStore
from app.api.factory import ApiServices, create_app
from app.api.gunicorn_worker import Departure
from app.api.health import DependencyStatus
from app.api.logs import configure_logging
from app.api.metrics import EventMetrics, ResilienceMetrics, ServingMetrics
from app.api.overload import Overload
from app.domain.errors import ConfigurationError, StoreUnavailable
from app.domain.ports import Breaker, EventLog, Ranker, Receipt
from app.domain.types import Event, Proposition, Slate, SuggestRequest
from app.events.commit import GroupCommit
from app.events.drain import SpoolDrain
from app.events.follow import follow_log
from app.events.guard import GuardedEventLog
from app.events.message import SCHEMA_HEADER, SCHEMA_VERSION, decode, encode
from app.events.metrics import ProjectorMetrics
from app.events.project import Projector
from app.events.record import OutdateSlates, RecordEvents
from app.features.catalog import Catalog
from app.features.covisits import CovisitRules
from app.features.ports import Model
from app.features.snapshot import Snapshot
from app.life.forget import ForgetUser
from app.life.maintain import Done, Retention, maintain
from app.serving.audit import FeatureSampling
from app.serving.cache import CachedRanker
from app.serving.candidates import CandidateGenerator
from app.serving.decisions import DecisionQueue
from app.serving.keeper import SnapshotKeeper, pause_s
from app.serving.rankers import DefaultRanker, Fallback, ModelRanker, Relieved, RulesRanker
from app.serving.refresh import Background, LiveModel, LiveSnapshot
from app.serving.rounds import Rounds
from app.serving.scoring import CurrentScorer
from app.serving.suggest import Suggest
from app.serving.trial import require_fast
from app.serving.turns import TakingTurns
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from app.adapters.parquet_export import ParquetExport

log = logging.getLogger(__name__)

FEAST_PROJECT = "propositions"
DECISION_FLUSH_S = 0.5
SLATES_FLUSH_S = 0.02
# Events that share a commit at most, unless a single request brings more.
GROUP_EVENTS = 1_000
# So many outages in a row keep everybody from PostgreSQL, or events from PostgreSQL or Kafka, for so long; then one
# tries again.
BREAKER_FAILURES = 3
BREAKER_OPEN_S = 2.0
# More than are ranked at once: a worker that stalls for a moment sees all that are under way time out together.
REDIS_BREAKER_FAILURES = 6
REDIS_BREAKER_OPEN_S = 1.0
# Of a request's deadline, what scoring may take of the processor. A model that needs more does not get to serve; one
# that comes to need more twice in a row is tried beside the requests until it does not.
SCORING_SHARE = 0.5
SLOW_SCORINGS = 2
SCORING_TRIAL_INTERVAL_S = 1.0
# There is nowhere to go from the spool: a disk that stalls is waited for.
SPOOL_WAIT_S = 2.0
DRAIN_INTERVAL_S = 0.5
# Who forgets a person waits for the segment that is being drained, and looks more often than the drain pauses.
SPOOL_TURN_WAIT_S, SPOOL_TURN_POLL_S = 5.0, 0.02
# Live events wait for a batch's commit: at some 50 us per event that is a small part of their timeout.
DRAIN_BATCH_EVENTS = 250
SCHEMA_INTERVAL_S = 5.0
# The keeper looks for changed API keys as often as workers look at its file: after two of these all have seen them.
KEYS_INTERVAL_S = 1.0
RATES_EXCHANGE_S = 0.1
# New objects between two garbage collections; 700 by default.
PROJECTOR_GC_ALLOCATIONS = 200_000
ERASURES_INTERVAL_S = 60.0
# Of a request's deadline, how late in a round of the event loop it may be handled, and what those who wait for their turn
# may need of the processor; and from when on, if that goes on, slates are ranked by what costs least.
QUEUE_SHARE, STANDING_SHARE = 0.5, 0.125
# Enough that the others compute while one waits for Redis.
RANKINGS_AT_ONCE = 4
# How often it is seen whether candidates' features are to be renewed, as a part of how old they may be.
SCORER_RENEWAL = 0.1
# How long requests wait at most for the interpreter when a thread beside them computes.
SWITCH_INTERVAL_S = 0.001
# Some of a list is not eligible for a request, or on other lists, too.
LIST_LENGTH_PER_BUDGET = 2
# A PostgreSQL that accepts and then never replies is given up after this long; a large catalog takes seconds.
KEEPER_REPLY_S = 60.0
# After this long without a sign of life the keeper counts as stuck, and a starting worker serves without it.
KEEPER_SILENCE_S = 10.0
KAFKA_PROBE_S, KAFKA_PROBE_TIMEOUT_S = 2.0, 1.0


def embedded_servers(settings: Settings) -> EmbeddedServers:
    return EmbeddedServers(settings.embedded_dir)


def migrate_database(settings: Settings, up_to: str = "head", down_to: str | None = None) -> str | None:
    """Brings the tables to a revision and returns the one they are at (None: no tables).

    Raises:
        StoreUnavailable: PostgreSQL does not answer, or a lock was not free in time; nothing half-done.
    """
    config = Config()
    (location,) = find_spec("migrations").submodule_search_locations
    config.set_main_option("script_location", location)
    with service_database(settings).transaction() as connection:
        if down_to is None:
            command.upgrade(config, up_to)
        else:
            command.downgrade(config, down_to)
        return MigrationContext.configure(connection).get_current_revision()


def open_import(settings: Settings) -> AbstractContextManager[ImportLoader]:
    return import_loader.open_import(batch_database(settings), settings.context_fields)


def prepare_projector_process() -> None:
    """A projector remembers many small objects without cycles: looking for these took a tenth of its time."""
    gc.set_threshold(PROJECTOR_GC_ALLOCATIONS)


def build_projector(
    settings: Settings, metrics: ProjectorMetrics | None = None
) -> tuple[Projector, FeatureTables]:
    from app.adapters.feature_store import open_online_writer

    tables = FeatureTables(batch_database(settings))
    return Projector(
        tables,
        open_online_writer(settings),
        settings.half_lives_s,
        CovisitRules(settings.covisit_window_s, settings.covisit_half_life_s),
        settings.project_batch_events,
        metrics,
    ), tables


def follow_events(settings: Settings, metrics: ProjectorMetrics, stop: threading.Event) -> None:
    """Folds this process's share of what comes until `stop` is set, or a store is down."""
    projector, tables = build_projector(settings, metrics)
    with tables.leases() as leases:
        if leases is None:
            log.info("another process is the only projector for now: standing by")
            return
        tables.prepare()
        follow_log(projector, leases, metrics, settings.project_poll_s, stop)


def serve_metrics(settings: Settings) -> CollectorRegistry:
    """The metrics of a process that follows events, on a port of their own if one is set."""
    registry = CollectorRegistry()
    if settings.project_metrics_port:
        try:
            start_http_server(settings.project_metrics_port, settings.host, registry)
        except OSError as error:
            raise ConfigurationError(
                f"PROJECT_METRICS_PORT={settings.project_metrics_port} cannot be listened on: {error}"
            ) from error
    return registry


def build_forget_user(settings: Settings) -> ForgetUser:
    online_store = connect_redis(
        settings.redis_address, settings.redis_batch_timeout_ms, cluster=settings.redis_cluster
    )
    return _forget_user(settings, batch_database(settings), online_store)


def _forget_user(
    settings: Settings,
    database: Database,
    online_store: redis.Redis | ClusterClient,
    run_aside: Callable[[Callable], Any] = lambda work: work(),
) -> ForgetUser:
    spool = SpoolFolder(settings.spool_dir, settings.spool_max_bytes)

    def forget_spooled(user_id: str) -> int:
        """Waits here for the end of a drain, not aside: the drain may need all the threads that there are."""
        deadline_s = time.monotonic() + SPOOL_TURN_WAIT_S
        while (removed := run_aside(lambda: spool.forget_user(user_id))) is None:
            if time.monotonic() > deadline_s:
                raise StoreUnavailable("the spool is being drained: try again")
            time.sleep(SPOOL_TURN_POLL_S)
        return removed

    return ForgetUser(PostgresErasures(database), RedisEraser(online_store, FEAST_PROJECT), forget_spooled)


def build_maintenance(settings: Settings) -> tuple[PostgresMaintenance, Callable[[datetime], Iterator[Done]]]:
    """The tables to lock, and what to do with them then."""
    tables = PostgresMaintenance(batch_database(settings))
    retention = Retention(
        settings.event_retention_days, settings.decision_retention_days, settings.forgotten_user_days
    )
    forget_user = build_forget_user(settings)
    return tables, lambda now: maintain(tables, forget_user.finish, retention, settings.max_future, now)


def build_export(settings: Settings, folder: Path) -> "ParquetExport":
    from app.adapters.parquet_export import ParquetExport

    return ParquetExport(batch_database(settings), folder)


def build_keeper(settings: Settings) -> SnapshotKeeper:
    return SnapshotKeeper(
        SnapshotSource(batch_database(settings)),
        SnapshotFolder(settings.snapshot_dir),
        settings.half_lives_s,
        settings.rules_weights,
        settings.new_below_impressions,
        list_length=LIST_LENGTH_PER_BUDGET * settings.candidate_budget,
    )


def take_snapshot(settings: Settings) -> int:
    """Publishes what has changed, for web workers to see; returns the number of propositions.

    Raises:
        StoreUnavailable: PostgreSQL does not answer, or the disk takes no files.
    """
    keeper = build_keeper(settings)
    keeper.refresh(time.time())
    if keeper.problem is not None:
        raise StoreUnavailable(keeper.problem)
    RegistrySchema(settings).read()
    _key_publisher(settings)()
    SnapshotFolder(settings.snapshot_dir).report(KeeperReport(time.time(), None))
    return keeper.size


def follow_news(settings: Settings, stop: threading.Event) -> None:
    """Publishes changes until stopped, and keeps the feature schema on disk current."""
    wait_cooperatively(KEEPER_REPLY_S)
    keeper, folder = build_keeper(settings), SnapshotFolder(settings.snapshot_dir)
    read_schema, publish_keys = _schema_reader(settings), _key_publisher(settings)
    publish_keys()
    Background({publish_keys: KEYS_INTERVAL_S}).start()
    is_first = True
    while not stop.is_set():
        began_s = time.time()
        keeper.refresh(began_s)
        worked_s = time.time() - began_s
        if is_first:
            if SchemaFile(settings.snapshot_dir).saved() is None:
                read_schema()  # workers wait for the first report, and need the schema to load a model
            Background({read_schema: SCHEMA_INTERVAL_S}).start()
            is_first = False
        folder.report(KeeperReport(time.time(), keeper.problem))
        stop.wait(pause_s(settings.snapshot_refresh_s, worked_s))


def key_store(settings: Settings) -> KeyStore:
    return KeyStore(service_database(settings))


def _key_publisher(settings: Settings) -> Callable[[], None]:
    """Brings the API keys on disk up to date."""
    keeper = KeyKeeper(key_store(settings).valid, KeyFile(settings.snapshot_dir))
    return lambda: keeper.refresh(datetime.now(UTC))


def _schema_reader(settings: Settings) -> Callable[[], None]:
    """Brings the schema on disk up to date."""
    source = RegistrySchema(settings)

    def read() -> None:
        try:
            source.read()
        except (StoreUnavailable, ConfigurationError) as error:
            log.warning("the feature schema on disk stays as it is: %s", error)

    return read


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


def primary_event_log(
    settings: Settings, database: Database, run_aside: Callable[[Callable], Any], registry: CollectorRegistry
) -> EventLog:
    """Where events rest first: in Kafka if it is configured, else in PostgreSQL."""
    if settings.kafka_bootstrap_servers is None:
        return PostgresEventLog(database, settings.context_fields)
    sender = KafkaSender(
        producer_config(settings), settings.kafka_timeout_ms / 1_000, SenderMetrics(registry), run_aside
    )
    atexit.register(sender.close)
    return KafkaEventLog(sender, settings.kafka_events_topic, encode, [(SCHEMA_HEADER, SCHEMA_VERSION)])


def build_intake(settings: Settings, registry: CollectorRegistry) -> KafkaIntake:
    """Brings events from Kafka into PostgreSQL."""
    dead_letters = KafkaSender(
        producer_config(settings, MAX_DEAD_LETTER_BYTES),
        settings.kafka_timeout_ms / 1_000,
        SenderMetrics(registry),
    )
    return KafkaIntake(
        consumer_config(settings),
        settings.kafka_events_topic,
        settings.kafka_dead_topic,
        decode,
        PostgresEventLog(event_database(settings), settings.context_fields),
        dead_letters,
        IntakeMetrics(registry),
    )


@contextmanager
def intake_beside(settings: Settings, stop: threading.Event, registry: CollectorRegistry) -> Iterator[None]:
    """Brings in what Kafka has, if it is configured, in a thread beside the block and until its end.

    Should the thread fail, `stop` is set, so that the block ends, and its error is raised.
    """
    if settings.kafka_bootstrap_servers is None:
        yield
        return
    intake = build_intake(settings, registry)
    with ThreadPoolExecutor(1, "kafka-intake") as pool:
        running = pool.submit(intake.run, stop)
        running.add_done_callback(lambda _: stop.set())
        try:
            yield
        finally:
            stop.set()
        running.result()


def build_api(
    settings: Settings, run_aside: Callable[[Callable], Any] = lambda work: work()
) -> tuple[ApiServices, Background, CollectorRegistry]:
    """The services of one web worker, and the background work that keeps them fresh.

    `run_aside` runs what takes long without holding up requests.
    """
    import_module("app.adapters.xgboost_model")  # takes a second, which no promotion should

    registry = CollectorRegistry()
    metrics, resilience = ServingMetrics(registry), ResilienceMetrics(registry)
    deadline_s = settings.suggest_deadline_ms / 1_000
    postgres_breaker = CircuitBreaker(
        "postgres", BREAKER_FAILURES, BREAKER_OPEN_S, on_state=resilience.breaker_changed
    )
    redis_breaker = CircuitBreaker(
        "redis",
        REDIS_BREAKER_FAILURES,
        REDIS_BREAKER_OPEN_S,
        on_state=resilience.breaker_changed,
        is_failure=lambda error: (
            isinstance(error, StoreUnavailable) and not isinstance(error, NoConnectionFree)
        ),
    )
    model_breaker = CircuitBreaker(
        "model",
        SLOW_SCORINGS,
        math.inf,
        SCORING_SHARE * deadline_s,
        resilience.breaker_changed,
        is_failure=lambda error: isinstance(error, Exception),
        work_clock=time.thread_time,
    )
    event_breaker = CircuitBreaker(
        "events",
        BREAKER_FAILURES,
        BREAKER_OPEN_S,
        settings.event_primary_timeout_ms / 1_000,
        resilience.breaker_changed,
    )
    database = service_database(settings, postgres_breaker)
    online_store = connect_redis(
        settings.redis_address,
        settings.redis_timeout_ms,
        settings.redis_pool_size,
        cluster=settings.redis_cluster,
    )
    folder = SnapshotFolder(settings.snapshot_dir)
    snapshot = LiveSnapshot(folder, settings.half_lives_s, lambda: metrics.cache_invalidated("catalog"))
    scorer = CurrentScorer(
        settings.candidate_features_max_age_s,
        settings.scorer_memory_mb << 20,
        sleep=get_original("time", "sleep"),  # in a thread of the system: see `run_aside`
    )

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
    online_probe = RedisProbe(online_store)
    kafka_probe = KafkaProbe(settings) if settings.kafka_bootstrap_servers else None
    decisions = DecisionQueue(
        PostgresDecisionLog(database), settings.decision_queue_size, metrics.decisions_dropped
    )

    def current_snapshot() -> Snapshot:
        return snapshot.current

    generator = CandidateGenerator(settings.candidate_budget)

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

    wire = GuardedWire(open_wire(online_store), redis_breaker)
    by_model: Ranker = ModelRanker(
        lambda: model.current,
        current_snapshot,
        RedisOnlineReader(wire, FEAST_PROJECT),
        generator,
        scorer,
        FeatureSampling(settings.decision_features_share, random.random),
        model_breaker,
    )
    slates: RedisSlateStore | None = None
    if settings.suggest_cache_ttl_s > 0:
        slates = RedisSlateStore(wire, settings.suggest_cache_ttl)
        by_model = cached = CachedRanker(
            by_model,
            slates,
            lambda: model.current,
            current_snapshot,
            settings.suggest_cache_ttl,
            metrics.cache_request,
        )
    rules = RulesRanker(current_snapshot, generator, settings.rules_weights)
    rounds = Rounds(QUEUE_SHARE * deadline_s, STANDING_SHARE * deadline_s)
    has_event_loop = monkey.is_module_patched("socket")
    if has_event_loop:
        _follow_rounds(rounds)
    default = DefaultRanker(_default_catalog(settings), current_snapshot)
    without_model = Fallback(rules, default, metrics.fell_back)
    turns = TakingTurns(
        Fallback(by_model, without_model, metrics.fell_back),
        BoundedSemaphore(RANKINGS_AT_ONCE),
        QUEUE_SHARE * deadline_s,
        STANDING_SHARE * deadline_s,
        RANKINGS_AT_ONCE,
    )

    def is_strained() -> bool:
        return (has_event_loop and rounds.is_strained) or turns.is_strained

    ranker = Relieved(turns, without_model, is_strained, metrics.fell_back)

    def on_decision(request: SuggestRequest, slate: Slate) -> None:
        metrics.slate_served(slate)
        decisions.put(request, slate)

    def check() -> Mapping[str, DependencyStatus]:
        report = folder.last_report()
        is_kept = report is not None and time.time() - report.at_s < KEEPER_SILENCE_S
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

    forget_user = _forget_user(settings, database, online_store, run_aside)

    def finish_erasures() -> None:
        try:
            forget_user.finish(datetime.now(UTC))
        except StoreUnavailable as error:
            log.warning("erasures are finished later: %s", error)

    keys = LiveKeys(KeyFile(settings.snapshot_dir))
    # Not behind the breaker: nobody waits for what this wire brings.
    rate_counts = SharedCounts(open_wire(online_store))
    for warm_up in (snapshot.refresh, model.refresh, online_probe.refresh, keys.refresh):
        warm_up()
    repeated = {
        snapshot.refresh: settings.snapshot_refresh_s,
        model.refresh: settings.snapshot_refresh_s,
        online_probe.refresh: settings.snapshot_refresh_s,
        keys.refresh: KEYS_INTERVAL_S,
        rate_counts.exchange: RATES_EXCHANGE_S,
        decisions.flush: DECISION_FLUSH_S,
        finish_erasures: ERASURES_INTERVAL_S,
        renew_scorer: SCORER_RENEWAL * settings.candidate_features_max_age_s,
        try_scoring_again: SCORING_TRIAL_INTERVAL_S,
    }
    if slates is not None:
        repeated[cached.flush] = SLATES_FLUSH_S
    event_metrics = EventMetrics(registry)
    outdate = OutdateSlates(slates, lambda count: metrics.cache_invalidated("event", count))
    record_events, drain = _event_recording(
        settings, registry, event_metrics, event_breaker, outdate, run_aside
    )
    repeated[drain] = DRAIN_INTERVAL_S
    if kafka_probe is not None:
        repeated[lambda: run_aside(lambda: kafka_probe.refresh(KAFKA_PROBE_TIMEOUT_S))] = KAFKA_PROBE_S
    services = ApiServices(
        suggest=Suggest(ranker, on_decision),
        record_events=record_events,
        count_events=event_metrics.events,
        check_health=check,
        propositions=PropositionStore(database),
        users=EntityStore(database, USERS),
        forget_user=forget_user,
        flush_decisions=decisions.flush,
        find_key=keys.find,
        rate_counts=rate_counts,
        is_strained=is_strained,
        is_overrun=lambda: (has_event_loop and rounds.is_overrun) or turns.is_overrun,
        count_shed=resilience.shed,
        is_leaving=lambda: Departure.is_near,
    )
    return services, Background(repeated), registry


def _follow_rounds(rounds: Rounds) -> None:
    """Tells when the event loop of this thread begins to work off what is ready, and when it waits again."""
    loop = gevent.get_hub().loop
    for watcher, action in ((loop.check(), rounds.begin), (loop.prepare(), rounds.end)):
        watcher.priority = loop.MAXPRI
        watcher.start(action)
        _WATCHERS.append(watcher)


_WATCHERS: list[Any] = []  # else they would be collected, and silent


def _event_recording(
    settings: Settings,
    registry: CollectorRegistry,
    metrics: EventMetrics,
    breaker: Breaker,
    on_recorded: Callable[[Sequence[Event]], None],
    run_aside: Callable[[Callable], Any],
) -> tuple[RecordEvents, Callable[[], None]]:
    """What makes events durable, and what brings those in the spool to where they belong."""
    primary = primary_event_log(settings, event_database(settings), run_aside, registry)
    timeout_s = settings.event_primary_timeout_ms / 1_000

    def on_loss(kind: Loss, byte_count: int) -> None:
        log.error("%d bytes of the spool are %s", byte_count, kind)
        metrics.spool_unreadable(kind, byte_count)

    spool = SpoolFolder(settings.spool_dir, settings.spool_max_bytes, on_loss)
    drain_spool = SpoolDrain(spool, primary, DRAIN_BATCH_EVENTS, on_recorded, run_aside)
    guarded = GuardedEventLog(primary, breaker)

    def drain() -> None:
        metrics.spool_drained(drain_spool.run())
        depth = run_aside(spool.depth)
        metrics.spool_holds(depth.bytes, depth.events)

    return RecordEvents(
        GroupCommit(guarded, timeout_s, GROUP_EVENTS, on_recorded),
        GroupCommit(_Aside(spool, run_aside), SPOOL_WAIT_S, GROUP_EVENTS, on_recorded),
    ), drain


class _Aside:
    """An event log whose work does not hold up requests."""

    def __init__(self, event_log: EventLog, run_aside: Callable[[Callable], Any]) -> None:
        self._event_log = event_log
        self._run_aside = run_aside

    def append(self, events: Sequence[Event]) -> Receipt:
        return self._run_aside(lambda: self._event_log.append(events))


def web() -> Flask:
    """The application of one gunicorn worker. Call it after the fork."""
    settings = load_settings()
    configure_logging(settings.log_level)
    wait_cooperatively(settings.database_timeout_ms / 1_000)
    started_s = time.time()
    keeper = KeeperProcess(settings.snapshot_dir)
    keeper.ensure()
    _wait_for_keeper(SnapshotFolder(settings.snapshot_dir), started_s)
    services, background, registry = build_api(settings, gevent.get_hub().threadpool.apply)
    app = create_app(settings, services, registry)
    Overload.watch(services.is_strained, services.is_overrun, services.count_shed)
    atexit.register(services.flush_decisions)
    background.start()
    Background({keeper.ensure: settings.snapshot_refresh_s}).start()
    # What is alive now stays so: looking through it again and again held requests up for 100 ms and more.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return app


def _wait_for_keeper(folder: SnapshotFolder, since_s: float) -> None:
    """Until the keeper has looked for news once, or it takes too long: what is on disk serves then."""
    while time.time() - since_s < KEEPER_SILENCE_S:
        report = folder.last_report()
        if report is not None and report.at_s >= since_s:
            return
        time.sleep(0.05)


def _default_catalog(settings: Settings) -> Catalog:
    return Catalog.of([Proposition(p.proposition_id, p.title, p.category) for p in settings.default_slate])
