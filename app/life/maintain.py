"""What keeps the tables in shape: room for what comes, and an end for what is old."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Retention:
    """How long data are kept, in days; 0: for ever. Whole months go, so it may be up to a month longer."""

    event_days: int
    decision_days: int
    forgotten_days: int


@dataclass(frozen=True, slots=True)
class Done:
    what: str
    count: int


class Tables(Protocol):
    """What a maintained store can do; see `app.adapters.maintenance`. Each call may be repeated."""

    def make_partitions_ahead(self) -> int: ...
    def keep_since(self, log: str, moment: datetime) -> None: ...
    def drop_months(self, log: str, before: datetime) -> list[str]: ...
    def empty_default(self, log: str, kept_since: datetime | None) -> int: ...
    def delete_event_keys(self, before: datetime) -> int: ...
    def delete_superseded_features(self, before: datetime) -> int: ...
    def delete_forgotten(self, before: datetime) -> int: ...


def maintain(
    tables: Tables,
    finish_erasures: Callable[[datetime], int],
    retention: Retention,
    max_future: timedelta,
    now: datetime,
) -> Iterator[Done]:
    """Does one thing after the other and tells of each.

    Feature rows and the ids of events are kept as long as events are. Of superseded feature rows those go
    that no kept event could be joined with; the newest of an entity never goes. An event may lie
    `max_future` ahead of its receipt, so ids are kept that much longer.

    Raises:
        StoreUnavailable: a store does not answer, or a table stayed locked. The next run goes on.
    """
    yield Done("partitions made ahead", tables.make_partitions_ahead())
    events_since = kept_since(now, retention.event_days)
    for log, since in (("events", events_since), ("decisions", kept_since(now, retention.decision_days))):
        if since is not None:
            # First of all nothing older may come in any more.
            tables.keep_since(log, since)
            for partition in tables.drop_months(log, since):
                yield Done(f"dropped {partition}", 1)
        yield Done(f"{log} moved to their months", tables.empty_default(log, since))
    if events_since is not None:
        yield Done("ids of events deleted", tables.delete_event_keys(events_since - max_future))
        tables.keep_since("features", events_since)
        yield Done("superseded feature rows deleted", tables.delete_superseded_features(events_since))
    if retention.forgotten_days:
        horizon = now - timedelta(days=retention.forgotten_days)
        yield Done("digests of forgotten users deleted", tables.delete_forgotten(horizon))
    yield Done("erasures finished", finish_erasures(now))


def kept_since(now: datetime, days: int) -> datetime | None:
    """The beginning of the month in which the oldest kept day lies; None with 0 days.

    >>> from datetime import UTC
    >>> kept_since(datetime(2026, 5, 15, 12, tzinfo=UTC), 30)
    datetime.datetime(2026, 4, 1, 0, 0, tzinfo=datetime.timezone.utc)
    """
    if not days:
        return None
    return (now - timedelta(days=days)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
