"""The composition root: builds everything from settings, and is the only module that knows every layer.

Feast and XGBoost take seconds to import, so what needs them is imported where it is built.
"""

import atexit
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import gevent
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from flask import Flask
from prometheus_client import CollectorRegistry, start_http_server

from app.adapters import import_loader
from app.adapters.database import batch_database, service_database, wait_cooperatively
from app.adapters.decision_log import PostgresDecisionLog
from app.adapters.embedded import EmbeddedServers
from app.adapters.event_log import PostgresEventLog
from app.adapters.feature_tables import FeatureTables
from app.adapters.import_loader import ImportLoader
from app.adapters.keeper_process import KeeperProcess
from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_client import RedisProbe, connect_redis
from app.adapters.redis_wire import open_wire
from app.adapters.schema_file import SchemaFile
from app.adapters.snapshots import KeeperReport, SnapshotFolder, SnapshotSource
from app.adapters.suggestion_cache import RedisSlateStore
from app.api.factory import ApiServices, create_app
from app.api.health import DependencyStatus
from app.api.logs import configure_logging
from app.api.metrics import ServingMetrics
from app.domain.errors import ConfigurationError, StoreUnavailable
from app.domain.ports import Ranker
from app.domain.types import Proposition, Slate, SuggestRequest
from app.events.follow import follow_log
from app.events.metrics import ProjectorMetrics
from app.events.project import Projector
from app.events.record import RecordEvents
from app.features.catalog import Catalog
from app.features.covisits import CovisitRules
from app.features.ports import Model
from app.features.snapshot import Snapshot
from app.serving.cache import CachedRanker
from app.serving.candidates import CandidateGenerator
from app.serving.decisions import DecisionQueue
from app.serving.keeper import SnapshotKeeper, pause_s
from app.serving.rankers import DefaultRanker, Fallback, ModelRanker, RulesRanker
from app.serving.refresh import Background, LiveModel, LiveSnapshot
from app.serving.scoring import CurrentScorer
from app.serving.suggest import Suggest
from app.settings import Settings, load_settings

log = logging.getLogger(__name__)

FEAST_PROJECT = "propositions"
DECISION_FLUSH_S = 0.5
SLATES_FLUSH_S = 0.02
SCHEMA_INTERVAL_S = 5.0
# Of the time that candidates' features may be old: early enough to be done before it is over.
SCORER_RENEWAL = 0.8
# How long requests wait at most for the interpreter when a thread beside them computes.
SWITCH_INTERVAL_S = 0.001
# Some of a list is not eligible for a request, or on other lists, too.
LIST_LENGTH_PER_BUDGET = 2
# A PostgreSQL that accepts and then never replies is given up after this long; a large catalog takes seconds.
KEEPER_REPLY_S = 60.0
# After this long without a sign of life the keeper counts as stuck, and a starting worker serves without it.
KEEPER_SILENCE_S = 10.0


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


def serve_projector_metrics(settings: Settings) -> ProjectorMetrics:
    """The metrics of this process's projector, on a port of their own if one is set."""
    registry = CollectorRegistry()
    metrics = ProjectorMetrics(registry)
    if settings.project_metrics_port:
        try:
            start_http_server(settings.project_metrics_port, settings.host, registry)
        except OSError as error:
            raise ConfigurationError(
                f"PROJECT_METRICS_PORT={settings.project_metrics_port} cannot be listened on: {error}"
            ) from error
    return metrics


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
    from app.adapters.feature_store import RegistrySchema

    keeper = build_keeper(settings)
    keeper.refresh(time.time())
    if keeper.problem is not None:
        raise StoreUnavailable(keeper.problem)
    RegistrySchema(settings).read()
    SnapshotFolder(settings.snapshot_dir).report(KeeperReport(time.time(), None))
    return keeper.size


def follow_news(settings: Settings, stop: threading.Event) -> None:
    """Publishes changes until stopped, and keeps the feature schema on disk current."""
    wait_cooperatively(KEEPER_REPLY_S)
    keeper, folder = build_keeper(settings), SnapshotFolder(settings.snapshot_dir)
    read_schema = _schema_reader(settings)
    is_first = True
    while not stop.is_set():
        began_s = time.time()
        keeper.refresh(began_s)
        worked_s = time.time() - began_s
        if is_first:
            if not SchemaFile(settings.snapshot_dir).exists:
                read_schema()  # workers wait for the first report, and need the schema to load a model
            Background({read_schema: SCHEMA_INTERVAL_S}).start()
            is_first = False
        folder.report(KeeperReport(time.time(), keeper.problem))
        stop.wait(pause_s(settings.snapshot_refresh_s, worked_s))


def _schema_reader(settings: Settings) -> Callable[[], None]:
    """Brings the schema on disk up to date. Feast is imported with the first call."""
    source = None

    def read() -> None:
        nonlocal source
        from app.adapters.feature_store import RegistrySchema

        source = source or RegistrySchema(settings)
        try:
            source.read()
        except (StoreUnavailable, ConfigurationError) as error:
            log.warning("the feature schema on disk stays as it is: %s", error)

    return read


def build_api(
    settings: Settings, run_aside: Callable[[Callable], Any] = lambda work: work()
) -> tuple[ApiServices, Background, CollectorRegistry]:
    """The services of one web worker, and the background work that keeps them fresh.

    `run_aside` runs what takes long without holding up requests.
    """
    from app.adapters.model_store import ModelStore

    registry = CollectorRegistry()
    metrics = ServingMetrics(registry)
    database = service_database(settings)
    online_store = connect_redis(
        settings.redis_address,
        settings.redis_timeout_ms,
        settings.redis_pool_size,
        cluster=settings.redis_cluster,
    )
    folder = SnapshotFolder(settings.snapshot_dir)
    snapshot = LiveSnapshot(folder, settings.half_lives_s, lambda: metrics.cache_invalidated("catalog"))
    scorer = CurrentScorer(settings.candidate_features_max_age_s, settings.scorer_memory_mb << 20)

    def prepare_scorer(model: Model) -> Callable[[], None]:
        prepared = scorer.prepared(model, snapshot.current, time.time())
        return lambda: scorer.adopt(prepared)

    model = LiveModel(
        ModelStore(settings.model_dir, settings.half_lives_s),
        SchemaFile(settings.snapshot_dir),
        metrics.model_load,
        run_aside,
        prepare_scorer,
    )
    online_probe = RedisProbe(online_store)
    decisions = DecisionQueue(
        PostgresDecisionLog(database), settings.decision_queue_size, metrics.decisions_dropped
    )

    def current_snapshot() -> Snapshot:
        return snapshot.current

    generator = CandidateGenerator(settings.candidate_budget)

    def renew_scorer() -> None:
        run_aside(lambda: scorer.renew(model.current, snapshot.current, time.time()))

    by_model: Ranker = ModelRanker(
        lambda: model.current,
        current_snapshot,
        RedisOnlineReader(online_store, FEAST_PROJECT),
        generator,
        scorer,
    )
    slates: RedisSlateStore | None = None
    if settings.suggest_cache_ttl_s > 0:
        slates = RedisSlateStore(open_wire(online_store), settings.suggest_cache_ttl)
        by_model = cached = CachedRanker(
            by_model,
            slates,
            lambda: model.current,
            current_snapshot,
            settings.suggest_cache_ttl,
            metrics.cache_request,
        )
    rules = RulesRanker(current_snapshot, generator, settings.rules_weights)
    default = DefaultRanker(_default_catalog(settings), current_snapshot)
    ranker = Fallback(by_model, Fallback(rules, default, metrics.fell_back), metrics.fell_back)

    def on_decision(request: SuggestRequest, slate: Slate) -> None:
        metrics.slate_served(slate)
        decisions.put(request, slate)

    def check() -> Mapping[str, DependencyStatus]:
        report = folder.last_report()
        is_kept = report is not None and time.time() - report.at_s < KEEPER_SILENCE_S
        return {
            "postgres": DependencyStatus(
                is_kept and report.problem is None,
                (report.problem or "catalog is current")
                if is_kept
                else "the keeper of the snapshot is silent",
            ),
            "redis": DependencyStatus(online_probe.problem is None, online_probe.problem or "answers"),
            "model": DependencyStatus(
                model.problem is None and model.current is not None,
                model.problem or f"version {model.current.version}",
            ),
            "snapshot": DependencyStatus(
                snapshot.is_loaded, f"{len(snapshot.current.catalog)} propositions in memory"
            ),
        }

    for warm_up in (snapshot.refresh, model.refresh, online_probe.refresh):
        warm_up()
    repeated = {
        snapshot.refresh: settings.snapshot_refresh_s,
        model.refresh: settings.snapshot_refresh_s,
        online_probe.refresh: settings.snapshot_refresh_s,
        decisions.flush: DECISION_FLUSH_S,
        renew_scorer: SCORER_RENEWAL * settings.candidate_features_max_age_s,
    }
    if slates is not None:
        repeated[cached.flush] = SLATES_FLUSH_S
    services = ApiServices(
        suggest=Suggest(ranker, on_decision),
        record_events=RecordEvents(
            PostgresEventLog(database, settings.context_fields),
            slates,
            lambda count: metrics.cache_invalidated("event", count),
        ),
        check_health=check,
        flush_decisions=decisions.flush,
    )
    return services, Background(repeated), registry


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
