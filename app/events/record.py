"""Recording events: durable first, then felt by the slates of their users."""

import logging
from collections.abc import Callable, Sequence

from app.domain.errors import StoreUnavailable
from app.domain.ports import EventLog, Receipt, SlateStore
from app.domain.types import Event

log = logging.getLogger(__name__)


class RecordEvents:
    def __init__(
        self, event_log: EventLog, slates: SlateStore | None, on_outdated: Callable[[int], None]
    ) -> None:
        self._event_log = event_log
        self._slates = slates
        self._on_outdated = on_outdated

    def __call__(self, events: Sequence[Event]) -> Receipt:
        """Makes all events durable, or none; kept slates of their users are outdated from then on.

        Raises:
            StoreUnavailable: nothing was stored.
        """
        receipt = self._event_log.append(events)
        user_ids = {event.user_id for event in events if event.user_id is not None}
        if self._slates is not None and receipt.recorded_ids and user_ids:
            try:
                self._slates.forget(user_ids)
                self._on_outdated(len(user_ids))
            except StoreUnavailable as error:
                # They are outdated once more when the events reach the features.
                log.warning("kept slates may be served until their time is up: %s", error)
        return receipt
