"""What the inner layers need from the outside. Adapters implement these; tests have fakes of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.domain.budget import TimeBudget
from app.domain.types import Event, Slate, StoredIn, SuggestRequest


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of recorded events: ids that are new, and ids that had been recorded before.

    Only PostgreSQL knows all ids: elsewhere a duplicate is one that is repeated within the call.
    """

    recorded_ids: tuple[str, ...]
    duplicate_ids: tuple[str, ...]
    stored_in: StoredIn


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an import changed: new or changed entities, new events, and events that were known."""

    users: int
    propositions: int
    events: int
    duplicate_events: int


class EventLog(Protocol):
    def append(self, events: Sequence[Event]) -> Receipt:
        """Makes all events durable, or none. An `event_id` is stored once, however often it is sent.

        Raises:
            StoreUnavailable: nothing was stored.
        """


class DecisionLog(Protocol):
    def append(self, decisions: Sequence[tuple[SuggestRequest, Slate]]) -> None:
        """Stores decisions.

        Raises:
            StoreUnavailable: nothing was stored.
        """


class Ranker(Protocol):
    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        """The best slate that this ranker can make within the budget.

        Raises:
            PropositionsError: it cannot make any now, or not in time; ask the next ranker.
        """


@dataclass(frozen=True, slots=True)
class Kept:
    """What a store has for a user and a key: the slate, and whether events came since it was ranked.

    `epoch` counts the user's events; a slate is kept under the epoch that was read before it was ranked.
    """

    epoch: int
    slate: Slate | None
    is_outdated: bool = False


class SlateStore(Protocol):
    def find(self, user_id: str | None, key: str, timeout_s: float) -> Kept:
        """Raises StoreUnavailable when it does not answer in time."""

    def keep(self, user_id: str | None, key: str, epoch: int, slate: Slate) -> None:
        """Has a slate stored with the next `flush`; drops it if too many wait."""

    def flush(self) -> None:
        """Stores what waits. What cannot be stored now is dropped.

        Raises:
            StoreUnavailable: it does not answer.
        """

    def forget(self, user_ids: Collection[str]) -> None:
        """Makes all kept slates of these users outdated, also those that are being ranked.

        Raises:
            StoreUnavailable: it does not answer; what is kept may be served until its time is up.
        """
