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
# One click changes some twenty lists of neighbours, many clicks often the same ones: they are folded together, so
# that counters, which cost little, need not wait for them.
COVISIT_INTERVAL_S = 0.5


class Leases(Protocol):
    """See `app.adapters.slot_leases.SlotLeases`."""

    def balance(self) -> Collection[int]: ...


def follow_log(
    projector: Projector,
    leases: Leases,
    metrics: ProjectorMetrics,
    poll_s: float,
    stop: threading.Event,
    covisit_interval_s: float = COVISIT_INTERVAL_S,
) -> None:
    """Folds what comes into the slots that are leased, until `stop` is set: then it ends after its batch.

    Raises:
        StoreUnavailable: PostgreSQL does not answer; the leases may be lost.
    """
    balanced_s = covisited_s = float("-inf")
    slots: frozenset[int] = frozenset()
    has_more_covisits = False
    while not stop.is_set():
        if time.monotonic() - balanced_s >= BALANCE_S:
            slots, balanced_s = frozenset(leases.balance()), time.monotonic()
            metrics.owns(len(slots))
            if COVISIT_SLOT in slots:
                projector.write_facts()
        counter_slots = slots - {COVISIT_SLOT}
        has_more = bool(counter_slots) and projector.step(counter_slots)[1]
        is_due = has_more_covisits or time.monotonic() - covisited_s >= covisit_interval_s
        if COVISIT_SLOT in slots and is_due:
            covisited_s = time.monotonic()
            has_more_covisits = projector.step({COVISIT_SLOT})[1]
        if not projector.has_online_store:
            return  # the feature repo may be applied by now
        if not (has_more or has_more_covisits):
            stop.wait(poll_s)
    metrics.owns(0)
