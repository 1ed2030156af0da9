"""What each user last interacted with: clicks and conversions, folded into a short list."""

from collections.abc import Iterable
from dataclasses import dataclass

from app.domain.types import EventType, RecordedEvent

# The feature view, its table in Postgres, and its one field.
RECENT_VIEW = "user_recent"
RECENT_FIELD = "propositions"

MAX_RECENT = 20
_POSITIVES = (EventType.CLICK, EventType.CONVERSION)


@dataclass(frozen=True, slots=True)
class Recents:
    """Distinct propositions that a user clicked or converted on, at most `MAX_RECENT`, newest first.

    `counted_at_s` is when the newest such event on each counts, in seconds since the epoch. Of two at
    the same time the one that was received later is newer.
    """

    proposition_ids: tuple[str, ...] = ()
    counted_at_s: tuple[float, ...] = ()

    def without(self, proposition_id: str) -> "Recents":
        """The list without one proposition: the list itself if that is not in it."""
        if proposition_id not in self.proposition_ids:
            return self
        place = self.proposition_ids.index(proposition_id)
        return Recents(
            self.proposition_ids[:place] + self.proposition_ids[place + 1 :],
            self.counted_at_s[:place] + self.counted_at_s[place + 1 :],
        )


NO_RECENTS = Recents()


def is_positive(event: RecordedEvent) -> bool:
    """True for a click or a conversion of a known user."""
    return event.event_type in _POSITIVES and event.user_id is not None


def recent_key(event: RecordedEvent) -> tuple[str, str]:
    return RECENT_VIEW, event.user_id


def recent_keys(events: Iterable[RecordedEvent]) -> set[tuple[str, str]]:
    """The states that the positive ones among `events` touch."""
    return {recent_key(event) for event in events if is_positive(event)}


def add_positive(recents: Recents, proposition_id: str, at_s: float) -> Recents:
    """The list after one more positive event, or the same object if that is too old to change it."""
    others = recents.without(proposition_id)
    if others is not recents and _time_of(recents, proposition_id) > at_s:
        return recents
    ids, times = others.proposition_ids, others.counted_at_s
    place = place_of(times, at_s)
    if place == MAX_RECENT:
        return recents
    return Recents(
        (*ids[:place], proposition_id, *ids[place:])[:MAX_RECENT],
        (*times[:place], at_s, *times[place:])[:MAX_RECENT],
    )


def _time_of(recents: Recents, proposition_id: str) -> float:
    return recents.counted_at_s[recents.proposition_ids.index(proposition_id)]


def place_of(times: tuple[float, ...], at_s: float) -> int:
    """Where an event that is received now belongs among `times`, which descend: behind what is newer."""
    return next((place for place, time in enumerate(times) if time <= at_s), len(times))
