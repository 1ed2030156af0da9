"""The entity space in slots, each folded by one process at a time and as far as its own mark.

An entity's slot follows from its view and key alone, so all processes and all releases agree on it. What
users last interacted with and what is visited together share one slot more: a pair of propositions
needs its user's list in order.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from zlib import crc32

from app.features.recent import RECENT_VIEW

COUNTER_SLOTS = 8
COVISIT_SLOT = COUNTER_SLOTS
ALL_SLOTS = frozenset(range(COUNTER_SLOTS + 1))


def slot_of(view: str, key: str) -> int:
    """The slot of an entity in a folded view.

    >>> slot_of("user_activity", "u-1"), slot_of("user_recent", "u-1")
    (0, 8)
    """
    return COVISIT_SLOT if view == RECENT_VIEW else crc32(f"{view}\0{key}".encode()) % COUNTER_SLOTS


def chooser(slots: Collection[int]) -> Callable[[str, str], bool] | None:
    """Whether a view and key lie in `slots`; None if every one does."""
    if set(slots) >= ALL_SLOTS:
        return None
    return lambda view, key: slot_of(view, key) in slots


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the event log is folded into the feature tables, by slot.

    `generation` changes with every rebuild; `states_version` whenever what a process remembers of states
    is to be forgotten.
    """

    generation: str
    needs_rebuild: bool
    states_version: int
    folded_until: Mapping[int, datetime]

    def hindmost(self) -> tuple[frozenset[int], datetime, datetime | None]:
        """The slots that are folded least far, how far that is, and where the next ones are if there are any."""
        moments = sorted(set(self.folded_until.values()))
        slots = frozenset(slot for slot, moment in self.folded_until.items() if moment == moments[0])
        return slots, moments[0], moments[1] if len(moments) > 1 else None

    def moved(self, slots: Collection[int], moment: datetime) -> "Progress":
        return replace(self, folded_until={**self.folded_until, **dict.fromkeys(slots, moment)})

    def mark(self, slot: int) -> str:
        """What tells of a slot how far it is, and in which database."""
        return f"{self.generation} {self.folded_until[slot].isoformat()}"

    def known_until(self, mark: str | None) -> datetime | None:
        """The moment of a mark of this generation; None of any other, or of what is no mark."""
        generation, _, moment = (mark or "").partition(" ")
        try:
            return datetime.fromisoformat(moment) if generation == self.generation else None
        except ValueError:
            return None
