"""Kafka, for whoever takes events in through it."""

import json

from pydantic import BaseModel, Field, SecretStr, field_validator


class KafkaSettings(BaseModel):
    """Which brokers, which topics, and what librdkafka is told."""

    kafka_bootstrap_servers: str | None = Field(
        None,
        description="Kafka brokers that take events before PostgreSQL does, as host:port, comma-separated. "
        "Unset: no Kafka, events go to PostgreSQL at once.",
    )
    kafka_options: SecretStr | None = Field(
        None,
        description="Further properties of librdkafka for all connections to Kafka, as a JSON object, for example "
        '{"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "p"}.',
    )
    kafka_topic_prefix: str = Field(
        "propositions.",
        pattern="^[A-Za-z0-9._-]{0,200}$",
        description="Begin of the names of all topics: what follows is `events` and `events.dead`.",
    )
    kafka_partitions: int = Field(
        12,
        ge=1,
        le=10_000,
        description="Partitions of the topic of events that `propositions kafka init` creates: as many processes can "
        "bring events into PostgreSQL at once.",
    )
    kafka_replication: int | None = Field(
        None,
        ge=1,
        description="Copies of each partition that `propositions kafka init` asks for. Unset: the brokers' default.",
    )
    kafka_group: str = Field(
        "propositions-projector",
        min_length=1,
        description="Consumer group that brings events from Kafka into PostgreSQL.",
    )
    kafka_timeout_ms: int = Field(
        2_000,
        ge=100,
        le=300_000,
        description="Milliseconds in which Kafka must acknowledge events.",
    )

    @field_validator("kafka_options")
    @classmethod
    def _are_properties(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            options = json.loads(value.get_secret_value()) if value is not None else {}
        except ValueError:
            options = None
        # The text of the error must not repeat what may be a password.
        if not isinstance(options, dict) or not all(
            isinstance(v, str | int | float) for v in options.values()
        ):
            raise ValueError("give a JSON object of texts, numbers and booleans")
        return value

    @property
    def kafka_properties(self) -> dict[str, str | int | float]:
        """`KAFKA_OPTIONS` by name."""
        return json.loads(self.kafka_options.get_secret_value()) if self.kafka_options is not None else {}

    @property
    def kafka_events_topic(self) -> str:
        return f"{self.kafka_topic_prefix}events"

    @property
    def kafka_dead_topic(self) -> str:
        return f"{self.kafka_events_topic}.dead"
