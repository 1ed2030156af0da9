"""PostgreSQL, Redis, and the folders of this machine."""

import os
import re
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from app.domain.errors import ConfigurationError
from app.settings.kinds import CommaSeparated

_MEMORY_DIR = Path("/dev/shm")  # noqa: S108  (a folder of our own in it, which nobody else may enter)
_PLACE = re.compile(r"[^\s:,]+:[0-9]{1,5}")


class StoreSettings(BaseModel):
    """Where data lie, and how long to wait for them."""

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
    redis_sentinels: CommaSeparated[str] = Field(
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

    @field_validator("redis_sentinels")
    @classmethod
    def _are_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_PLACE.fullmatch(place) for place in value):
            raise ValueError("give host:port of each, such as sentinel-0:26379,sentinel-1:26379")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        return _require_scheme(value, ("postgresql://", "postgres://"))

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        return _require_scheme(value, ("redis://", "rediss://"))

    @model_validator(mode="after")
    def _is_cluster_or_has_sentinels(self) -> Self:
        if self.redis_cluster and self.redis_sentinels:
            raise ValueError(
                "REDIS_CLUSTER and REDIS_SENTINELS exclude each other: a cluster has no Sentinels"
            )
        return self

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


def _require_scheme(value: SecretStr | None, schemes: tuple[str, ...]) -> SecretStr | None:
    if value is not None and not value.get_secret_value().startswith(schemes):
        raise ValueError(f"must start with {' or '.join(schemes)}")
    return value
