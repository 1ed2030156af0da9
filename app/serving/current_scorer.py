"""The scorer that requests use, and its replacement by one of the next model, catalog or moment."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from app.domain.errors import ModelRefused
from app.features.ports import Model
from app.features.snapshot import Snapshot
from app.serving.scoring import Pace, Scorer

# While no event changes a candidate's counters they only decay, and may lag behind this many times as long.
QUIET_FACTOR = 6
# Of the time, what a renewal works: no request waits for it.
RENEWAL_DUTY = 0.03
# Of the time, what is spent on preparing for another model, or for candidates that nobody asked for yet: until it is done
# a promotion waits, or requests do the work.
PREPARING_DUTY = 0.15
# Of the time until features are too old, how much of it a renewal may take.
RENEWAL_SHARE = 0.3


@dataclass(slots=True)
class _Serving:
    """The scorer that requests use, and when it was last seen to have all counters as they were."""

    scorer: Scorer
    up_to_date_at_s: float
    is_behind: bool = False

    def look(self, snapshot: Snapshot, now_s: float) -> None:
        """Sees whether a counter has changed."""
        self.is_behind = not self.scorer.has_counters_of(snapshot)
        if not self.is_behind:
            self.up_to_date_at_s = now_s


class CurrentScorer:
    """The scorer of the current model and catalog, whose candidates' features lack an event for at most `max_age_s`.

    Where no counter has changed, features only decay, and are renewed less often. `renew`, called several times as
    often as that beside the requests, keeps the requests from computing what the ones before them have
    asked for. It does so a little at a time: done at once it held up requests for half a second, and done
    by all workers in the same second it was more than a busy machine had left.
    """

    def __init__(
        self,
        max_age_s: float,
        max_bytes: int,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._sleep, self._clock = sleep, clock
        self._serving: _Serving | None = None  # replaced as a whole, by requests and beside them

    def get(self, model: Model | None, snapshot: Snapshot, now_s: float) -> Scorer:
        """Raises ModelRefused when there is no model."""
        if model is None:
            raise ModelRefused("no model is promoted: train one with `propositions train`")
        serving = self._serving
        if (
            serving is None
            or serving.scorer.model is not model
            or not serving.scorer.fits(snapshot)
            or self._is_too_old(serving, snapshot, now_s)
        ):
            fresh = Scorer(model, snapshot, now_s, self._max_bytes)
            self.adopt(fresh)
            return fresh
        return serving.scorer

    def renew(self, model: Model | None, snapshot: Snapshot, now_s: float) -> None:
        """Replaces the scorer by a fresh one that knows what the old one was asked for; until that is due, has the
        present one prepare what it will be asked for."""
        serving = self._serving
        if serving is None or not serving.scorer.was_asked:
            return
        old = serving.scorer
        if old.model is not model or not old.fits(snapshot):
            return
        serving.look(snapshot, now_s)
        limit_s = self._max_age_s * (1 if serving.is_behind else QUIET_FACTOR)
        due_in_s = old.as_of_s + limit_s / 2 - now_s
        if due_in_s > 0:
            self._complete(serving, min(due_in_s, RENEWAL_SHARE * limit_s))
        else:
            pace = self._pace(RENEWAL_DUTY, RENEWAL_SHARE * limit_s)
            fresh = self._prepared_as(serving, model, snapshot, now_s, pace)
            if self._serving is serving:  # and no other model, catalog or counters made it useless
                self.adopt(fresh)

    def prepared(self, model: Model, snapshot: Snapshot, now_s: float) -> Scorer:
        """A scorer of another model or moment, ready for what the present one was asked for; see `adopt`."""
        pace = self._pace(PREPARING_DUTY, RENEWAL_SHARE * QUIET_FACTOR * self._max_age_s)
        return self._prepared_as(self._serving, model, snapshot, now_s, pace)

    def adopt(self, scorer: Scorer) -> None:
        """Has requests use it from now on. What the one before with the same counters was seen to have since this one was
        begun, it has as well."""
        before, up_to_date_at_s = self._serving, scorer.as_of_s
        if before is not None and scorer.has_counters_of(before.scorer.snapshot):
            up_to_date_at_s = max(before.up_to_date_at_s, scorer.as_of_s)
        self._serving = _Serving(scorer, up_to_date_at_s)

    def _is_too_old(self, serving: _Serving, snapshot: Snapshot, now_s: float) -> bool:
        serving.look(snapshot, now_s)
        return (
            not 0 <= now_s - serving.scorer.as_of_s <= QUIET_FACTOR * self._max_age_s
            # Its absolute value: the clock may have been set back.
            or abs(now_s - serving.up_to_date_at_s) > self._max_age_s
        )

    def _complete(self, serving: _Serving, lasts_s: float) -> None:
        """Until there is something more urgent to do."""
        end_s, was_behind = self._clock() + lasts_s, serving.is_behind

        def is_over() -> bool:
            has_news = serving.is_behind and not was_behind
            return has_news or self._serving is not serving or self._clock() >= end_s

        serving.scorer.complete(self._pace(PREPARING_DUTY, lasts_s), is_over)

    def _prepared_as(
        self, serving: _Serving | None, model: Model, snapshot: Snapshot, now_s: float, pace: Pace
    ) -> Scorer:
        fresh = Scorer(model, snapshot, now_s, self._max_bytes)
        if serving is not None and serving.scorer.fits(snapshot):
            fresh.prepare_as(serving.scorer, pace)
        return fresh

    def _pace(self, duty: float, lasts_s: float) -> Pace:
        """Sleeps after each step, so that the work takes this part of the time, or more so as to end within `lasts_s`;
        and sooner once a counter has changed, for which it is to end."""
        end_s = self._clock() + lasts_s

        def pace(worked_s: float, steps_left: int) -> None:
            nonlocal end_s
            now_s = self._clock()
            if self._serving is not None and self._serving.is_behind:
                end_s = min(end_s, now_s + RENEWAL_SHARE * self._max_age_s)
            if now_s < end_s:
                self._sleep(min(worked_s * (1 / duty - 1), (end_s - now_s) / max(steps_left, 1)))

        return pace
