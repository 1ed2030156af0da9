"""Sending to Kafka and waiting for the acknowledgement, from plain threads and from gevent's."""

import logging
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from app.adapters.kafka_client import open_client, raise_domain_error
from app.adapters.kafka_metrics import SenderMetrics

POLL_S = 0.1
CLOSE_S = 5.0

_TIMEOUTS = (KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """Messages of one topic with the same key keep their order."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class KafkaSender:
    """Sends messages and returns when they are stored. One per process, for any number of threads.

    The producer is made with the first message, because it would not survive a fork. It is replaced when
    it fails for good, and when it gets nothing through: an idempotent producer whose broker has lost its
    memory may do either.

    Args:
        config: properties of librdkafka.
        timeout_s: after this long a call gives up.
        run_aside: runs an endless function in a thread of the system, even where threads are greenlets:
            the producer's own waiting would hold up all of them.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        timeout_s: float,
        metrics: SenderMetrics,
        run_aside: Callable[[Callable], Any] = lambda work: work(),
    ) -> None:
        self._config = config
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._run_aside = run_aside
        self._line: _Line | None = None
        self._lock = threading.Lock()

    def send(self, messages: Sequence[Message]) -> None:
        """Returns when all messages are on all replicas in sync.

        Raises:
            StoreUnavailable: not all were acknowledged in time; some may be stored, or will be.
            EventRefused: one is larger than Kafka takes; others may be stored.
        """
        deadline_s = time.monotonic() + self._timeout_s
        error = self._try_to_send(messages, deadline_s)
        if error is not None and _is_fatal(error):
            error = self._try_to_send(messages, deadline_s)
        if error is not None:
            self._metrics.failed(error.name(), len(messages))
            raise_domain_error(error)

    def close(self) -> None:
        """Waits for what is on its way, but not for long."""
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.close(CLOSE_S)

    def _try_to_send(self, messages: Sequence[Message], deadline_s: float) -> KafkaError | None:
        line = self._working_line()
        delivery = _Delivery(len(messages))
        try:
            for message in messages:
                line.send(message, delivery)
        except KafkaException as refused:
            error = refused.args[0]
        except BufferError:
            error = KafkaError(KafkaError._QUEUE_FULL)
        else:
            error = delivery.wait(deadline_s)
        if error is not None and (_is_fatal(error) or error.code() in _TIMEOUTS):
            self._retire(line, error)
        return error

    def _working_line(self) -> "_Line":
        with self._lock:
            if self._line is None:
                self._line = _Line(self._config, self._metrics, self._run_aside)
            return self._line

    def _retire(self, line: "_Line", error: KafkaError) -> None:
        with self._lock:
            if self._line is line:
                log.warning("Kafka's producer is replaced: %s", error.str())
                self._line = None
        line.retire()


class _Line:
    """A producer and the thread that waits for its acknowledgements."""

    def __init__(
        self, config: Mapping[str, Any], metrics: SenderMetrics, run_aside: Callable[[Callable], Any]
    ) -> None:
        self._producer = open_client(Producer, {**config, "logger": log})
        self._metrics = metrics
        self._is_retired = False
        self._thread = threading.Thread(target=run_aside, args=(self._wait_for_reports,), daemon=True)
        self._thread.start()

    def send(self, message: Message, delivery: "_Delivery") -> None:
        self._producer.produce(
            message.topic,
            message.value,
            message.key,
            headers=list(message.headers),
            on_delivery=delivery.on_report,
        )

    def retire(self) -> None:
        """Ends the thread when nothing is on its way any more."""
        self._is_retired = True

    def close(self, timeout_s: float) -> None:
        self.retire()
        self._thread.join(timeout_s)

    def _wait_for_reports(self) -> None:
        while not self._is_retired or len(self._producer):
            self._producer.poll(POLL_S)
            self._metrics.queued(len(self._producer))


class _Delivery:
    """What became of the messages of one call.

    A descriptor tells the waiting thread, because that works between a thread of the system and a
    greenlet. It is closed with the last report, which may come long after the waiting was given up.
    """

    def __init__(self, count: int) -> None:
        self._open_count = count
        self._error: KafkaError | None = None
        self._done = os.eventfd(0)
        weakref.finalize(self, os.close, self._done)

    def on_report(self, error: KafkaError | None, _message: Any) -> None:
        self._error = self._error or error
        self._open_count -= 1
        if self._open_count == 0:
            os.eventfd_write(self._done, 1)

    def wait(self, deadline_s: float) -> KafkaError | None:
        """None when all are stored; the first error otherwise, or that time is up."""
        waiter = select.poll()
        waiter.register(self._done, select.POLLIN)
        is_done = self._open_count == 0 or waiter.poll(max(0.0, deadline_s - time.monotonic()) * 1_000)
        return self._error if is_done else KafkaError(KafkaError._TIMED_OUT, "no acknowledgement in time")


def _is_fatal(error: KafkaError) -> bool:
    return error.fatal() or error.code() == KafkaError._FATAL
