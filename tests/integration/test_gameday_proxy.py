"""Every fault of the proxy, as a client of the real Redis meets it."""

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.gameday.proxy import Fault, Proxy, proxy_to

TIMEOUT_S = 0.3


@pytest.fixture
def proxy(servers) -> Iterator[Proxy]:
    with proxy_to(urlsplit(servers["redis_url"]).port) as proxy:
        yield proxy


@pytest.fixture
def client(servers, proxy) -> Iterator[redis.Redis]:
    """With an open connection, and no retries."""
    port = urlsplit(servers["redis_url"]).port
    address = servers["redis_url"].replace(f":{port}/", f":{proxy.port}/")
    retry = Retry(NoBackoff(), 0)
    with redis.Redis.from_url(address, socket_timeout=TIMEOUT_S, retry=retry) as client:
        client.flushdb()
        yield client


def test_without_a_fault_everything_passes_in_both_directions(client):
    large = b"x" * 1_000_000

    client.set("key", large)

    assert client.get("key") == large


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.REFUSE, redis.ConnectionError),
        (Fault.CUT, redis.ConnectionError),
        (Fault.SILENT, redis.TimeoutError),
        (Fault.GARBAGE, redis.RedisError),
    ],
)
def test_a_fault_reaches_open_and_new_connections_and_ends(client, proxy, fault, error):
    proxy.set(fault)

    for _ in range(2):
        with pytest.raises(error):
            client.ping()

    proxy.set(Fault.PASS)
    assert client.ping()


def test_what_is_sent_to_a_silent_or_lying_server_never_arrives(client, proxy):
    for fault in (Fault.SILENT, Fault.GARBAGE):
        proxy.set(fault)
        with pytest.raises(redis.RedisError):
            client.set("key", "value")

    proxy.set(Fault.PASS)
    assert client.get("key") is None


def test_a_delay_counts_each_way(client, proxy):
    proxy.set(Fault.DELAY, 0.1)

    began_s = time.monotonic()
    client.ping()

    assert 0.2 <= time.monotonic() - began_s < TIMEOUT_S


def test_a_delay_longer_than_the_clients_patience_is_a_timeout(client, proxy):
    proxy.set(Fault.DELAY, 1.0)

    with pytest.raises(redis.TimeoutError):
        client.ping()


def test_without_a_server_connections_end_at_once():
    with proxy_to(target_port=1) as proxy:
        client = redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0))

        with pytest.raises(redis.ConnectionError):
            client.ping()
