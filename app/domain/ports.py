"""What the inner layers need from the outside. Adapters implement these; tests have fakes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.domain.types import Event, Slate, SuggestRequest


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of recorded events: ids that are new, and ids that had been recorded before."""

    recorded_ids: tuple[str, ...]
    duplicate_ids: tuple[str, ...]


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
    def rank(self, request: SuggestRequest, request_id: str, now: datetime) -> Slate:
        """The best slate that this ranker can make.

        Raises:
            PropositionsError: it cannot make any now; ask the next ranker.
        """
