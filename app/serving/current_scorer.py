"""The scorer that requests use, and its replacement by one of the next model, catalog or moment."""

import time
from collections.abc import Callable

from app.domain.errors import ModelRefused
from app.features.ports import Model
from app.features.snapshot import Snapshot
from app.serving.scoring import Pace, Scorer

# While no event changes a candidate's counters they only decay, and may lag behind this many times as long.
QUIET_FACTOR = 6
# Of the time, what a renewal works; and what preparing does for another model, or who was not asked for yet, which requests
# are better off with.
RENEWAL_DUTY, PREPARING_DUTY = 0.03, 0.15
# Of the time until features are too old, how much of it a renewal may take.
RENEWAL_SHARE = 0.3


class CurrentScorer:
    """The scorer of the current model and catalog, whose candidates' features lack no news for longer than `max_age_s`.

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
        self._scorer: Scorer | None = None
        self._had_news_at_s = 0.0
        self._is_behind = False

    def get(self, model: Model | None, snapshot: Snapshot, now_s: float) -> Scorer:
        """Raises ModelRefused when there is no model."""
        if model is None:
            raise ModelRefused("no model is promoted: train one with `propositions train`")
        scorer = self._scorer
        if (
            scorer is None
            or scorer.model is not model
            or not scorer.fits(snapshot)
            or not 0 <= now_s - scorer.as_of_s <= QUIET_FACTOR * self._max_age_s
            or (self._lacks_news(scorer, snapshot, now_s) and now_s - self._had_news_at_s > self._max_age_s)
        ):
            scorer = Scorer(model, snapshot, now_s, self._max_bytes)
            self.adopt(scorer)
        return scorer

    def renew(self, model: Model | None, snapshot: Snapshot, now_s: float) -> None:
        """Replaces the scorer by a fresh one that knows what the old one was asked for; until that is due, has the
        present one prepare what it will be asked for."""
        old = self._scorer
        if old is None or not old.was_asked or old.model is not model or not old.fits(snapshot):
            return
        limit_s = self._max_age_s * (1 if self._lacks_news(old, snapshot, now_s) else QUIET_FACTOR)
        share_s = RENEWAL_SHARE * limit_s
        if now_s - old.as_of_s < limit_s / 2:
            end_s = self._clock() + share_s
            pace = self._pace(PREPARING_DUTY, share_s)
            old.complete(pace, lambda: self._scorer is not old or self._clock() >= end_s)
        else:
            fresh = self._made_as(old, model, snapshot, now_s, self._pace(RENEWAL_DUTY, share_s))
            if self._scorer.model is model:  # and none was promoted in the meantime
                self.adopt(fresh)

    def prepared(self, model: Model, snapshot: Snapshot, now_s: float) -> Scorer:
        """A scorer of another model or moment, ready for what the present one was asked for; see `adopt`."""
        pace = self._pace(PREPARING_DUTY, RENEWAL_SHARE * QUIET_FACTOR * self._max_age_s)
        return self._made_as(self._scorer, model, snapshot, now_s, pace)

    def adopt(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._had_news_at_s = scorer.as_of_s

    def _made_as(
        self, old: Scorer | None, model: Model, snapshot: Snapshot, now_s: float, pace: Pace
    ) -> Scorer:
        fresh = Scorer(model, snapshot, now_s, self._max_bytes)
        if old is not None and old.fits(snapshot):
            fresh.prepare_as(old, pace)
        return fresh

    def _lacks_news(self, scorer: Scorer, snapshot: Snapshot, now_s: float) -> bool:
        """True if a counter has changed since the current scorer was made; notes when that was not so."""
        self._is_behind = not scorer.has_counters_of(snapshot)
        if not self._is_behind:
            self._had_news_at_s = now_s
        return self._is_behind

    def _pace(self, duty: float, lasts_s: float) -> Pace:
        """Sleeps after each step, so that the work takes this part of the time, or more so as to end within `lasts_s`;
        and sooner once there is news, which it has to end for."""
        end_s = self._clock() + lasts_s

        def pace(worked_s: float, steps_left: int) -> None:
            nonlocal end_s
            now_s = self._clock()
            if self._is_behind:
                end_s = min(end_s, now_s + RENEWAL_SHARE * self._max_age_s)
            if now_s < end_s:
                self._sleep(min(worked_s * (1 / duty - 1), (end_s - now_s) / max(steps_left, 1)))

        return pace
