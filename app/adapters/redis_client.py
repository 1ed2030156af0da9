"""Connections to Redis: a deadline on every step and no hidden retries."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import SSLConnection, parse_url
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from app.settings import Settings

# What a client may raise: redis-py's errors of a cluster are a family of their own.
REDIS_ERRORS = (redis.RedisError, RedisClusterException)


def open_redis(
    settings: Settings, timeout_ms: int, max_connections: int = 16
) -> "redis.Redis | ClusterClient":
    """`connect_redis` to where the settings say."""
    password = settings.redis_sentinel_password
    return connect_redis(
        settings.redis_address,
        timeout_ms,
        max_connections,
        settings.redis_cluster,
        settings.redis_sentinels,
        None if password is None else password.get_secret_value(),
    )


def connect_redis(
    address: str,
    timeout_ms: int,
    max_connections: int = 16,
    cluster: bool = False,
    sentinels: Sequence[str] = (),
    sentinel_password: str | None = None,
) -> "redis.Redis | ClusterClient":
    """A client that gives up after `timeout_ms` per step and never tries again by itself.

    A caller that finds all `max_connections` (of one node, with `cluster`) in use gets an error at once. `sentinels`,
    as host:port, are asked with each new connection for the primary whose name is the host in `address`.

    redis-py's own retries make a refused connection cost seconds.
    """
    patience = {
        "socket_timeout": timeout_ms / 1_000,
        "socket_connect_timeout": timeout_ms / 1_000,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,  # introducing ourselves would cost each new connection two round trips
    }
    if sentinels:
        return _primary(address, sentinels, sentinel_password, patience, max_connections)
    client = ClusterClient if cluster else redis.Redis.from_url
    return client(address, max_connections=max_connections, **patience)


def _primary(
    address: str,
    sentinels: Sequence[str],
    password: str | None,
    patience: dict[str, Any],
    max_connections: int,
) -> redis.Redis:
    """A client of the primary that the Sentinels name; with rediss:// these are spoken to through TLS, too."""
    of_primary = parse_url(address)
    name = of_primary.pop("host")
    is_tls = of_primary.pop("connection_class", None) is SSLConnection
    tls = {"ssl": is_tls} | {key: value for key, value in of_primary.items() if key.startswith("ssl_")}
    places = [sentinel.rsplit(":", 1) for sentinel in sentinels]
    asked = Sentinel(
        [(host, int(port)) for host, port in places],
        sentinel_kwargs={**patience, **tls, "password": password},
    )
    options = {**of_primary, **patience, "ssl": is_tls}
    return asked.master_for(name, max_connections=max_connections, **options)


class ClusterClient:
    """redis-py's `RedisCluster`, made when it is first used: making one needs a cluster that answers."""

    def __init__(self, address: str, **options: Any) -> None:
        self._connect: Callable[[], redis.RedisCluster] = partial(
            redis.RedisCluster.from_url, address, **options
        )
        self._connecting = threading.Lock()
        self._client: redis.RedisCluster | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client or self._connected(), name)

    def _connected(self) -> redis.RedisCluster:
        # Who comes second does not queue up behind a cluster that does not answer.
        if not self._connecting.acquire(blocking=False):
            raise redis.ConnectionError("the connection to the cluster is not ready yet")
        try:
            self._client = self._connect()
            return self._client
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error
        finally:
            self._connecting.release()


class RedisProbe:
    """Whether Redis answered the last time it was asked. In a cluster, finds the nodes that moved."""

    def __init__(self, client: redis.Redis | ClusterClient) -> None:
        self._client = client
        self.problem: str | None = "not asked yet"

    def refresh(self) -> None:
        try:
            self._client.ping()
            self.problem = None
        except REDIS_ERRORS as error:
            self.problem = str(error)
