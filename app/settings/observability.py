"""What the service tells of itself."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator


class ObservabilitySettings(BaseModel):
    """Logs and traces."""

    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR."
    )
    log_success_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the requests that are answered as they should be (below 400, within SUGGEST_DEADLINE_MS, "
        "at degradation level 0) that are logged. All others are.",
    )
    log_lines_per_second: int = Field(
        100,
        ge=1,
        description="Most lines per second that a worker logs of requests with the same route, status and degradation "
        "level that were not answered as they should be; one more line stands for the rest of that second.",
    )
    log_user_ids: Literal["none", "hashed", "plain"] = Field(
        "none",
        description="Whether lines about requests hold the id of the user: none, hashed (BLAKE2b with "
        "LOG_USER_ID_KEY) or plain.",
    )
    log_user_id_key: SecretStr | None = Field(
        None,
        description="Secret of 16 to 64 bytes that the ids of users are hashed with in logs. Whoever has it can tell "
        "whether an id is in them; with another one, all hashes are others.",
    )

    otel_exporter_otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OpenTelemetry collector that takes traces over HTTP, as http://host:4318; /v1/traces is added. "
        "Unset: nothing is traced.",
    )
    otel_sdk_disabled: bool = Field(
        False, description="Whether nothing is traced though OTEL_EXPORTER_OTLP_ENDPOINT is set."
    )
    otel_exporter_otlp_headers: SecretStr | None = Field(
        None, description="Headers for the collector, as name=value, comma-separated."
    )
    otel_exporter_otlp_certificate: Path | None = Field(
        None,
        description="File with the certificates that the collector's is checked against. Unset: the public ones.",
    )
    otel_traces_sampler_arg: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the traces that begin here which are recorded. Requests with a `traceparent` are "
        "recorded if their caller is.",
    )
    otel_service_name: str = Field(
        "propositions", min_length=1, description="Name of the service in its traces."
    )

    @field_validator("log_user_id_key")
    @classmethod
    def _is_key_of_blake2b(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not 16 <= len(value.get_secret_value().encode()) <= 64:
            raise ValueError("give 16 to 64 bytes, for example what `openssl rand -hex 24` prints")
        return value

    @model_validator(mode="after")
    def _can_hash_user_ids(self) -> Self:
        if self.log_user_ids == "hashed" and self.log_user_id_key is None:
            raise ValueError(
                "LOG_USER_IDS=hashed needs LOG_USER_ID_KEY: set it to a secret of 16 to 64 bytes"
            )
        return self

    @property
    def is_traced(self) -> bool:
        return self.otel_exporter_otlp_endpoint is not None and not self.otel_sdk_disabled
