"""Counts that processes share through a real Redis, and go on with alone."""

import logging
import socket

import pytest
import redis
from limits import parse
from limits.strategies import FixedWindowRateLimiter

from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import open_wire
from app.adapters.shared_counts import KEY_PREFIX, SharedCounts
from app.api.rate_limits import CountsStorage
from app.domain.errors import StoreUnavailable

MINUTE_S = 60
BEGIN_S = 1_800_000_000.0  # of a minute


class Clock:
    now_s = BEGIN_S

    def __call__(self) -> float:
        return self.now_s


class Cable:
    """A wire that can be cut. A lossy one delivers what is asked and loses the answer."""

    def __init__(self, wire) -> None:
        self._wire = wire
        self.is_cut = self.is_lossy = False
        self.asked = 0

    def ask(self, packed, reply_count, timeout_s=None):
        self.asked += 1
        if self.is_cut:
            raise StoreUnavailable("cut")
        replies = self._wire.ask(packed, reply_count, timeout_s)
        if self.is_lossy:
            raise StoreUnavailable("timed out")
        return replies


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def client(settings):
    with redis.Redis.from_url(settings.redis_address) as client:
        yield client


@pytest.fixture
def cable(settings):
    return Cable(open_wire(connect_redis(settings.redis_address, 1_000)))


@pytest.fixture
def worker(cable, clock):
    """Makes the counts of one more process."""
    return lambda **options: SharedCounts(cable, clock, **options)


def exchange(*workers):
    """Everybody states its counts, and then learns those of the others from what changes next."""
    for counts in workers:
        counts.exchange()


def test_a_count_is_that_of_its_own_process_at_once(worker):
    one = worker()

    assert [one.add("a", MINUTE_S), one.add("a", MINUTE_S), one.add("b", MINUTE_S, 5)] == [1, 2, 5]
    assert (one.get("a"), one.get("b"), one.get("c")) == (2, 5, 0)


def test_after_an_exchange_a_process_counts_on_from_what_all_have_counted(worker):
    one, two = worker(), worker()
    one.add("a", MINUTE_S, 3)
    two.add("a", MINUTE_S, 4)

    exchange(one, two)

    assert two.add("a", MINUTE_S) == 8
    exchange(two)
    one.add("a", MINUTE_S)
    exchange(one)
    assert one.get("a") == 9


def test_two_storages_share_a_limit(worker):
    one, two = worker(), worker()
    limit = parse("10 per minute")
    hit = [FixedWindowRateLimiter(CountsStorage("counts://", counts)).hit for counts in (one, two)]
    answers = []
    for _ in range(10):
        answers += [each(limit, "key", "k1") for each in hit]
        exchange(one, two)

    assert 10 <= answers.count(True) <= 12 and answers[-4:] == [False] * 4
    assert [each(limit, "key", "k2") for each in hit] == [True, True]


def test_an_exchange_that_is_repeated_counts_nothing_twice(worker, cable):
    one, two = worker(), worker()
    one.add("a", MINUTE_S, 3)
    cable.is_lossy = True
    exchange(one, one, one)
    cable.is_lossy = False
    exchange(one)

    two.add("a", MINUTE_S)
    exchange(two)

    assert two.get("a") == 4


def test_with_redis_gone_each_process_limits_alone_and_when_it_is_back_all_share_again(worker, cable, caplog):
    one, two = worker(), worker()
    one.add("a", MINUTE_S, 2)
    exchange(one)
    cable.is_cut = True

    for _ in range(3):
        one.add("a", MINUTE_S)
        two.add("a", MINUTE_S)
        exchange(one, two)
    assert (one.get("a"), two.get("a")) == (5, 3)
    assert len(caplog.records) == 2  # one of each process

    cable.is_cut = False
    exchange(one, two)
    assert two.get("a") == 8


def test_a_redis_that_lost_everything_takes_back_nothing(worker, client):
    one, two = worker(), worker()
    one.add("a", MINUTE_S, 3)
    exchange(one)
    two.add("a", MINUTE_S)
    exchange(two)

    client.flushdb()
    two.add("a", MINUTE_S)
    exchange(two)

    assert two.get("a") == 5


def test_nothing_is_asked_of_redis_when_a_request_counts_or_nothing_changed(worker, cable):
    one = worker()
    one.add("a", MINUTE_S)
    one.get("a")
    assert cable.asked == 0

    exchange(one, one, one)

    assert cable.asked == 1


def test_a_redis_that_never_replies_holds_up_the_exchange_only_for_its_timeout(clock):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        one = SharedCounts(open_wire(connect_redis(address, 50)), clock)
        one.add("a", MINUTE_S)

        exchange(one)

        assert one.add("a", MINUTE_S) == 2


def test_a_redis_that_refuses_connections_is_no_error(clock, caplog):
    caplog.set_level(logging.WARNING)
    one = SharedCounts(open_wire(connect_redis("redis://127.0.0.1:1/0", 50)), clock)
    one.add("a", MINUTE_S)

    exchange(one)

    assert "per process" in caplog.text


def test_windows_begin_at_the_same_moment_everywhere(worker, clock):
    one = worker()
    clock.now_s = BEGIN_S + 59.9
    one.add("a", MINUTE_S, 5)
    assert one.ends_s("a") == BEGIN_S + 60
    exchange(one)

    clock.now_s = BEGIN_S + 60
    assert one.get("a") == 0
    assert one.add("a", MINUTE_S) == 1
    two = worker()
    two.add("a", MINUTE_S)
    exchange(one, two)
    assert two.get("a") == 2


def test_lengths_are_counted_apart(worker, clock):
    one = worker()
    one.add("per second", 1, 7)
    one.add("per minute", MINUTE_S, 7)

    clock.now_s += 1

    assert (one.get("per second"), one.get("per minute")) == (0, 7)


def test_what_is_in_redis_ends_soon_after_its_window(worker, client):
    one = worker()
    one.add("a", MINUTE_S)
    exchange(one)

    (key,) = client.keys("*")
    assert key.decode().startswith(KEY_PREFIX)
    assert 0 < client.ttl(key) <= MINUTE_S + 5


def test_expired_windows_are_dropped(worker, clock):
    one = worker()
    for n in range(100):
        one.add(f"address {n}", 1)
    clock.now_s += 1

    exchange(one)

    assert len(one) == 0


def test_an_attacker_with_many_addresses_fills_no_memory(worker, cable):
    one = worker(max_counts=10)
    cable.is_cut = True
    for n in range(1_000):
        one.add(f"address {n}", MINUTE_S)
        if n % 7 == 0:
            exchange(one)

    (window,) = one._windows.values()
    assert len(one) == 10 and len(window.changed) <= 10
    assert one.add("address 999", MINUTE_S) == 2


def test_more_changes_than_one_exchange_takes_come_with_the_next(worker, client, monkeypatch):
    monkeypatch.setattr("app.adapters.shared_counts.MAX_EXCHANGED", 3)
    one = worker()
    for n in range(7):
        one.add(f"a{n}", MINUTE_S)

    sizes = []
    for _ in range(4):
        exchange(one)
        sizes.append(len(client.keys("*")))

    assert sizes == [3, 6, 7, 7]


def test_a_clock_that_is_set_back_begins_a_window_anew(worker, clock):
    one = worker()
    one.add("a", MINUTE_S, 5)

    clock.now_s -= 3_600

    assert one.add("a", MINUTE_S) == 1


def test_what_is_cleared_is_not_counted_here_any_more(worker):
    one = worker()
    one.add("a", MINUTE_S, 5)

    CountsStorage("counts://", one).clear("a")

    assert one.get("a") == 0
