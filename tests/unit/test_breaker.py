"""A dependency that fails again and again is left alone, and one call at a time finds out whether it is back."""

import math

import pytest

from app.adapters.breaker import CircuitBreaker
from app.domain.errors import ConfigurationError, LeftAlone, StoreUnavailable
from app.domain.ports import Receipt
from app.domain.types import StoredIn
from app.events.guard import GuardedEventLog
from tests.builders import event

OPEN_S = 2.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


@pytest.fixture
def breaker(clock, told):
    return CircuitBreaker(
        "redis", 2, OPEN_S, 1.0, lambda name, state: told.append((name, state)), clock=clock, work_clock=clock
    )


def down():
    raise StoreUnavailable("down")


def outcome(breaker, work=lambda: "answer"):
    try:
        return breaker.call(work)
    except StoreUnavailable as error:
        return type(error)


def test_after_some_failures_in_a_row_nobody_waits_any_more(breaker, told):
    outcomes = [outcome(breaker, work) for work in (down, lambda: "answer", down, down, down)]

    assert outcomes == [StoreUnavailable, "answer", StoreUnavailable, StoreUnavailable, LeftAlone]
    assert breaker.state == "opened" and told == [("redis", "closed"), ("redis", "opened")]


@pytest.mark.parametrize(
    ("probe", "state"), [(lambda: "answer", "closed"), (down, "opened")], ids=["back", "still down"]
)
def test_when_its_time_is_up_a_probe_decides(breaker, clock, told, probe, state):
    for _ in range(2):
        outcome(breaker, down)
    clock.now_s += OPEN_S

    outcome(breaker, probe)

    assert [changed for _, changed in told] == ["closed", "opened", "half-opened", state]


def test_a_probe_that_fails_opens_it_for_as_long_again(breaker, clock):
    for _ in range(2):
        outcome(breaker, down)
    clock.now_s += OPEN_S
    outcome(breaker, down)

    clock.now_s += OPEN_S - 0.1
    assert outcome(breaker) is LeftAlone
    clock.now_s += 0.1
    assert outcome(breaker) == "answer"


def test_one_probe_at_a_time(breaker, clock):
    for _ in range(2):
        outcome(breaker, down)
    clock.now_s += OPEN_S
    others = []

    breaker.call(lambda: others.extend(outcome(breaker) for _ in range(3)))

    assert others == [LeftAlone] * 3
    assert breaker.state == "closed" and outcome(breaker) == "answer"


def test_a_block_is_guarded_like_a_call(breaker, clock):
    for _ in range(2):
        with pytest.raises(StoreUnavailable), breaker.guard():
            down()
    with pytest.raises(LeftAlone), breaker.guard():
        pytest.fail("was let in")
    clock.now_s += OPEN_S

    with breaker.guard():
        pass

    assert breaker.state == "closed"


def test_work_that_took_too_long_is_a_failure_though_its_answer_counts(breaker, clock):
    def slow():
        clock.now_s += 1.1
        return "late"

    assert [outcome(breaker, slow) for _ in range(2)] == ["late", "late"]
    assert outcome(breaker) is LeftAlone


@pytest.mark.parametrize("error", [ConfigurationError("wrong"), ValueError("a bug")])
def test_what_says_nothing_about_the_dependency_opens_nothing(breaker, error):
    def wrong():
        raise error

    for _ in range(3):
        with pytest.raises(type(error)):
            breaker.call(wrong)

    assert outcome(breaker) == "answer"


def test_the_clock_on_the_wall_may_jump(breaker, clock, monkeypatch):
    for _ in range(2):
        outcome(breaker, down)
    monkeypatch.setattr("time.time", lambda: 0.0)

    clock.now_s += OPEN_S

    assert outcome(breaker) == "answer"


def test_one_that_requests_must_not_probe_closes_by_a_probe_beside_them(clock):
    breaker = CircuitBreaker("model", 1, math.inf, clock=clock)
    outcome(breaker, down)
    clock.now_s += 1e9
    assert outcome(breaker) is LeftAlone

    breaker.probe(down)
    assert breaker.state == "opened"
    breaker.probe(lambda: None)

    assert breaker.state == "closed"


def test_a_probe_before_a_closed_one_does_nothing(breaker):
    breaker.probe(lambda: pytest.fail("was tried"))


def test_an_event_log_behind_one_is_left_alone_as_well(breaker):
    receipt = Receipt(("e1",), (), StoredIn.POSTGRES)
    answers = [receipt, StoreUnavailable("down"), StoreUnavailable("down"), receipt]

    class Log:
        def append(self, events):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    log = GuardedEventLog(Log(), breaker)

    assert log.append([event("e1")]) == receipt
    for expected in (StoreUnavailable, StoreUnavailable, LeftAlone):
        with pytest.raises(expected):
            log.append([event("e1")])
    assert answers == [receipt]


def test_a_state_is_told_when_it_begins(breaker, clock, told):
    for _ in range(2):
        outcome(breaker, down)
    clock.now_s += OPEN_S

    during = breaker.call(lambda: told[-1])

    assert during == ("redis", "half-opened") and told[-1] == ("redis", "closed")


def test_a_trial_may_take_longer_than_a_call(breaker, clock):
    for _ in range(2):
        outcome(breaker, down)

    def long_trial() -> None:
        clock.now_s += 60.0

    breaker.probe(long_trial)

    assert breaker.state == "closed"
