"""The process that folds events into features, and brings in what Kafka has."""

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime

from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from app.adapters.database import batch_database, event_database
from app.adapters.event_log import PostgresEventLog
from app.adapters.feature_tables import FeatureTables
from app.adapters.kafka_client import MAX_DEAD_LETTER_BYTES, consumer_config, producer_config
from app.adapters.kafka_intake import KafkaIntake
from app.adapters.kafka_metrics import IntakeMetrics, SenderMetrics
from app.adapters.kafka_sender import KafkaSender
from app.adapters.outcome_tables import OutcomeTables
from app.domain.errors import ConfigurationError
from app.events.follow import follow_log
from app.events.message import decode
from app.events.metrics import OutcomeMetrics, ProjectorMetrics
from app.events.outcomes import Outcomes
from app.events.project import Projector
from app.features.covisits import CovisitRules
from app.serving.refresh import Background
from app.settings import Settings

log = logging.getLogger(__name__)

# New objects between two garbage collections; 700 by default.
PROJECTOR_GC_ALLOCATIONS = 200_000
OUTCOMES_INTERVAL_S = 2.0

OnFolded = Callable[[datetime, datetime], None]


def prepare_projector_process() -> None:
    """A projector remembers many small objects without cycles: looking for these took a tenth of its time."""
    gc.set_threshold(PROJECTOR_GC_ALLOCATIONS)


def build_projector(
    settings: Settings,
    metrics: ProjectorMetrics | None = None,
    on_folded: OnFolded = lambda after, until: None,
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
        on_folded,
    ), tables


def follow_events(
    settings: Settings, metrics: ProjectorMetrics, on_folded: OnFolded, stop: threading.Event
) -> None:
    """Folds this process's share of what comes until `stop` is set, or a store is down."""
    projector, tables = build_projector(settings, metrics, on_folded)
    with tables.leases() as leases:
        if leases is None:
            log.info("another process is the only projector for now: standing by")
            return
        tables.prepare()
        follow_log(projector, leases, metrics, settings.project_poll_s, stop)


def serve_metrics(settings: Settings) -> CollectorRegistry:
    """The metrics of a process that follows events, on a port of their own if one is set."""
    registry = CollectorRegistry()
    disable_created_metrics()  # a series more for each one that counts
    if settings.project_metrics_port:
        try:
            start_http_server(settings.project_metrics_port, settings.host, registry)
        except OSError as error:
            raise ConfigurationError(
                f"PROJECT_METRICS_PORT={settings.project_metrics_port} cannot be listened on: {error}"
            ) from error
    return registry


def count_outcomes(settings: Settings, registry: CollectorRegistry) -> OnFolded:
    """What counts the outcomes of events that are folded, in a thread beside; nothing does where nobody could read it."""
    outcomes = Outcomes(OutcomeTables(batch_database(settings)), OutcomeMetrics(registry))
    if not settings.project_metrics_port:
        return lambda after, until: None
    Background({outcomes.refresh: OUTCOMES_INTERVAL_S}).start()
    return outcomes.folded


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
