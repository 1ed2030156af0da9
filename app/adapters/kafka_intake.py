"""From Kafka into PostgreSQL: each event once, nothing lost, nothing in the way."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Arrival
from sqlalchemy.exc import DataError, IntegrityError

from app.adapters.kafka_client import open_client
from app.adapters.kafka_metrics import IntakeMetrics
from app.adapters.kafka_sender import KafkaSender, Message
from app.adapters.kafka_topics import partition_lag
from app.domain.errors import EventRefused, PropositionsError, StoreUnavailable
from app.domain.ports import EventLog
from app.domain.tracing import NO_TRACING, SharedSpan, Span, SpanKind, Tracer, recording
from app.domain.types import Event

MAX_MESSAGES = 1_000
POLL_S = 0.5
LAG_INTERVAL_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
MAX_REASON_LENGTH = 1_000

log = logging.getLogger(__name__)

Decode = Callable[[bytes | None, Mapping[str, bytes]], Event]


class KafkaIntake:
    """A member of the consumer group that appends what comes to the event log. Used by one thread.

    Offsets are committed after the events, so what a crash leaves uncommitted comes again, to this
    process or another, and counts once because the log knows its `event_id`s. While the log is down a
    batch is kept and the partitions are paused: polling goes on, so the group does not give them away.

    Args:
        config: properties of librdkafka for the member.
        decode: makes an event of a message's value and headers; raises PropositionsError with the reason.
        dead_letters: sends what is no event, or cannot be stored, to `dead_topic`.
        tracer: goes on with the traces of requests whose events come.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        topic: str,
        dead_topic: str,
        decode: Decode,
        event_log: EventLog,
        dead_letters: KafkaSender,
        metrics: IntakeMetrics,
        tracer: Tracer = NO_TRACING,
    ) -> None:
        self._topic = topic
        self._dead_topic = dead_topic
        self._decode = decode
        self._event_log = event_log
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._tracer = tracer
        self._kept: list[Arrival] = []
        self._pause_s = FIRST_PAUSE_S
        self._group = config["group.id"]
        self._consumer: Consumer = open_client(
            Consumer, {**config, "logger": log, "on_commit": _log_failed_commit}
        )
        self._consumer.subscribe([topic], on_revoke=self._give_up, on_lost=self._give_up)

    @property
    def partitions(self) -> set[int]:
        """What the group has given to this process."""
        return {p.partition for p in self._consumer.assignment()}

    @property
    def kept_partitions(self) -> set[int]:
        """Where the batch comes from that waits for the event log; empty: none waits."""
        return {arrival.partition() for arrival in self._kept}

    def run(self, stop: threading.Event) -> None:
        """Brings in what comes until `stop` is set, then leaves the group."""
        reported_s = 0.0
        try:
            while not stop.is_set():
                self.run_once(POLL_S)
                if time.monotonic() - reported_s > LAG_INTERVAL_S:
                    self.report_lag()
                    reported_s = time.monotonic()
        finally:
            self.close()

    def run_once(self, wait_s: float) -> int:
        """Brings in one batch, which may take `wait_s` to come; returns its messages that are done with.

        While the event log is down that is 0, and the next call tries the same batch again after a while.
        """
        arrivals = self._arrivals(wait_s)  # may change what is kept
        self._kept += arrivals
        owned = self.partitions
        batch = [arrival for arrival in self._kept if arrival.partition() in owned]
        try:
            self._settle(batch)
        except StoreUnavailable as error:
            self._hold(error)
            return 0
        self._release()
        self._commit(batch)
        return len(batch)

    def report_lag(self) -> None:
        """Sets the metric of each partition that this process has."""
        try:
            for committed in self._consumer.committed(self._consumer.assignment(), timeout=POLL_S):
                self._metrics.lag(committed.partition, partition_lag(self._consumer, committed).lag)
        except KafkaException as error:
            log.warning("the lag is not known: %s", error.args[0].str())

    def close(self) -> None:
        """Leaves the group at once, so that others get the partitions."""
        self._consumer.close()
        self._dead_letters.close()

    def _arrivals(self, wait_s: float) -> list[Arrival]:
        """What has come; nothing new while a batch is kept, but the group sees a sign of life."""
        if self._kept:
            # What was assigned since is not paused yet.
            self._consumer.pause(self._consumer.assignment())
            first = self._consumer.poll(self._pause_s)
            return _without_errors([first])
        first = self._consumer.poll(wait_s)
        rest = self._consumer.consume(MAX_MESSAGES - 1, 0) if first is not None else []
        return _without_errors([first, *rest])

    def _settle(self, batch: Sequence[Arrival]) -> None:
        """Stores events and buries the rest.

        Raises:
            StoreUnavailable: not all of it was possible; it may be tried again.
        """
        events: list[tuple[Arrival, Event]] = []
        dead: list[tuple[Arrival, str]] = []
        for arrival in batch:
            try:
                events.append((arrival, self._decode(arrival.value(), dict(arrival.headers() or ()))))
            except PropositionsError as error:
                dead.append((arrival, str(error)))
        with recording(self._span_of(events)):
            dead += self._store(events)
        if dead:
            self._bury([self._dead_letter(arrival, reason) for arrival, reason in dead])
            self._metrics.consumed("dead", len(dead))
            log.warning("%d messages went to %s; the last: %s", len(dead), self._dead_topic, dead[-1][1])

    def _span_of(self, events: Sequence[tuple[Arrival, Event]]) -> SharedSpan | None:
        """A span in the trace of each request that sent some of the events and is recorded."""
        if self._tracer is NO_TRACING:
            return None
        spans: dict[str, Span | None] = {}
        by_event: dict[str, Span] = {}
        for arrival, event in events:
            caller = _trace_context(arrival)
            sender = caller.get("traceparent")
            if sender is None:
                continue
            if sender not in spans:
                spans[sender] = self._tracer.begin(f"process {self._topic}", SpanKind.CONSUMER, caller)
            if (span := spans[sender]) is not None:
                by_event.setdefault(event.event_id, span)
        if not by_event:
            return None
        shared = SharedSpan(by_event)
        shared.describe(
            {
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": self._topic,
                "messaging.consumer.group.name": self._group,
                "messaging.batch.message_count": len(events),
            }
        )
        return shared

    def _store(self, events: Sequence[tuple[Arrival, Event]]) -> list[tuple[Arrival, str]]:
        """Appends the events and returns those that the log refuses, with the reason."""
        if not events:
            return []
        try:
            receipt = self._event_log.append([event for _, event in events])
        except (DataError, IntegrityError) as error:
            if len(events) == 1:
                # The lines behind the first quote the row, and the reason goes to the log.
                return [(events[0][0], f"cannot be stored: {str(error.orig).strip().splitlines()[0]}")]
            middle = len(events) // 2
            return self._store(events[:middle]) + self._store(events[middle:])
        self._metrics.consumed("recorded", len(receipt.recorded_ids))
        dropped = sum(event.event_id in receipt.dropped_ids for _, event in events)
        self._metrics.consumed("dropped", dropped)
        self._metrics.consumed("duplicate", len(events) - len(receipt.recorded_ids) - dropped)
        if dropped:
            log.warning(
                "%d messages were dropped: they are of forgotten users, or older than events are kept",
                dropped,
            )
        return []

    def _bury(self, letters: Sequence[Message]) -> None:
        try:
            self._dead_letters.send(letters)
        except EventRefused:
            # Without their values they fit, and the headers say where the whole messages are.
            self._dead_letters.send([replace(letter, value=None) for letter in letters])

    def _dead_letter(self, arrival: Arrival, reason: str) -> Message:
        source = (
            ("reason", reason[:MAX_REASON_LENGTH].encode()),
            ("source_topic", arrival.topic().encode()),
            ("source_partition", b"%d" % arrival.partition()),
            ("source_offset", b"%d" % arrival.offset()),
        )
        return Message(
            self._dead_topic, arrival.key(), arrival.value(), (*(arrival.headers() or ()), *source)
        )

    def _hold(self, error: StoreUnavailable) -> None:
        log.warning("%d messages wait, the next try is in %g s: %s", len(self._kept), self._pause_s, error)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _release(self) -> None:
        if self._pause_s != FIRST_PAUSE_S:
            self._consumer.resume(self._consumer.assignment())
        self._kept, self._pause_s = [], FIRST_PAUSE_S

    def _commit(self, batch: Sequence[Arrival]) -> None:
        ends = {(a.topic(), a.partition()): a.offset() + 1 for a in batch}
        if ends:
            self._consumer.commit(offsets=[TopicPartition(*place, end) for place, end in ends.items()])

    def _give_up(self, _consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        """What is not committed of these partitions goes to whoever has them next."""
        gone = {p.partition for p in partitions}
        self._kept = [arrival for arrival in self._kept if arrival.partition() not in gone]
        for partition in partitions:
            self._metrics.no_lag(partition.partition)


def _trace_context(arrival: Arrival) -> dict[str, str]:
    return {
        name: value.decode("ascii", "replace")
        for name, value in arrival.headers() or ()
        if name in ("traceparent", "tracestate") and value is not None
    }


def _without_errors(polled: Sequence[Arrival | None]) -> list[Arrival]:
    """The messages; what else the consumer had to say goes to the log."""
    arrivals = []
    for arrival in polled:
        if arrival is None:
            continue
        if arrival.error() is None:
            arrivals.append(arrival)
        else:
            log.warning("Kafka says: %s", arrival.error().str())
    return arrivals


def _log_failed_commit(error: KafkaError | None, _partitions: Sequence[TopicPartition]) -> None:
    if error is not None:
        log.warning("offsets were not committed, so events will come again: %s", error.str())
