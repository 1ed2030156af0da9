"""Recording with a PostgreSQL that is frozen, killed, or held up: acknowledged events are in it once."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from app.adapters.database import event_database, service_database
from app.adapters.event_log import PostgresEventLog, advance_head
from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import open_wire
from app.adapters.spool import SpoolFolder
from app.adapters.suggestion_cache import RedisSlateStore
from app.api.factory import create_app
from app.bootstrap.web import build_api
from app.events.commit import GroupCommit
from app.events.drain import SpoolDrain
from tests.builders import CONTEXT_FIELDS, count, event, query, refusal

PATIENCE_S = 30.0


@pytest.fixture
def service(settings):
    """A client of a service whose background work runs."""
    services, background, registry = build_api(settings)
    background.start()
    yield create_app(settings, services, registry).test_client()
    background.stop()


def send(client, *event_ids) -> dict:
    events = [
        {"event_id": event_id, "event_type": "click", "proposition_id": "p", "user_id": "u"}
        for event_id in event_ids
    ]
    answer = client.post("/log_event", json={"events": events})
    assert answer.status_code == 202
    return answer.get_json()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"


def ids(settings) -> list[str]:
    return [
        event_id for (event_id,) in query(settings, "SELECT event_id FROM events ORDER BY received_at, seq")
    ]


def test_while_postgres_is_frozen_events_go_to_the_spool_and_from_there_to_postgres_once(
    settings, service, postgres
):
    send(service, "before")
    with postgres.frozen():
        answers = [send(service, f"frozen-{n}") for n in range(5)]
    assert {answer["events"][0]["stored_in"] for answer in answers} == {"spool"}

    wait_until(lambda: SpoolFolder(settings.spool_dir, 1).is_empty())

    assert sorted(ids(settings)) == ["before", *(f"frozen-{n}" for n in range(5))]


def test_while_postgres_is_killed_events_go_to_the_spool_and_from_there_to_postgres_in_order(
    settings, service, postgres
):
    send(service, "before")
    postgres.kill()
    answers = [send(service, f"down-{n}") for n in range(5)]
    postgres.start()

    wait_until(lambda: SpoolFolder(settings.spool_dir, 1).is_empty())

    assert {answer["events"][0]["stored_in"] for answer in answers} == {"spool"}
    assert ids(settings) == ["before", *(f"down-{n}" for n in range(5))]
    wait_until(lambda: send(service, "after")["events"][0]["stored_in"] == "postgres")


def test_while_postgres_refuses_whatever_comes_events_wait_in_the_spool(settings, service):
    with refusal(settings, "insufficient_privilege"):
        answers = [send(service, f"refused-{n}") for n in range(5)]
        log = PostgresEventLog(event_database(settings), CONTEXT_FIELDS)
        assert SpoolDrain(SpoolFolder(settings.spool_dir, 1), log, 10).run() == 0
        assert not SpoolFolder(settings.spool_dir, 1).is_empty()

    wait_until(lambda: SpoolFolder(settings.spool_dir, 1).is_empty())

    assert {answer["events"][0]["stored_in"] for answer in answers} == {"spool"}
    assert ids(settings) == [f"refused-{n}" for n in range(5)]
    assert not (settings.spool_dir / "aside").exists()


class OneThread:
    """Runs what is to be run aside, one at a time, as a worker's threads do when all others are busy."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self.has_run = threading.Event()

    def __call__(self, work: Callable) -> object:
        try:
            return self._pool.submit(work).result(PATIENCE_S)
        finally:
            self.has_run.set()


def test_who_forgets_a_user_waits_for_a_drain_and_takes_no_thread_that_it_needs(settings):
    run_aside = OneThread()
    services, _, registry = build_api(settings, run_aside)
    client = create_app(settings, services, registry).test_client()
    spool = SpoolFolder(settings.spool_dir, 1 << 30)
    spool.append([event("e1", user_id="ann"), event("e2", user_id="bob")])

    with ThreadPoolExecutor(1) as pool:
        with spool.exclusive():
            run_aside.has_run.clear()
            forgetting = pool.submit(client.delete, "/users/ann")
            assert run_aside.has_run.wait(PATIENCE_S)
            assert [event.event_id for event in run_aside(spool.oldest).events] == ["e1", "e2"]
        answer = forgetting.result(PATIENCE_S)

    assert (answer.status_code, answer.get_json()["removed"]["spool"]) == (200, 1)
    assert spool.depth().events == 1


def test_a_drain_that_takes_too_long_is_not_waited_for_by_who_forgets_a_user(settings, monkeypatch):
    monkeypatch.setattr("app.bootstrap.life.SPOOL_TURN_WAIT_S", 0.0)
    services, _, registry = build_api(settings)
    client = create_app(settings, services, registry).test_client()

    with SpoolFolder(settings.spool_dir, 1).exclusive():
        assert client.delete("/users/ann").status_code == 503

    assert client.delete("/users/ann").status_code == 200


def test_the_breaker_and_the_spool_show_in_the_metrics(settings, postgres):
    services, background, registry = build_api(settings)
    client = create_app(settings, services, registry).test_client()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    postgres.kill()
    for n in range(3):
        send(client, f"down-{n}")
    client.post("/log_event", json={})

    assert value("propositions_events_total", outcome="recorded", stored_in="spool") == 3
    assert value("propositions_events_total", outcome="rejected", stored_in="nowhere") == 1
    assert value("propositions_breaker_changes_total", dependency="events", state="opened") == 1
    background.start()
    wait_until(lambda: value("propositions_spool_events") == 3)
    postgres.start()
    wait_until(lambda: value("propositions_spool_events") == 0)
    background.stop()
    assert value("propositions_spool_drained_total") == 3


DRAIN = """
from app.adapters.database import event_database
from app.adapters.event_log import PostgresEventLog
from app.adapters.spool import SpoolFolder
from app.events.drain import SpoolDrain
from app.settings import load_settings

settings = load_settings()
log = PostgresEventLog(event_database(settings), settings.context_fields)
SpoolDrain(SpoolFolder(settings.spool_dir, 1), log, 10).run()
"""


def test_a_drain_that_is_killed_in_the_middle_is_done_again_and_counts_once(settings):
    spool = SpoolFolder(settings.spool_dir, 1 << 30)
    spool.append([event(f"e{n}") for n in range(2_000)])
    with subprocess.Popen([sys.executable, "-c", DRAIN]) as process:
        wait_until(lambda: count(settings, "events") > 0)
        process.send_signal(signal.SIGKILL)
    assert not spool.is_empty()

    subprocess.run([sys.executable, "-c", DRAIN], check=True)

    assert spool.is_empty()
    assert ids(settings) == [f"e{n}" for n in range(2_000)]


@contextmanager
def head_held(settings):
    """Every commit of events waits until the block ends."""
    with service_database(settings).transaction() as connection:
        advance_head(connection, "events")
        yield


def test_requests_that_wait_for_a_commit_share_the_next(settings):
    log = PostgresEventLog(event_database(settings), CONTEXT_FIELDS)
    commit = GroupCommit(log, PATIENCE_S, 100)
    with ThreadPoolExecutor(8) as callers:
        with head_held(settings):
            receipts = [callers.submit(commit.append, [event("e0"), event("same")])]
            wait_until(lambda: commit._appending_since_s is not None)
            for n in range(1, 8):
                receipts.append(callers.submit(commit.append, [event(f"e{n}"), event("same")]))
            wait_until(lambda: len(commit._waiting) == 7)
        told = [receipt.result(PATIENCE_S) for receipt in receipts]

    assert query(settings, "SELECT count(*), count(DISTINCT received_at) FROM events") == [(9, 2)]
    assert sum(receipt.recorded_ids.count("same") for receipt in told) == 1
    assert sum(receipt.duplicate_ids.count("same") for receipt in told) == 7


def test_kept_slates_are_outdated_by_recorded_and_by_drained_events(settings, service, postgres):
    wire = open_wire(connect_redis(settings.redis_address, 1_000, 5, cluster=False))
    slates = RedisSlateStore(wire, settings.suggest_cache_ttl)

    def epoch() -> int:
        return slates.find("u", "any", 1.0).epoch

    send(service, "e1")
    after_recording = epoch()
    postgres.kill()
    send(service, "e2")
    after_spooling = epoch()
    postgres.start()
    wait_until(lambda: epoch() > after_spooling)

    assert 0 < after_recording < after_spooling
