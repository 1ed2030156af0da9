"""The breaker before Redis opens by what Redis does, and not by what callers ask for."""

import pytest

from app.adapters.breaker import CircuitBreaker
from app.adapters.redis_wire import GuardedWire, NoConnectionFree
from app.domain.errors import LeftAlone, StoreUnavailable


class Wire:
    def __init__(self) -> None:
        self.error: Exception = StoreUnavailable("Redis did not answer: timed out")
        self.asked = 0

    def ask(self, packed, reply_count, timeout_s=None):
        self.asked += 1
        raise self.error


@pytest.fixture
def breaker():
    return CircuitBreaker(
        "redis",
        2,
        60.0,
        is_failure=lambda error: (
            isinstance(error, StoreUnavailable) and not isinstance(error, NoConnectionFree)
        ),
    )


def ask(wire: GuardedWire, timeout_s: float | None, times: int) -> None:
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            wire.ask(b"", 1, timeout_s)


def test_timeouts_open_it(breaker):
    wire = Wire()
    ask(GuardedWire(wire, breaker), 0.02, 2)

    with pytest.raises(LeftAlone):
        GuardedWire(wire, breaker).ask(b"", 1, 0.02)
    assert wire.asked == 2


def test_callers_with_hardly_any_time_do_not(breaker):
    wire = Wire()
    ask(GuardedWire(wire, breaker), 0.0002, 50)

    assert breaker.state == "closed" and wire.asked == 50


def test_those_are_kept_away_too_once_it_is_open(breaker):
    wire = Wire()
    ask(GuardedWire(wire, breaker), None, 2)
    ask(GuardedWire(wire, breaker), 0.0002, 5)

    assert wire.asked == 2


def test_more_callers_than_connections_do_not(breaker):
    wire = Wire()
    wire.error = NoConnectionFree("all connections to Redis are in use")
    ask(GuardedWire(wire, breaker), 0.05, 50)

    assert breaker.state == "closed"
