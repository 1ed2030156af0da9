"""Every setting, once: name, type, unit, default and help. Read from the environment and `.env`."""

import json
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from hashlib import blake2b
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from app.domain.errors import ConfigurationError
from app.domain.rules import RulesWeights

CommaSeparated = NoDecode

_MEMORY_DIR = Path("/dev/shm")  # noqa: S108  (a folder of our own in it, which nobody else may enter)
ClosableRoutes = Literal["metrics", "docs", "catalog", "users"]

NO_LIMIT = "none"
_PLACE = re.compile(r"[^\s:,]+:[0-9]{1,5}")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")


class DefaultProposition(BaseModel):
    """One entry of the static default slate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    proposition_id: str = Field(min_length=1, max_length=200)
    title: str
    category: str | None = None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL to use, as postgresql://user:password@host:port/name?sslmode=require. "
        "Unset: the embedded server that `propositions up` starts.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis-protocol server to use, as redis://[:password@]host:port/db or rediss://. "
        "Unset: the embedded server that `propositions up` starts.",
    )
    redis_cluster: bool = Field(
        False, description="Whether REDIS_URL names a node of a Redis Cluster, which leads to the others."
    )
    redis_sentinels: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="Redis Sentinels, as host:port, comma-separated. They know where the primary is whose name stands in "
        "REDIS_URL in place of a host, as in redis://:password@mymaster/0. Unset: none.",
    )
    redis_sentinel_password: SecretStr | None = Field(
        None, description="Password of the Sentinels themselves. Unset: they ask for none."
    )
    data_dir: Path = Field(
        Path(".propositions"),
        description="Folder for the embedded servers, models, snapshots and metrics of this machine.",
    )
    feature_repo_dir: Path | None = Field(
        None, description="Folder of the Feast feature repo. Unset: the one that is installed."
    )

    database_pool_size: int = Field(5, ge=1, le=100, description="Connections to PostgreSQL per process.")
    database_connect_timeout_s: int = Field(
        2, ge=1, le=60, description="Seconds to wait for a new PostgreSQL connection, or for a free one."
    )
    database_timeout_ms: int = Field(
        2_000,
        ge=50,
        le=600_000,
        description="Milliseconds that one PostgreSQL statement of the service may take.",
    )
    database_batch_timeout_ms: int = Field(
        600_000,
        ge=1_000,
        description="Milliseconds that one PostgreSQL statement of an import, replay or training may take.",
    )
    migration_lock_timeout_ms: int = Field(
        5_000, ge=100, description="Milliseconds that a migration waits for a table lock before it gives up."
    )
    migration_timeout_ms: int = Field(
        60_000, ge=1_000, description="Milliseconds that one statement of a migration may take."
    )
    redis_timeout_ms: int = Field(
        50,
        ge=1,
        le=10_000,
        description="Milliseconds that a request waits for Redis before it ranks without it.",
    )
    redis_batch_timeout_ms: int = Field(
        10_000,
        ge=100,
        description="Milliseconds that a bulk write to Redis (projection, materialization) may stall.",
    )

    redis_pool_size: int = Field(
        200,
        ge=1,
        le=10_000,
        description="Connections to Redis per web worker; requests beyond rank without it.",
    )

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

    half_lives_s: Annotated[tuple[float, ...], CommaSeparated] = Field(
        (3_600.0, 86_400.0, 604_800.0, 2_592_000.0),
        description="Half-lives of the decayed counters in seconds, ascending, comma-separated. "
        "After a change run `propositions rebuild-features` and train again.",
    )
    covisit_window_s: float = Field(
        86_400.0,
        gt=0,
        description="Seconds that two clicks or conversions of a user may lie apart to make their propositions "
        "neighbours. After a change run `propositions rebuild-features`.",
    )
    covisit_half_life_s: float = Field(
        2_592_000.0,
        gt=0,
        description="Half-life of the weights between neighbouring propositions in seconds. "
        "After a change run `propositions rebuild-features`.",
    )
    context_fields: Annotated[tuple[str, ...], CommaSeparated] = Field(
        ("page", "device", "daypart", "weekday"),
        description="Fields of a context that tell contexts apart, comma-separated. "
        "After a change train again.",
    )
    timezone: str = Field("UTC", description="Time zone of the dayparts and weekdays, as an IANA name.")
    max_future_s: int = Field(
        300, ge=0, description="Seconds that an event's timestamp may lie ahead of this machine's clock."
    )

    host: str = Field("127.0.0.1", description="Address that the service listens on.")
    port: int = Field(8080, ge=1, le=65_535, description="Port that the service listens on.")
    private_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Second port, for operators. If it is set, metrics, documentation, catalog and users are answered "
        "there only, and the first two without a key; the health routes answer on both. 0: all is on `PORT`.",
    )
    closed_routes: Annotated[tuple[ClosableRoutes, ...], CommaSeparated] = Field(
        (),
        description="Routes that are answered as if they did not exist, comma-separated: metrics, docs, catalog, users.",
    )
    development_mode: bool = Field(
        False,
        description="Whether requests need no API key. Only where `HOST` is a loopback address, and never in production.",
    )
    rate_limit_per_key: str = Field(
        "3000 per second",
        description="Most requests with one API key, such as 100 per minute. none: no limit.",
    )
    rate_limit_per_address: str = Field(
        "6000 per second",
        description="Most requests from one address (for IPv6, from one /64). none: no limit.",
    )
    rate_limit_unauthorized: str = Field(
        "60 per minute",
        description="Most requests without a good key from one address that are answered 401; further ones are 429. "
        "Those with a good key are not affected. none: no limit.",
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        le=10,
        description="Proxies before the service that append to `X-Forwarded-For`; clients' addresses are taken from "
        "there. 0: the header is ignored.",
    )
    cors_origins: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="Origins whose pages may ask, such as https://shop.example, comma-separated and complete; "
        "wildcards are refused. Unset: none.",
    )
    web_workers: int = Field(2, ge=1, le=64, description="gunicorn worker processes.")
    web_connections: int = Field(1_000, ge=1, description="Concurrent connections per worker.")
    shutdown_drain_s: float = Field(
        0.0,
        ge=0,
        le=25,
        description="Seconds for which a service that is told to end still answers while `/health/ready` says 503, for "
        "balancers to notice. Requests under way are finished in any case.",
    )
    max_body_bytes: int = Field(4_194_304, ge=1_024, description="Largest request body in bytes.")
    max_batch_events: int = Field(1_000, ge=1, le=100_000, description="Most events in one request.")
    max_limit: int = Field(100, ge=1, le=1_000, description="Longest slate that a request may ask for.")
    retry_after_s: int = Field(5, ge=1, description="Seconds named in `Retry-After` when a store is down.")
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

    suggest_deadline_ms: int = Field(
        80,
        ge=1,
        le=60_000,
        description="Milliseconds in which a slate is answered; what would overrun is skipped in favour of the "
        "next degradation level. A request may lower it with `X-Deadline-Ms`.",
    )
    candidate_budget: int = Field(
        500,
        ge=1,
        description="Most propositions that are scored per request; smaller catalogs are scored whole.",
    )
    new_below_impressions: float = Field(
        20.0, ge=0, description="A proposition with fewer (decayed) impressions than this is new."
    )
    candidate_features_max_age_s: float = Field(
        5.0,
        gt=0,
        description="Seconds for which the counters of candidates count as they were; six times as long while no "
        "event changes them and they only decay.",
    )
    scorer_memory_mb: int = Field(
        256, ge=1, description="Memory per worker for what scoring knows of candidates in each context."
    )
    suggest_cache_ttl_s: float = Field(
        30.0,
        ge=0,
        description="Seconds for which a slate answers equal requests of its user, until an event of the user, "
        "another model or a changed catalog. 0: never.",
    )
    rules_weight_frequency: float = Field(1.0, ge=0, description="Rules: weight of the smoothed click rate.")
    rules_weight_recency: float = Field(
        0.1, ge=0, description="Rules: weight of how lately anything happened."
    )
    rules_weight_context: float = Field(
        1.0, ge=0, description="Rules: weight of the click rate in this context."
    )
    rules_recency_half_life_s: float = Field(
        86_400.0, gt=0, description="Rules: half-life of recency in seconds."
    )
    default_slate: tuple[DefaultProposition, ...] = Field(
        (DefaultProposition(proposition_id="explore", title="See what is new"),),
        min_length=1,
        description="Propositions to show when there is nothing else, best first, as a JSON list of "
        '{"proposition_id", "title", "category"}.',
    )

    event_primary_timeout_ms: int = Field(
        100,
        ge=1,
        le=60_000,
        description="Milliseconds that an event waits for PostgreSQL (or Kafka) before it goes to the spool on local "
        "disk.",
    )
    spool_max_bytes: int = Field(
        268_435_456,
        ge=4_096,
        description="Bytes of events that may wait on local disk while PostgreSQL (or Kafka) is down; beyond, events "
        "are refused for now.",
    )
    snapshot_refresh_s: float = Field(
        1.0,
        gt=0,
        description="Seconds between looks for changed propositions, features and models. A change is seen within "
        "three times this, or a few seconds for millions of propositions.",
    )
    decision_queue_size: int = Field(
        10_000,
        ge=1,
        description="Decisions that may wait to be logged; further ones are dropped and counted.",
    )
    decision_features_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the decisions by the model that are logged with the features that it read, for "
        "`propositions skew` to compare with what training would have read. 0: none.",
    )
    project_poll_s: float = Field(
        0.2, gt=0, description="Seconds between looks for new events when following."
    )
    project_batch_events: int = Field(5_000, ge=1, description="Events that the projector folds per commit.")
    project_metrics_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port on `HOST` where `propositions project --follow` serves its Prometheus metrics. 0: nowhere.",
    )

    event_retention_days: int = Field(
        730,
        ge=0,
        le=36_500,
        description="Days for which `propositions maintain` keeps events, their ids and the feature rows that "
        "go with them; older events are not taken in any more. 0: for ever.",
    )
    decision_retention_days: int = Field(
        730,
        ge=0,
        le=36_500,
        description="Days for which `propositions maintain` keeps logged decisions. 0: for ever.",
    )
    forgotten_user_days: int = Field(
        365,
        ge=0,
        le=36_500,
        description="Days for which late copies of the events of a forgotten user are recognized and dropped, "
        "wherever they waited. 0: for ever.",
    )

    @field_validator(
        *("half_lives_s", "context_fields", "closed_routes", "cors_origins", "redis_sentinels"), mode="before"
    )
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("half_lives_s")
    @classmethod
    def _half_lives_ascend(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[0] <= 0 or list(value) != sorted(set(value)):
            raise ValueError("give positive seconds in ascending order, for example 3600,86400")
        return value

    @field_validator("context_fields")
    @classmethod
    def _context_fields_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(name.isidentifier() for name in value):
            raise ValueError("give one or more names of letters, digits and underscores")
        return value

    @field_validator("rate_limit_per_key", "rate_limit_per_address", "rate_limit_unauthorized")
    @classmethod
    def _is_rate(cls, value: str) -> str:
        if value in ("", NO_LIMIT):
            return NO_LIMIT
        from limits import parse_many  # takes a twentieth of a second, which most commands need not

        try:
            parse_many(value)
        except ValueError as error:
            raise ValueError(f"give a rate such as 100 per minute, or {NO_LIMIT}") from error
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_ORIGIN.fullmatch(origin) for origin in value):
            raise ValueError(
                "give complete origins such as https://shop.example:8443, without a path or wildcards"
            )
        return value

    @field_validator("redis_sentinels")
    @classmethod
    def _are_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_PLACE.fullmatch(place) for place in value):
            raise ValueError("give host:port of each, such as sentinel-0:26379,sentinel-1:26379")
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("give an IANA name such as Europe/Berlin") from error
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        return _require_scheme(value, ("postgresql://", "postgres://"))

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        return _require_scheme(value, ("redis://", "rediss://"))

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

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.development_mode and not _is_loopback(self.host):
            raise ValueError(
                f"DEVELOPMENT_MODE=true lets everybody in who reaches HOST={self.host}: unset DEVELOPMENT_MODE, or set "
                "HOST to a loopback address such as 127.0.0.1"
            )
        if self.redis_cluster and self.redis_sentinels:
            raise ValueError(
                "REDIS_CLUSTER and REDIS_SENTINELS exclude each other: a cluster has no Sentinels"
            )
        if self.private_port == self.port:
            raise ValueError(f"PRIVATE_PORT={self.private_port} is PORT as well: give it a number of its own")
        return self

    @property
    def is_traced(self) -> bool:
        return self.otel_exporter_otlp_endpoint is not None and not self.otel_sdk_disabled

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

    @property
    def embedded_dir(self) -> Path:
        return self.data_dir / "embedded"

    @property
    def model_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def snapshot_dir(self) -> Path:
        return self.data_dir / "snapshot"

    @property
    def spool_dir(self) -> Path:
        return self.data_dir / "spool"

    @property
    def metrics_dir(self) -> Path:
        """In memory where there is a place for files in it: to write to a mapped file on a full disk kills a process."""
        if not _MEMORY_DIR.is_dir():
            return self.data_dir / "metrics"
        digest = blake2b(str(self.data_dir).encode(), digest_size=8).hexdigest()
        return _MEMORY_DIR / f"propositions-{os.getuid()}-{digest}"

    @property
    def feature_repo(self) -> Path:
        if self.feature_repo_dir is not None:
            return self.feature_repo_dir
        (installed,) = find_spec("feature_repo").submodule_search_locations
        return Path(installed)

    @property
    def rules_weights(self) -> RulesWeights:
        return RulesWeights(
            frequency=self.rules_weight_frequency,
            recency=self.rules_weight_recency,
            context=self.rules_weight_context,
            recency_half_life_s=self.rules_recency_half_life_s,
        )

    @property
    def suggest_cache_ttl(self) -> timedelta:
        return timedelta(seconds=self.suggest_cache_ttl_s)

    @property
    def max_future(self) -> timedelta:
        return timedelta(seconds=self.max_future_s)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def postgres_url(self) -> str:
        """The address of PostgreSQL with its password.

        Raises:
            ConfigurationError: neither `DATABASE_URL` nor embedded servers are there.
        """
        return self._address("database_url")

    @property
    def redis_address(self) -> str:
        """The address of Redis with its password.

        Raises:
            ConfigurationError: neither `REDIS_URL` nor embedded servers are there.
        """
        return self._address("redis_url")

    def _address(self, name: str) -> str:
        secret: SecretStr | None = getattr(self, name)
        if secret is None:
            raise ConfigurationError(
                f"{name.upper()} is not set and no embedded servers were started in {self.data_dir}: "
                f"run `propositions up`, or set {name.upper()}"
            )
        return secret.get_secret_value()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_scheme(value: SecretStr | None, schemes: tuple[str, ...]) -> SecretStr | None:
    if value is not None and not value.get_secret_value().startswith(schemes):
        raise ValueError(f"must start with {' or '.join(schemes)}")
    return value


def load_settings() -> Settings:
    """The settings of this process; addresses that are not set come from the embedded servers.

    Raises:
        ConfigurationError: lists every bad value at once.
    """
    try:
        settings = Settings(_env_file=_env_file())
        # Absolute, because tools such as `feast` run in folders of their own.
        settings = settings.model_copy(update={"data_dir": _find_data_dir(settings)})
        return settings.model_copy(update=_embedded_addresses(settings))
    except ValidationError as error:
        raise ConfigurationError(_describe(error)) from error
    except SettingsError as error:
        raise ConfigurationError(f"a setting is wrong: {error}") from error


def _env_file() -> Path:
    """`.env` of this folder; inside the feature repo, where `feast` runs, that of the folder above."""
    is_feature_repo = Path("feature_store.yaml").exists() and not Path(".env").exists()
    return Path("../.env" if is_feature_repo else ".env")


def _find_data_dir(settings: Settings) -> Path:
    """`DATA_DIR` as given, looked for in this folder, else in the parent: `feast` runs one level down."""
    here = settings.data_dir.resolve()
    above = (Path("..") / settings.data_dir).resolve()
    return above if not here.exists() and above.exists() and not settings.data_dir.is_absolute() else here


def _embedded_addresses(settings: Settings) -> dict[str, SecretStr]:
    addresses_file = settings.embedded_dir / "addresses.json"
    if not addresses_file.exists():
        return {}
    addresses = json.loads(addresses_file.read_text())
    return {
        name: SecretStr(addresses[name])
        for name in ("database_url", "redis_url")
        if getattr(settings, name) is None and name in addresses
    }


def _describe(error: ValidationError) -> str:
    lines = ["these settings are wrong:"]
    for problem in error.errors():
        if not problem["loc"]:  # about several settings, which it names
            lines.append(f"  {problem['msg']}.")
            continue
        name = str(problem["loc"][0])
        help_text = Settings.model_fields[name].description
        shown = (
            "" if SecretStr in get_args(Settings.model_fields[name].annotation) else f"={problem['input']!r}"
        )
        lines.append(f"  {name.upper()}{shown}: {problem['msg']}. {help_text}")
    return "\n".join(lines)


def describe_settings(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """(NAME, value, help) of every setting, with passwords masked."""
    for name, field in Settings.model_fields.items():
        yield name.upper(), show_value(getattr(settings, name)), field.description or ""


def show_value(value: Any) -> str:
    """A value as it would stand in the environment; secrets as stars, nothing as an empty text."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return str(value)
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return json.dumps([entry.model_dump(exclude_none=True) for entry in value])
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" if isinstance(part, float) else part for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
