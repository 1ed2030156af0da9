"""The scorer that requests use, and its replacement by one of the next model, catalog or moment."""

import time
from collections.abc import Callable

from app.domain.errors import ModelRefused
from app.features.ports import Model
from app.features.snapshot import Snapshot
from app.serving.scoring import Scorer

# While no event changes a candidate's counters they only decay, and may lag behind this many times as long.
QUIET_FACTOR = 6
# Of the time, what a renewal works; and of the time until features are too old, how long it may sleep in between.
RENEWAL_DUTY, RENEWAL_SHARE = 0.15, 0.25


class CurrentScorer:
    """The scorer of the current model and catalog, whose candidates' features are at most `max_age_s` old.

    Where no counter has changed, features only decay, and are renewed less often. `renew`, called several times as
    often as that beside the requests, keeps the requests from computing what the ones before them have
    asked for. It leaves the processor to them most of the time: done at once it held up requests for half a
    second.
    """

    def __init__(self, max_age_s: float, max_bytes: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._sleep = sleep
        self._scorer: Scorer | None = None

    def get(self, model: Model | None, snapshot: Snapshot, now_s: float) -> Scorer:
        """Raises ModelRefused when there is no model."""
        if model is None:
            raise ModelRefused("no model is promoted: train one with `propositions train`")
        scorer = self._scorer
        if (
            scorer is None
            or scorer.model is not model
            or not scorer.fits(snapshot)
            or not 0 <= now_s - scorer.as_of_s <= self._age_limit_s(scorer, snapshot)
        ):
            scorer = self._scorer = Scorer(model, snapshot, now_s, self._max_bytes)
        return scorer

    def renew(self, model: Model | None, snapshot: Snapshot, now_s: float) -> None:
        """Replaces the scorer by a fresh one that knows what the old one was asked for; until that is due, has the
        present one prepare what it will be asked for."""
        old = self._scorer
        if old is None or not old.was_asked or old.model is not model or not old.fits(snapshot):
            return
        limit_s = self._age_limit_s(old, snapshot)
        if now_s - old.as_of_s < limit_s / 2:
            end_s = time.monotonic() + RENEWAL_SHARE * limit_s
            old.complete(
                self._pace(RENEWAL_SHARE * limit_s),
                lambda: self._scorer is not old or time.monotonic() >= end_s,
            )
        else:
            fresh = self.prepared(model, snapshot, now_s)
            if self._scorer.model is model:  # and none was promoted in the meantime
                self.adopt(fresh)

    def prepared(self, model: Model, snapshot: Snapshot, now_s: float) -> Scorer:
        """A scorer of another model or moment, ready for what the present one was asked for; see `adopt`."""
        fresh, old = Scorer(model, snapshot, now_s, self._max_bytes), self._scorer
        if old is not None and old.fits(snapshot):
            fresh.prepare_as(old, self._pace(RENEWAL_SHARE * self._age_limit_s(old, snapshot)))
        return fresh

    def _pace(self, lasts_s: float) -> Callable[[float], None]:
        """Sleeps after work, so that it takes a part of the time only, but not for longer than `lasts_s` in all."""
        end_s = time.monotonic() + lasts_s

        def pace(worked_s: float) -> None:
            if time.monotonic() < end_s:
                self._sleep(worked_s * (1 / RENEWAL_DUTY - 1))

        return pace

    def adopt(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def _age_limit_s(self, scorer: Scorer, snapshot: Snapshot) -> float:
        return self._max_age_s * (QUIET_FACTOR if scorer.has_counters_of(snapshot) else 1)
