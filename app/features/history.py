"""What each user was shown lately and what came of it, folded into a bounded list."""

from dataclasses import dataclass

from app.domain.types import EventType

# The feature view, its table in Postgres, and its fields.
HISTORY_VIEW = "user_history"
HISTORY_FIELDS = ("propositions", "impressions", "clicks")

MAX_HISTORY = 100


@dataclass(frozen=True, slots=True)
class UserHistory:
    """Distinct propositions that a user was shown, at most `MAX_HISTORY`, and how often each was shown and clicked.

    The one that was touched last comes first, in the order of receipt: a late event is news, too. Clicks include
    conversions. A proposition may have more clicks than impressions, for not every client logs what it shows.
    """

    proposition_ids: tuple[str, ...] = ()
    impressions: tuple[float, ...] = ()
    clicks: tuple[float, ...] = ()


NO_HISTORY = UserHistory()


class HistoryDraft:
    """A history that events change in place, at a cost that does not grow with its length."""

    def __init__(self, history: UserHistory) -> None:
        # By proposition, the one that was touched last at the end of both.
        newest_last = history.proposition_ids[::-1]
        self._impressions = dict(zip(newest_last, history.impressions[::-1], strict=True))
        self._clicks = dict(zip(newest_last, history.clicks[::-1], strict=True))

    def add(self, proposition_id: str, event_type: EventType) -> None:
        """Counts one more event and makes its proposition the newest; the oldest one makes room.

        A dismissal says "shown, and not liked". Its impression was logged as a rule, so it is counted as one only
        where the list knows of none; that it got no click is what tells.
        """
        shown = self._impressions.pop(proposition_id, None)
        clicked = self._clicks.pop(proposition_id, 0.0)
        if event_type is EventType.IMPRESSION:
            shown = 1.0 if shown is None else shown + 1.0
        elif event_type is EventType.DISMISS:
            shown = 1.0 if shown is None else shown
        else:
            clicked += 1.0
        self._impressions[proposition_id] = shown or 0.0
        self._clicks[proposition_id] = clicked
        if len(self._clicks) > MAX_HISTORY:
            oldest = next(iter(self._clicks))
            del self._impressions[oldest], self._clicks[oldest]

    def frozen(self) -> UserHistory:
        return UserHistory(
            tuple(reversed(self._impressions)),
            tuple(reversed(self._impressions.values())),
            tuple(reversed(self._clicks.values())),
        )


def add_to_history(history: UserHistory | None, proposition_id: str, event_type: EventType) -> UserHistory:
    """The history after one more event. For many events of one user a draft is cheaper.

    >>> add_to_history(add_to_history(None, "p1", EventType.IMPRESSION), "p1", EventType.CLICK)
    UserHistory(proposition_ids=('p1',), impressions=(1.0,), clicks=(1.0,))
    """
    draft = HistoryDraft(history or NO_HISTORY)
    draft.add(proposition_id, event_type)
    return draft.frozen()
