"""The life of data: maintenance, retention, and forgetting people."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import redis

from app.adapters.database import Database, batch_database
from app.adapters.erasures import PostgresErasures
from app.adapters.maintenance import PostgresMaintenance
from app.adapters.online_eraser import RedisEraser
from app.adapters.redis_client import ClusterClient, open_redis
from app.adapters.spool import SpoolFolder
from app.bootstrap.stores import FEAST_PROJECT
from app.domain.errors import StoreUnavailable
from app.life.forget import ForgetUser
from app.life.maintain import Done, Retention, maintain
from app.settings import Settings

# Who forgets a person waits for the segment that is being drained, and looks more often than the drain pauses.
SPOOL_TURN_WAIT_S, SPOOL_TURN_POLL_S = 5.0, 0.02


def build_forget_user(settings: Settings) -> ForgetUser:
    online_store = open_redis(settings, settings.redis_batch_timeout_ms)
    return forget_user_of(settings, batch_database(settings), online_store)


def forget_user_of(
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
