"""How the service is reached, by whom, and how much of it."""

import re
from ipaddress import ip_address
from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from app.settings.kinds import CommaSeparated

ClosableRoutes = Literal["metrics", "docs", "catalog", "users"]
NO_LIMIT = "none"
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")


class WebSettings(BaseModel):
    """Addresses, limits and workers."""

    host: str = Field("127.0.0.1", description="Address that the service listens on.")
    port: int = Field(8080, ge=1, le=65_535, description="Port that the service listens on.")
    private_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Second port, for operators. If it is set, metrics, documentation, catalog and users are answered "
        "there only, and the first two without a key; the health routes answer on both. 0: all is on `PORT`.",
    )
    closed_routes: CommaSeparated[ClosableRoutes] = Field(
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
    cors_origins: CommaSeparated[str] = Field(
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

    @model_validator(mode="after")
    def _is_reached_as_meant(self) -> Self:
        if self.development_mode and not _is_loopback(self.host):
            raise ValueError(
                f"DEVELOPMENT_MODE=true lets everybody in who reaches HOST={self.host}: unset DEVELOPMENT_MODE, or set "
                "HOST to a loopback address such as 127.0.0.1"
            )
        if self.private_port == self.port:
            raise ValueError(f"PRIVATE_PORT={self.private_port} is PORT as well: give it a number of its own")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
