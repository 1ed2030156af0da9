"""The composition root: builds everything from settings, and is the only module that knows every layer.

Feast and XGBoost take seconds to import, so what needs them is imported where it is built.
"""

import atexit
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from flask import Flask
from prometheus_client import CollectorRegistry

from app.adapters import import_loader
from app.adapters.database import batch_database, service_database, wait_cooperatively
from app.adapters.decision_log import PostgresDecisionLog
from app.adapters.embedded import EmbeddedServers
from app.adapters.event_log import PostgresEventLog
from app.adapters.feature_tables import FeatureTables
from app.adapters.import_loader import ImportLoader
from app.adapters.redis_client import RedisProbe, connect_redis
from app.adapters.snapshots import SnapshotFile, SnapshotSource
from app.api.factory import ApiServices, create_app
from app.api.health import DependencyStatus
from app.api.logs import configure_logging
from app.api.metrics import ServingMetrics
from app.domain.catalog import Catalog
from app.domain.types import Proposition, Slate, SuggestRequest
from app.events.project import Projector
from app.features.covisits import CovisitRules
from app.serving.decisions import DecisionQueue
from app.serving.rankers import DefaultRanker, Fallback, ModelRanker, RulesRanker
from app.serving.refresh import Background, LiveModel, LiveSnapshot
from app.serving.suggest import Suggest
from app.settings import Settings, load_settings

FEAST_PROJECT = "propositions"
DECISION_FLUSH_S = 0.5


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


def build_projector(settings: Settings) -> tuple[Projector, FeatureTables]:
    from app.adapters.feature_store import open_online_writer

    tables = FeatureTables(batch_database(settings))
    return Projector(
        tables,
        open_online_writer(settings),
        settings.half_lives_s,
        CovisitRules(settings.covisit_window_s, settings.covisit_half_life_s),
        settings.project_batch_events,
    ), tables


def build_api(settings: Settings) -> tuple[ApiServices, Background, CollectorRegistry]:
    """The services of one web worker, warm, and the background work that keeps them so."""
    from app.adapters.feature_store import RegistrySchema
    from app.adapters.model_store import ModelStore
    from app.adapters.online_reader import RedisOnlineReader

    registry = CollectorRegistry()
    metrics = ServingMetrics(registry)
    database = service_database(settings)
    online_store = connect_redis(settings.redis_address, settings.redis_timeout_ms, settings.redis_pool_size)
    models = ModelStore(settings.model_dir, settings.half_lives_s)

    snapshot = LiveSnapshot(
        SnapshotSource(database), SnapshotFile(settings.snapshot_dir), settings.half_lives_s
    )
    model = LiveModel(models, RegistrySchema(settings), metrics.model_load)
    online_probe = RedisProbe(online_store)
    decisions = DecisionQueue(
        PostgresDecisionLog(database), settings.decision_queue_size, metrics.decisions_dropped
    )

    rules = RulesRanker(lambda: snapshot.current, settings.rules_weights)
    by_model = ModelRanker(
        lambda: model.current,
        lambda: snapshot.current,
        RedisOnlineReader(online_store, FEAST_PROJECT),
        rules,
        settings.candidate_budget,
    )
    default = DefaultRanker(_default_catalog(settings), lambda: snapshot.current)
    ranker = Fallback(by_model, Fallback(rules, default, metrics.fell_back), metrics.fell_back)

    def on_decision(request: SuggestRequest, slate: Slate) -> None:
        metrics.slate_served(slate)
        decisions.put(request, slate)

    def check() -> Mapping[str, DependencyStatus]:
        return {
            "postgres": DependencyStatus(snapshot.problem is None, snapshot.problem or "catalog is current"),
            "redis": DependencyStatus(online_probe.problem is None, online_probe.problem or "answers"),
            "model": DependencyStatus(
                model.problem is None and model.current is not None,
                model.problem or f"version {model.current.version}",
            ),
            "snapshot": DependencyStatus(
                snapshot.is_loaded, f"{len(snapshot.current.catalog)} propositions in memory"
            ),
        }

    for warm_up in (snapshot.refresh, snapshot.save, model.refresh, online_probe.refresh):
        warm_up()
    background = Background(
        {
            snapshot.refresh: settings.snapshot_refresh_s,
            snapshot.save: settings.snapshot_save_s,
            model.refresh: settings.snapshot_refresh_s,
            online_probe.refresh: settings.snapshot_refresh_s,
            decisions.flush: DECISION_FLUSH_S,
        }
    )
    services = ApiServices(
        suggest=Suggest(ranker, on_decision),
        event_log=PostgresEventLog(database, settings.context_fields),
        check_health=check,
        flush_decisions=decisions.flush,
    )
    return services, background, registry


def web() -> Flask:
    """The application of one gunicorn worker. Call it after the fork."""
    settings = load_settings()
    configure_logging(settings.log_level)
    wait_cooperatively(settings.database_timeout_ms / 1_000)
    services, background, registry = build_api(settings)
    app = create_app(settings, services, registry)
    atexit.register(services.flush_decisions)
    background.start()
    return app


def _default_catalog(settings: Settings) -> Catalog:
    return Catalog([Proposition(p.proposition_id, p.title, p.category) for p in settings.default_slate])
