"""How this service talks to Kafka: properties of its clients, and library errors as domain errors."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from confluent_kafka import KafkaError, KafkaException

from app.domain.errors import ConfigurationError, EventRefused, StoreUnavailable
from app.settings import Settings

# What Kafka's own default allows, said explicitly, so that client and topic agree.
MAX_MESSAGE_BYTES = 1_048_588
# A dead letter is a message with more headers.
MAX_DEAD_LETTER_BYTES = 2 * MAX_MESSAGE_BYTES
LINGER_MS = 5
QUEUE_KBYTES = 65_536
RECONNECT_MAX_MS = 1_000
TOPIC_PROPAGATION_MS = 1_000
SESSION_TIMEOUT_MS = 10_000

_MISSING_TOPIC = (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)


def client_config(settings: Settings) -> dict[str, Any]:
    """Properties of librdkafka that all clients share; `KAFKA_OPTIONS` go before.

    Raises:
        ConfigurationError: Kafka is not configured.
    """
    if settings.kafka_bootstrap_servers is None:
        raise ConfigurationError("KAFKA_BOOTSTRAP_SERVERS is not set")
    return {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": "propositions",
        "reconnect.backoff.max.ms": RECONNECT_MAX_MS,
        **settings.kafka_properties,
    }


def producer_config(settings: Settings, max_message_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """A producer that stores each message once, in order, on all replicas in sync, or says that it did not."""
    return {
        "compression.type": "lz4",
        "linger.ms": LINGER_MS,
        "queue.buffering.max.kbytes": QUEUE_KBYTES,
        "message.max.bytes": max_message_bytes,
        "message.timeout.ms": settings.kafka_timeout_ms,
        "topic.metadata.propagation.max.ms": TOPIC_PROPAGATION_MS,
        **client_config(settings),
        # As Kafka's own clients do, so that a user's events meet in one partition whoever sends them.
        "partitioner": "murmur2_random",
        "enable.idempotence": True,
        "acks": "all",
    }


def consumer_config(settings: Settings) -> dict[str, Any]:
    """A member of the group that commits offsets itself and gives partitions up one by one."""
    return {
        "auto.offset.reset": "earliest",
        "session.timeout.ms": SESSION_TIMEOUT_MS,
        "partition.assignment.strategy": "cooperative-sticky",
        **client_config(settings),
        "group.id": settings.kafka_group,
        "enable.auto.commit": False,
    }


def open_client(client: Callable[[dict[str, Any]], Any], config: Mapping[str, Any]) -> Any:
    """A client of librdkafka.

    Raises:
        ConfigurationError: it does not take these properties.
    """
    try:
        return client(dict(config))
    except KafkaException as error:
        raise_domain_error(error.args[0])


def raise_domain_error(error: KafkaError) -> NoReturn:
    """Raises what went wrong in words of the domain."""
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        raise EventRefused(
            "an event is larger than Kafka takes: send less, or raise max.message.bytes of the topic"
        ) from KafkaException(error)
    if error.code() == KafkaError._INVALID_ARG:
        raise ConfigurationError(f"KAFKA_OPTIONS are wrong: {error.str()}") from KafkaException(error)
    if error.code() in _MISSING_TOPIC:
        raise StoreUnavailable("Kafka lacks a topic: run `propositions kafka init`") from KafkaException(
            error
        )
    raise StoreUnavailable(f"Kafka did not do it: {error.str()}") from KafkaException(error)
