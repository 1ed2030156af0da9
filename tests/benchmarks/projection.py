"""What events cost from Kafka's message to the online features, and how many a projector folds a second."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic, process_time
from uuid import UUID

import numpy as np

from app.adapters.database import batch_database
from app.adapters.event_log import PostgresEventLog
from app.adapters.maintenance import FEATURE_KEYS
from app.bootstrap.projector import build_projector, prepare_projector_process
from app.domain.context import complete_context
from app.domain.types import Event, EventType
from app.events.message import SCHEMA_HEADER, SCHEMA_VERSION, decode, encode
from app.events.project import Projector
from app.features.slots import COVISIT_SLOT
from tests.benchmarks.data import DEVICES, PAGES, Size, proposition_ids, user_ids
from tests.benchmarks.postgres_use import postgres_use
from tests.benchmarks.service import tree_cpu_s
from tests.benchmarks.stores import Stores

# A commit of the log: what some users did with their slates.
SLATES_PER_COMMIT, SLATE_LENGTH = 10, 10
CLICKED_SHARE = 0.12
TABLES = ("events", "event_keys", *FEATURE_KEYS)
HEADERS = {SCHEMA_HEADER: SCHEMA_VERSION}

Commit = Sequence[Event]


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of the clock, and CPU seconds of this process and of the stores."""

    took_s: float
    own_s: float
    postgres_s: float
    redis_s: float


@dataclass(frozen=True, slots=True)
class Projection:
    """`events` brought in, and folded by one process that has all slots; what is written is of both.

    `alone_events_per_s`: by a process that has one slot only, the slowest of them.
    """

    events: int
    brought_in: Spent
    folded: Spent
    alone_events_per_s: float
    message_bytes: int
    wal_bytes: int
    table_bytes: int
    page_writes: int

    @property
    def events_per_s(self) -> float:
        return self.events / self.folded.took_s


def measure_projection(stores: Stores, size: Size, events: int, seed: int = 17) -> Projection:
    """Folds a third of the events to warm up, the rest on the clock, and a third more slot by slot."""
    settings = stores.settings
    log = PostgresEventLog(batch_database(settings), settings.context_fields)
    commits = list(_commits(size, events * 4 // 3, np.random.default_rng(seed)))
    quarter = max(len(commits) // 4, 1)
    warm_up, measured, alone = commits[:quarter], commits[quarter:-quarter], commits[-quarter:]
    prepare_projector_process()
    projector, _ = build_projector(settings)
    _bring_in(log, [[encode(event) for event in commit] for commit in warm_up])
    projector.run()
    messages = [[encode(event) for event in commit] for commit in measured]
    with postgres_use(settings) as use:
        before = use.written(TABLES)
        brought_in = _spent(stores, lambda: _bring_in(log, messages))
        folded = _spent(stores, projector.run)
        written = use.written(TABLES) - before
    _bring_in(log, [[encode(event) for event in commit] for commit in alone])
    return Projection(
        events=sum(map(len, measured)),
        brought_in=brought_in,
        folded=folded,
        alone_events_per_s=min(_alone_events_per_s(projector, {slot}) for slot in (0, COVISIT_SLOT)),
        message_bytes=sum(len(message) for commit in messages for message in commit),
        wal_bytes=written.wal_bytes,
        table_bytes=written.table_bytes,
        page_writes=written.page_writes,
    )


def summarize_projection(measured: Projection) -> Mapping[str, float]:
    events, both = measured.events, (measured.brought_in, measured.folded)
    return {
        "projector_events_per_s": measured.events_per_s,
        "projector_one_slot_events_per_s": measured.alone_events_per_s,
        "intake_cpu_ms_per_event": measured.brought_in.own_s * 1e3 / events,
        "log_events_per_s": events / measured.brought_in.took_s,
        "postgres_cpu_ms_per_event": sum(spent.postgres_s for spent in both) * 1e3 / events,
        "redis_cpu_ms_per_event": sum(spent.redis_s for spent in both) * 1e3 / events,
        "kafka_bytes_per_event": measured.message_bytes / events,
        "postgres_bytes_per_event": measured.table_bytes / events,
        "postgres_wal_bytes_per_event": measured.wal_bytes / events,
        "postgres_page_writes_per_event": measured.page_writes / events,
    }


def _bring_in(log: PostgresEventLog, messages: Sequence[Sequence[bytes]]) -> None:
    """As the consumer of Kafka's topic does, a commit at a time."""
    for commit in messages:
        log.append([decode(message, HEADERS) for message in commit])


def _alone_events_per_s(projector: Projector, slots: Collection[int]) -> float:
    began_s, total, has_more = monotonic(), 0, True
    while has_more:
        count, has_more = projector.step(slots)
        total += count
    return total / (monotonic() - began_s)


def _spent(stores: Stores, work: Callable[[], object]) -> Spent:
    before = _clocks(stores)
    work()
    return Spent(*(after - earlier for after, earlier in zip(_clocks(stores), before, strict=True)))


def _clocks(stores: Stores) -> Sequence[float]:
    return (
        monotonic(),
        process_time(),
        tree_cpu_s(stores.pid("postgres")),
        tree_cpu_s(stores.pid("redis")),
    )


def _commits(size: Size, events: int, rng: np.random.Generator) -> Iterator[Commit]:
    now = datetime.now(UTC)
    for _ in range(max(events // (SLATES_PER_COMMIT * SLATE_LENGTH), 4)):
        commit = []
        for _ in range(SLATES_PER_COMMIT):
            user_id = user_ids(rng.integers(0, size.users, 1))[0].decode()
            page, device = rng.choice(PAGES), rng.choice(DEVICES)
            context = complete_context({"page": str(page), "device": str(device)}, now, UTC)
            shown = proposition_ids(rng.integers(0, size.propositions, SLATE_LENGTH))
            request_id = str(UUID(bytes=rng.bytes(16)))
            for position, proposition_id in enumerate(shown.tolist(), start=1):
                is_click = rng.random() < CLICKED_SHARE
                commit.append(
                    Event(
                        event_id=str(UUID(bytes=rng.bytes(16))),
                        event_type=EventType.CLICK if is_click else EventType.IMPRESSION,
                        proposition_id=proposition_id.decode(),
                        occurred_at=now,
                        context=context,
                        user_id=user_id,
                        request_id=request_id,
                        position=position,
                    )
                )
        yield commit
