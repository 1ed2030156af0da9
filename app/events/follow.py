"""A projector that follows the log, together with any number of others."""

import threading
import time
from collections.abc import Collection
from typing import Protocol

from app.events.metrics import ProjectorMetrics
from app.events.project import Projector
from app.features.slots import COVISIT_SLOT

# A slot that changes hands waits for its new owner to look; so do changed profiles.
BALANCE_S = 0.5


class Leases(Protocol):
    """See `app.adapters.slot_leases.SlotLeases`."""

    def balance(self) -> Collection[int]: ...


def follow_log(
    projector: Projector, leases: Leases, metrics: ProjectorMetrics, poll_s: float, stop: threading.Event
) -> None:
    """Folds what comes into the slots that are leased, until `stop` is set: then it ends after its batch.

    Raises:
        StoreUnavailable: PostgreSQL does not answer; the leases may be lost.
    """
    balanced_s, slots = -BALANCE_S, frozenset()
    while not stop.is_set():
        if time.monotonic() - balanced_s >= BALANCE_S:
            slots, balanced_s = leases.balance(), time.monotonic()
            metrics.owns(len(slots))
            if COVISIT_SLOT in slots:
                projector.write_facts()
        has_more = bool(slots) and projector.step(slots)[1]
        if not projector.has_online_store:
            return  # the feature repo may be applied by now
        if not has_more:
            stop.wait(poll_s)
    metrics.owns(0)
