"""Recording events: durable first, then felt by the slates of their users."""

import logging
from collections.abc import Callable, Sequence

from app.domain.errors import StoreUnavailable
from app.domain.ports import EventLog, Receipt, SlateStore
from app.domain.tracing import part
from app.domain.types import Event

log = logging.getLogger(__name__)


class RecordEvents:
    """Makes events durable in the primary log; while that is down or slow, in the spool."""

    def __init__(self, primary: EventLog, spool: EventLog) -> None:
        self._primary = primary
        self._spool = spool

    def __call__(self, events: Sequence[Event]) -> Receipt:
        """Makes all events durable, or none.

        Raises:
            StoreUnavailable: nothing was stored, or it is unknown; sending again does no harm.
        """
        try:
            with part("record"):
                return self._primary.append(events)
        except StoreUnavailable as outage:
            try:
                with part("spool"):
                    return self._spool.append(events)
            except StoreUnavailable as error:
                raise StoreUnavailable(f"{outage}, and the spool does not help: {error}") from error


class OutdateSlates:
    """Makes kept slates of the users of new events outdated; `on_outdated` is told of how many users.

    Without `slates` none are kept.
    """

    def __init__(self, slates: SlateStore | None, on_outdated: Callable[[int], None]) -> None:
        self._slates = slates
        self._on_outdated = on_outdated

    def __call__(self, events: Sequence[Event]) -> None:
        user_ids = {event.user_id for event in events if event.user_id is not None}
        if self._slates is None or not user_ids:
            return
        try:
            self._slates.forget(user_ids)
            self._on_outdated(len(user_ids))
        except StoreUnavailable as error:
            # They are outdated once more when the events reach the features.
            log.warning("kept slates may be served until their time is up: %s", error)
