"""Connections to Redis: a deadline on every step and no hidden retries."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException
from redis.retry import Retry

# What a client may raise: redis-py's errors of a cluster are a family of their own.
REDIS_ERRORS = (redis.RedisError, RedisClusterException)


def connect_redis(
    address: str, timeout_ms: int, max_connections: int = 16, cluster: bool = False
) -> "redis.Redis | ClusterClient":
    """A client that gives up after `timeout_ms` per step and never tries again by itself.

    A caller that finds all `max_connections` (of one node, with `cluster`) in use gets an error at once.

    redis-py's own retries make a refused connection cost seconds.
    """
    client = ClusterClient if cluster else redis.Redis.from_url
    return client(
        address,
        socket_timeout=timeout_ms / 1_000,
        socket_connect_timeout=timeout_ms / 1_000,
        retry=Retry(NoBackoff(), 0),
        max_connections=max_connections,
        driver_info=None,  # introducing ourselves would cost each new connection two round trips
    )


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
