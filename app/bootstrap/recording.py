"""How events become durable: at once where they belong, else in the spool."""

import atexit
import logging
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from app.adapters.database import Database
from app.adapters.event_log import PostgresEventLog
from app.adapters.kafka_client import producer_config
from app.adapters.kafka_event_log import KafkaEventLog
from app.adapters.kafka_metrics import SenderMetrics
from app.adapters.kafka_sender import KafkaSender
from app.adapters.spool import Loss, SpoolFolder
from app.api.metrics import EventMetrics
from app.domain.ports import Breaker, EventLog, Receipt
from app.domain.types import Event
from app.events.commit import GroupCommit
from app.events.drain import SpoolDrain
from app.events.guard import GuardedEventLog
from app.events.message import SCHEMA_HEADER, SCHEMA_VERSION, encode
from app.events.record import RecordEvents
from app.settings import Settings

log = logging.getLogger(__name__)

# Events that share a commit at most, unless a single request brings more.
GROUP_EVENTS = 1_000
# There is nowhere to go from the spool: a disk that stalls is waited for.
SPOOL_WAIT_S = 2.0
# Live events wait for a batch's commit: at some 50 us per event that is a small part of their timeout.
DRAIN_BATCH_EVENTS = 250


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


def event_recording(
    settings: Settings,
    database: Database,
    registry: CollectorRegistry,
    metrics: EventMetrics,
    breaker: Breaker,
    on_recorded: Callable[[Sequence[Event]], None],
    run_aside: Callable[[Callable], Any],
) -> tuple[RecordEvents, Callable[[], None]]:
    """What makes events durable, and what brings those in the spool to where they belong."""
    primary = primary_event_log(settings, database, run_aside, registry)
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
