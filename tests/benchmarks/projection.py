"""How many events a second one projector folds into PostgreSQL and Redis, from a log that waits for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

import numpy as np

from app.adapters.database import batch_database
from app.adapters.event_log import PostgresEventLog
from app.bootstrap.projector import build_projector, prepare_projector_process
from app.domain.context import complete_context
from app.domain.types import Event, EventType
from app.settings import Settings
from tests.benchmarks.data import DEVICES, PAGES, Size, proposition_ids, user_ids

# A commit of the log: what some users did with their slates.
SLATES_PER_COMMIT, SLATE_LENGTH = 10, 10
CLICKED_SHARE = 0.12


@dataclass(frozen=True, slots=True)
class Projection:
    events: int
    took_s: float

    @property
    def events_per_s(self) -> float:
        return self.events / self.took_s


def measure_projection(settings: Settings, size: Size, events: int, seed: int = 17) -> Projection:
    """Folds a third of the events to warm up, then the rest on the clock."""
    log = PostgresEventLog(batch_database(settings), settings.context_fields)
    commits = list(_commits(size, events, np.random.default_rng(seed)))
    prepare_projector_process()
    projector, _ = build_projector(settings)
    third = max(len(commits) // 3, 1)
    for commit in commits[:third]:
        log.append(commit)
    projector.run()
    for commit in commits[third:]:
        log.append(commit)
    began_s = monotonic()
    folded = projector.run()
    return Projection(folded, monotonic() - began_s)


def _commits(size: Size, events: int, rng: np.random.Generator) -> Iterator[list[Event]]:
    now = datetime.now(UTC)
    for number in range(max(events // (SLATES_PER_COMMIT * SLATE_LENGTH), 2)):
        commit = []
        for slate in range(SLATES_PER_COMMIT):
            user_id = user_ids(rng.integers(0, size.users, 1))[0].decode()
            page, device = rng.choice(PAGES), rng.choice(DEVICES)
            context = complete_context({"page": str(page), "device": str(device)}, now, UTC)
            shown = proposition_ids(rng.integers(0, size.propositions, SLATE_LENGTH))
            for position, proposition_id in enumerate(shown.tolist()):
                is_click = rng.random() < CLICKED_SHARE
                commit.append(
                    Event(
                        event_id=f"{number}-{slate}-{position}",
                        event_type=EventType.CLICK if is_click else EventType.IMPRESSION,
                        proposition_id=proposition_id.decode(),
                        occurred_at=now,
                        context=context,
                        user_id=user_id,
                    )
                )
        yield commit
