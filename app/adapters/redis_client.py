"""Connections to Redis: a deadline on every step and no hidden retries."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def connect_redis(address: str, timeout_ms: int, max_connections: int = 16) -> redis.Redis:
    """A client that gives up after `timeout_ms` per step and never tries again by itself.

    A caller that finds all `max_connections` in use gets an error at once.

    redis-py's own retries make a refused connection cost seconds.
    """
    return redis.Redis.from_url(
        address,
        socket_timeout=timeout_ms / 1_000,
        socket_connect_timeout=timeout_ms / 1_000,
        retry=Retry(NoBackoff(), 0),
        max_connections=max_connections,
    )


class RedisProbe:
    """Whether Redis answered the last time it was asked."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.problem: str | None = "not asked yet"

    def refresh(self) -> None:
        try:
            self._client.ping()
            self.problem = None
        except redis.RedisError as error:
            self.problem = str(error)
