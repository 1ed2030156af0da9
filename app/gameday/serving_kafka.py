"""The broker of the game day of serving: it goes away while events come in beside the slates."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.adapters.database import batch_database
from app.gameday.accounts import last_received_at, stored_counts
from app.gameday.broker import Broker, gone
from app.gameday.judging import Moments, Phase
from app.gameday.senders import Senders, Sent, made_up_events
from app.gameday.serving_data import PROPOSITIONS, USERS
from app.gameday.serving_world import World
from app.gameday.stack import GamedayFailed, wait_until

EVENTS_PER_S = 30.0
DRAINED_WITHIN_S = 30.0
GIVEN_UP_AFTER_S = 60.0


@dataclass
class KafkaSide:
    world: World
    broker: Broker
    sent: Sent | None = None
    back_at: datetime | None = None
    waiting: set[str] = field(default_factory=set)
    _senders: Senders | None = None

    @property
    def fault(self) -> str:
        return "is killed" if self.broker.is_durable else "is stopped with SIGSTOP"

    @contextmanager
    def events(self) -> Iterator[None]:
        """Events come in beside the slates during the block; afterwards all are acknowledged."""
        self._senders = Senders(
            self.world.stack.port, made_up_events(self.world.seed, "kafka", USERS, PROPOSITIONS), EVENTS_PER_S
        )
        self._senders.start()
        try:
            yield
        finally:
            self._senders.stop()
            self.sent = self._senders.take()

    @contextmanager
    def gone(self, _: World, moments: Moments) -> Iterator[None]:
        with gone(self.broker):
            yield
        self.back_at, self.waiting = datetime.now(UTC), self._senders.acknowledged()

    def judge(self, phase: Phase) -> None:
        """Adds to the phase what became of the events."""
        acknowledged = self.sent.acknowledged
        database = batch_database(self.world.stack.settings())
        with suppress(GamedayFailed):  # what is missing then is lost
            wait_until(
                lambda: acknowledged <= stored_counts(database).keys(), GIVEN_UP_AFTER_S, "events are missing"
            )
        stored, last_at = stored_counts(database), last_received_at(database, self.waiting)
        database.close()
        drained_s = max((last_at - self.back_at).total_seconds(), 0.0) if last_at else 0.0
        lost = sum(event_id not in stored for event_id in acknowledged)
        phase.figures = {"events": len(acknowledged), "lost": lost, "drained_s": drained_s}
        if not acknowledged:
            phase.broken.append("no event was acknowledged")
        if lost:
            phase.broken.append(f"{lost} acknowledged events are not in PostgreSQL")
        elif drained_s > DRAINED_WITHIN_S:
            phase.broken.append(f"drained after {drained_s:.0f} s")
        if failed := self.sent.unreachable + self.sent.server_errors:
            phase.broken.append(f"{failed} requests with events failed")
