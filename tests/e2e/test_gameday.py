"""The game day of events in its short form, and that it notices what it is there for."""

import json
import subprocess
import sys

import pytest
from sqlalchemy import text

from app.adapters.database import batch_database
from app.adapters.event_log import PostgresEventLog
from app.bootstrap.projector import build_projector
from app.gameday import events as gameday
from app.gameday.accounts import balance
from app.gameday.senders import Sent
from tests.builders import CONTEXT_FIELDS, event


def test_nothing_acknowledged_is_lost_whatever_is_killed(tmp_path):
    result_path = tmp_path / "gameday.json"

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "app",
            "gameday",
            "--scenario",
            "events",
            "--short",
            "--json",
            str(result_path),
        ],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(result_path.read_text())
    assert result["passed"]
    assert result["acknowledged"] > 0
    assert (result["lost"], result["duplicated"], result["counters_equal_replay"]) == (0, 0, True)


@pytest.fixture
def folded(settings):
    """Three events in the log and in the features: two propositions go together."""
    log = PostgresEventLog(batch_database(settings), CONTEXT_FIELDS)
    log.append([event(f"e{n}", "click", f"p{n % 2}", user_id="u1") for n in range(3)])
    build_projector(settings)[0].run()
    return settings


def change(settings, statement: str) -> None:
    with batch_database(settings).transaction() as connection:
        connection.execute(text(statement))


def test_accounts_of_what_is_stored_and_folded_are_right(folded):
    assert balance(folded, {"e0", "e1", "e2"}).are_right


def test_an_acknowledged_event_that_is_not_stored_is_lost(folded):
    accounts = balance(folded, {"e0", "e1", "e2", "e3"})

    assert accounts.lost == 1
    assert not accounts.are_right


def test_an_event_that_is_stored_twice_is_noticed(folded):
    change(
        folded,
        """INSERT INTO events SELECT nextval('event_seq'), event_id, event_type, user_id, proposition_id, category,
               context, context_key, request_id, position, value, occurred_at, received_at
           FROM events WHERE event_id = 'e0'""",
    )

    assert balance(folded, {"e0"}).duplicated == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE user_activity SET clicks[1] = clicks[1] + 1",
        "DELETE FROM proposition_performance",
        "UPDATE user_recent SET propositions = ARRAY['p2']",
        "UPDATE user_history SET clicks[1] = clicks[1] + 1",
        "UPDATE proposition_neighbours SET weights[1] = weights[1] + 1",
        "DELETE FROM proposition_neighbours",
    ],
)
def test_counters_that_differ_from_a_replay_are_noticed(folded, statement):
    change(folded, statement)

    assert not balance(folded, {"e0"}).counters_equal_replay


def test_nothing_acknowledged_proves_nothing(folded):
    assert not balance(folded, set()).are_right


def test_what_is_lost_is_reported_though_it_is_waited_for_in_vain(folded, monkeypatch):
    monkeypatch.setattr(gameday, "SETTLE_TIMEOUT_S", 0.1)
    world = gameday.World(RunningStack(folded), None)
    world.note(Sent(acknowledged={"e0", "e1", "never stored"}))

    phase = world.phase("lost", "nothing is lost", world.settle())
    world.close()

    assert (phase.accounts.acknowledged, phase.accounts.lost) == (3, 1)
    assert phase.broken == ["not all was stored and folded in time"]
    assert not phase.passed


class RunningStack:
    """Stands for a stack whose stores these are."""

    def __init__(self, settings) -> None:
        self._settings = settings

    def settings(self):
        return self._settings
