"""What the inner layers need from the outside. Adapters implement these; tests have fakes of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from app.domain.budget import TimeBudget
from app.domain.types import Event, Proposition, Slate, StoredIn, SuggestRequest, User

Entity = TypeVar("Entity", User, Proposition)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of recorded events: ids that are new, and ids that had been recorded before.

    Only PostgreSQL knows all ids: elsewhere a duplicate is one that is repeated within the call. Dropped
    are events of people who were forgotten since, and those older than events are kept.
    """

    recorded_ids: tuple[str, ...]
    duplicate_ids: tuple[str, ...]
    stored_in: StoredIn
    dropped_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an import changed: new or changed entities, new events, and events that were known or are not kept."""

    users: int
    propositions: int
    events: int
    duplicate_events: int


class Breaker(Protocol):
    """Stands before a dependency. While that fails again and again, it raises LeftAlone at once."""

    @property
    def state(self) -> str:
        """closed, opened or half-opened."""

    def guard(self) -> AbstractContextManager[None]: ...
    def call(self, work: Callable[[], T]) -> T: ...
    def probe(self, work: Callable[[], object]) -> None: ...


class Unguarded:
    """A `Breaker` that never opens."""

    state = "closed"

    def guard(self) -> AbstractContextManager[None]:
        return nullcontext()

    def call(self, work: Callable[[], T]) -> T:
        return work()

    def probe(self, work: Callable[[], object]) -> None:
        pass


UNGUARDED = Unguarded()


class EventLog(Protocol):
    def append(self, events: Sequence[Event]) -> Receipt:
        """Makes all events durable, or none. An `event_id` is stored once, however often it is sent.

        Raises:
            StoreUnavailable: nothing was stored.
        """


@dataclass(frozen=True, slots=True)
class Upserted:
    """What became of entities, by id: each id is in one of the three."""

    created_ids: tuple[str, ...] = ()
    changed_ids: tuple[str, ...] = ()
    unchanged_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored(Generic[Entity]):
    """An entity, and when it was changed last: that moment names its version."""

    entity: Entity
    updated_at: datetime


class EntityStore(Protocol[Entity]):
    """Users or propositions. Every method raises StoreUnavailable when nothing was stored or found out."""

    def upsert(self, entities: Sequence[Entity]) -> Upserted:
        """Makes these entities what is stored under their ids; the last one of an id counts.

        `created_at` stays as it was stored first.
        """

    def find(self, entity_id: str) -> Stored[Entity] | None:
        """The entity as it is stored; None if there is none."""


class PropositionStore(EntityStore[Proposition], Protocol):
    def delete(self, proposition_id: str) -> bool:
        """Takes a proposition out of all slates; what happened to it stays. False if there is none."""


UserStore = EntityStore[User]


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was deleted of a person, in rows by table, and under which keys crossed with categories."""

    user_id: str
    user_category_keys: tuple[str, ...]
    counts: Mapping[str, int]
    erased_at: datetime


class Erasures(Protocol):
    """All methods raise StoreUnavailable when the store does not answer."""

    def erase(self, user_id: str, elsewhere: Mapping[str, int]) -> Erasure:
        """Deletes all that is stored of a person, and sees to it that nothing from before comes back.

        The audit line holds the counts, also those from `elsewhere`, and not the id.
        """

    def unfinished(self, until: datetime) -> list[Erasure]:
        """Erasures up to a moment that were not finished, without their counts."""

    def finish(self, erasure: Erasure) -> None:
        """Forgets whom an erasure was about."""


class OnlineEraser(Protocol):
    def erase(self, user_id: str, user_category_keys: Sequence[str], until: datetime) -> int:
        """Removes a person's slates, and their rows from up to a moment; returns from how many keys.

        Rows from after it stay: they are of somebody new.

        Raises:
            StoreUnavailable: it does not answer.
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
