import pytest

from app.domain.errors import ConfigurationError, StoreUnavailable
from app.domain.ports import Receipt
from app.domain.types import StoredIn
from app.events.guard import GuardedEventLog
from tests.builders import event

RECEIPT = Receipt(("e1",), (), StoredIn.POSTGRES)


class ScriptedLog:
    """Answers with what it is given, one after the other; errors are raised."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)

    def append(self, events):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def outcome(guarded):
    try:
        return guarded.append([event("e1")])
    except (StoreUnavailable, ConfigurationError) as error:
        return str(error)


def test_after_some_outages_in_a_row_the_log_is_left_alone():
    log = ScriptedLog(StoreUnavailable("down"), RECEIPT, *[StoreUnavailable("down")] * 2, RECEIPT)
    states = []
    guarded = GuardedEventLog(log, slow_s=10, failures=2, open_s=60, on_state=states.append)

    outcomes = [outcome(guarded) for _ in range(6)]

    assert outcomes[:4] == ["down", RECEIPT, "down", "down"]
    assert ["open" in told for told in outcomes[4:]] == [True, True]
    assert log.answers == [RECEIPT] and states == ["opened"]


@pytest.mark.parametrize(
    ("probe", "state"),
    [(RECEIPT, "closed"), (StoreUnavailable("down"), "opened")],
    ids=["back", "still down"],
)
def test_when_its_time_is_up_a_probe_decides(probe, state):
    log = ScriptedLog(StoreUnavailable("down"), probe)
    states = []
    guarded = GuardedEventLog(log, slow_s=10, failures=1, open_s=1e-9, on_state=states.append)
    outcome(guarded)

    outcome(guarded)

    assert states == ["opened", "half-opened", state]


def test_an_answer_that_came_too_late_counts_as_an_outage_but_is_an_answer():
    guarded = GuardedEventLog(ScriptedLog(RECEIPT), slow_s=0, failures=1, open_s=60)

    assert outcome(guarded) == RECEIPT
    assert "open" in outcome(guarded)


@pytest.mark.parametrize("error", [ConfigurationError("wrong"), ValueError("a bug")])
def test_what_is_no_outage_does_not_open_the_breaker(error):
    guarded = GuardedEventLog(ScriptedLog(error, RECEIPT), slow_s=10, failures=1, open_s=60)

    with pytest.raises(type(error)):
        guarded.append([event("e1")])

    assert guarded.append([event("e1")]) == RECEIPT
