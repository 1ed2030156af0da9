"""Forgetting a person: everywhere, at once where that is possible, and in the end everywhere."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.domain.errors import StoreUnavailable
from app.domain.ports import Erasure, Erasures, OnlineEraser

log = logging.getLogger(__name__)

# Whoever read a person's rows before they were erased has written them to the online store by then.
SETTLED_AFTER = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was removed, by where it was; `is_complete` is False while the online store does not answer."""

    counts: Mapping[str, int]
    is_complete: bool


class ForgetUser:
    """Removes a person from all stores. Doing it again does no harm, and neither does an unknown id.

    `forget_spooled` removes a user's events from the spool of this machine and counts them. Events that
    wait anywhere else (another machine's spool, a message broker) are dropped when they are recorded.
    """

    def __init__(
        self, erasures: Erasures, online: OnlineEraser, forget_spooled: Callable[[str], int]
    ) -> None:
        self._erasures = erasures
        self._online = online
        self._forget_spooled = forget_spooled

    def __call__(self, user_id: str) -> Forgotten:
        """Raises StoreUnavailable when PostgreSQL does not answer: do it again later."""
        elsewhere = {"spool": self._forget_spooled(user_id)}
        erasure = self._erasures.erase(user_id, elsewhere)
        counts = {**erasure.counts, **elsewhere}
        try:
            online = self._erase_online(erasure)
        except StoreUnavailable as error:
            log.warning("the online store still holds a forgotten user: %s", error)
            return Forgotten(counts, is_complete=False)
        return Forgotten({**counts, "online": online}, is_complete=True)

    def finish(self, now: datetime) -> int:
        """Looks once more for what the online store got from those who read before; returns the number of people.

        Raises:
            StoreUnavailable: a store does not answer; what is not done now is done the next time.
        """
        settled = self._erasures.unfinished(until=now - SETTLED_AFTER)
        for erasure in settled:
            self._erase_online(erasure)
            self._erasures.finish(erasure)
        return len(settled)

    def _erase_online(self, erasure: Erasure) -> int:
        return self._online.erase(erasure.user_id, erasure.user_category_keys, until=erasure.erased_at)
