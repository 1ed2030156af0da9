"""Kafka's topics: created once, and how far the group has got in them."""

from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from app.adapters.kafka_client import (
    MAX_DEAD_LETTER_BYTES,
    MAX_MESSAGE_BYTES,
    client_config,
    consumer_config,
    open_client,
    raise_domain_error,
)
from app.settings import Settings

ADMIN_TIMEOUT_S = 10.0
# The brokers' own number of replicas.
DEFAULT_REPLICATION = -1


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What `create_topics` found or made."""

    name: str
    partitions: int
    wanted_partitions: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far the group is in one partition. `committed` is None before its first commit."""

    partition: int
    committed: int | None
    end: int
    lag: int


def create_topics(settings: Settings) -> list[TopicReport]:
    """Creates the topics that are missing, and leaves the others as they are.

    Raises:
        StoreUnavailable: Kafka does not answer, or refuses.
    """
    admin = open_client(AdminClient, client_config(settings))
    wanted = {
        settings.kafka_events_topic: (settings.kafka_partitions, MAX_MESSAGE_BYTES),
        settings.kafka_dead_topic: (1, MAX_DEAD_LETTER_BYTES),
    }
    new = [
        NewTopic(
            name,
            num_partitions=partitions,
            replication_factor=settings.kafka_replication or DEFAULT_REPLICATION,
            config={"max.message.bytes": str(max_bytes)},
        )
        for name, (partitions, max_bytes) in wanted.items()
    ]
    created = _created(admin, new)
    found = _partition_counts(admin)
    return [
        TopicReport(name, partitions if created[name] else found[name], partitions, created[name])
        for name, (partitions, _) in wanted.items()
    ]


def _created(admin: AdminClient, topics: list[NewTopic]) -> dict[str, bool]:
    """Whether each topic is new."""
    created = {}
    for name, creation in admin.create_topics(topics, request_timeout=ADMIN_TIMEOUT_S).items():
        try:
            creation.result()
            created[name] = True
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise_domain_error(error.args[0])
            created[name] = False
    return created


def _partition_counts(admin: AdminClient) -> Mapping[str, int]:
    try:
        topics = admin.list_topics(timeout=ADMIN_TIMEOUT_S).topics
    except KafkaException as error:
        raise_domain_error(error.args[0])
    return {name: len(topic.partitions) for name, topic in topics.items()}


def read_lag(settings: Settings) -> list[PartitionLag]:
    """How far the group has got in each partition of the topic of events.

    Raises:
        StoreUnavailable: Kafka does not answer, or the topic is missing.
    """
    topic = settings.kafka_events_topic
    consumer: Consumer = open_client(Consumer, consumer_config(settings))
    try:
        if topic not in (found := consumer.list_topics(timeout=ADMIN_TIMEOUT_S).topics):
            raise_domain_error(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        partitions = [TopicPartition(topic, number) for number in sorted(found[topic].partitions)]
        return [partition_lag(consumer, p) for p in consumer.committed(partitions, timeout=ADMIN_TIMEOUT_S)]
    except KafkaException as error:
        raise_domain_error(error.args[0])
    finally:
        consumer.close()


def partition_lag(consumer: Consumer, committed: TopicPartition) -> PartitionLag:
    """Raises KafkaException: no answer."""
    beginning, end = consumer.get_watermark_offsets(
        TopicPartition(committed.topic, committed.partition), timeout=ADMIN_TIMEOUT_S
    )
    offset = committed.offset if committed.offset >= 0 else None
    return PartitionLag(committed.partition, offset, end, max(0, end - max(beginning, offset or 0)))


class KafkaProbe:
    """Whether the brokers answered the last time they were asked, and have the topic of events."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AdminClient | None = None
        self.problem: str | None = "not asked yet"

    def refresh(self, timeout_s: float) -> None:
        """Waits in librdkafka: under gevent to be run in a thread of the system."""
        if self._admin is None:
            self._admin = open_client(AdminClient, {**client_config(self._settings), "log_level": 0})
        try:
            topics = self._admin.list_topics(timeout=timeout_s).topics
        except KafkaException as error:
            self.problem = error.args[0].str()
        else:
            is_there = self._settings.kafka_events_topic in topics
            self.problem = None if is_there else "a topic is missing: run `propositions kafka init`"
