"""Kafka as the first place where events rest; the projector brings them into PostgreSQL."""

from collections.abc import Callable, Sequence

from app.adapters.kafka_sender import KafkaSender, Message
from app.domain.ports import Receipt
from app.domain.tracing import SpanKind, current_span, part
from app.domain.types import Event, StoredIn


class KafkaEventLog:
    """Implements `EventLog`: events are on all replicas in sync when `append` returns.

    Unlike the log in PostgreSQL it may keep some events of a call that failed, and does not know what was
    sent before: PostgreSQL counts an `event_id` once. Events of a user keep their order.

    Args:
        encode: the value of an event's message.
        headers: headers of every message; they tell how the value is to be read.
    """

    def __init__(
        self,
        sender: KafkaSender,
        topic: str,
        encode: Callable[[Event], bytes],
        headers: Sequence[tuple[str, bytes]],
    ) -> None:
        self._sender = sender
        self._topic = topic
        self._encode = encode
        self._headers = tuple(headers)

    def append(self, events: Sequence[Event]) -> Receipt:
        """Raises EventRefused beside the port's StoreUnavailable: an event is too large for Kafka."""
        first_by_id: dict[str, Event] = {}
        duplicates: dict[str, None] = {}
        for event in events:
            if first_by_id.setdefault(event.event_id, event) is not event:
                duplicates[event.event_id] = None
        if first_by_id:
            messages = [self._message(event) for event in first_by_id.values()]
            with part(f"send {self._topic}", SpanKind.PRODUCER, self._attributes(len(messages))):
                self._sender.send(messages)
        return Receipt(tuple(first_by_id), tuple(duplicates), StoredIn.KAFKA)

    def close(self) -> None:
        self._sender.close()

    def _message(self, event: Event) -> Message:
        key = event.event_id if event.user_id is None else event.user_id
        return Message(
            self._topic, key.encode(), self._encode(event), (*self._headers, *_trace_headers(event))
        )

    def _attributes(self, message_count: int) -> dict[str, str | int]:
        return {
            "messaging.system": "kafka",
            "messaging.operation.type": "send",
            "messaging.destination.name": self._topic,
            "messaging.batch.message_count": message_count,
        }


def _trace_headers(event: Event) -> list[tuple[str, bytes]]:
    """Of the request that brought the event, if that is recorded."""
    span = current_span()
    span = None if span is None else span.of(event.event_id)
    return [] if span is None else [(name, value.encode()) for name, value in span.headers().items()]
