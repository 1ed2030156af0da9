"""Maintenance: partitions come and go, what is old goes, what is needed stays."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from app.adapters import maintenance
from app.adapters.database import batch_database, service_database
from app.adapters.event_log import PostgresEventLog
from app.adapters.maintenance import FEATURE_KEYS, PostgresMaintenance
from app.bootstrap.life import build_forget_user
from app.bootstrap.projector import build_projector
from app.bootstrap.stores import open_import
from app.domain.errors import StoreUnavailable
from app.domain.types import User
from app.life.maintain import Retention, kept_since, maintain
from tests.builders import CONTEXT_FIELDS, count, event, proposition, query

NOW = datetime.now(UTC)
FOR_EVER = Retention(0, 0, 0)
HALF_A_YEAR = Retention(180, 180, 180)


def at(days: float) -> datetime:
    return NOW - timedelta(days=days)


@pytest.fixture
def history(settings):
    """An event a month of a year: e0 of now, e1 a month ago, and so on."""
    with open_import(settings) as loader:
        loader.add(proposition("p1", category="sport"))
        loader.add(User("u1"))
        for n in range(12):
            loader.add(event(f"e{n}", "click", at=at(30 * n + 0.01)))
        loader.finish(False)
    build_projector(settings)[0].run()


@pytest.fixture
def run(settings):
    """A function that maintains the database and tells what was done, by its name."""

    def run(retention: Retention) -> dict[str, int]:
        tables = PostgresMaintenance(batch_database(settings))
        finish = build_forget_user(settings).finish
        return {done.what: done.count for done in maintain(tables, finish, retention, timedelta(0), NOW)}

    return run


def months(settings, log: str) -> list[str]:
    return [
        name
        for (name,) in query(
            settings,
            "SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
            " WHERE inhparent = %s::regclass AND relname !~ 'default' ORDER BY 1",
            (log,),
        )
    ]


def test_months_past_their_retention_go_and_the_others_stay(settings, history, run):
    since = kept_since(NOW, 180)
    kept = query(settings, "SELECT event_id FROM events WHERE received_at >= %s ORDER BY 1", (since,))
    assert 6 <= len(kept) < 12

    done = run(HALF_A_YEAR)

    assert query(settings, "SELECT event_id FROM events ORDER BY 1") == kept
    assert months(settings, "events")[0] == f"events_{since:%Y_%m}"
    assert f"dropped events_{at(330):%Y_%m}" in done
    assert count(settings, "event_keys") == len(kept)


def test_with_no_retention_everything_stays(settings, history, run):
    before = count(settings, "events"), count(settings, "event_keys"), count(settings, "user_activity")

    run(FOR_EVER)

    assert (
        count(settings, "events"),
        count(settings, "event_keys"),
        count(settings, "user_activity"),
    ) == before


def test_an_event_that_was_dropped_is_not_taken_in_again(settings, history, run):
    run(HALF_A_YEAR)
    kept = count(settings, "events")

    receipt = PostgresEventLog(service_database(settings), CONTEXT_FIELDS).append(
        [event("e11", "click", at=at(330.01)), event("new", "click", at=at(1))]
    )
    with open_import(settings) as loader:
        for n in range(12):
            loader.add(event(f"e{n}", "click", at=at(30 * n + 0.01)))
        loaded = loader.finish(False)

    assert (receipt.recorded_ids, receipt.dropped_ids) == (("new",), ("e11",))
    assert loaded.events == 0
    assert count(settings, "events") == kept + 1


def test_partitions_are_made_ahead(settings, run):
    wanted = months(settings, "events")
    query(settings, f"DROP TABLE {wanted[-1]}")

    done = run(FOR_EVER)

    assert months(settings, "events") == wanted
    assert done["partitions made ahead"] == 1


def test_the_default_partition_is_emptied_into_months(settings, run):
    insert = (
        "INSERT INTO events (event_id, event_type, proposition_id, context, context_key, occurred_at, received_at)"
        " VALUES (%s, 'click', 'p1', '{}', '', now(), %s)"
    )
    for days in (-400, 100, 1_000):
        query(settings, insert, (f"e{days}", at(days)))
    assert count(settings, "events_default") == 3

    done = run(HALF_A_YEAR)

    assert count(settings, "events_default") == 0
    assert query(settings, "SELECT event_id FROM events ORDER BY received_at") == [("e100",), ("e-400",)]
    assert done["events moved to their months"] == 2


def test_every_moment_that_is_kept_finds_the_features_that_it_had(settings, history, run):
    since = kept_since(NOW, 180)

    def visible_at(moment):
        return [
            query(
                settings,
                f"SELECT DISTINCT ON ({key}) * FROM {table} WHERE event_timestamp <= %s"
                f" ORDER BY {key}, event_timestamp DESC",
                (moment,),
            )
            for table, key in FEATURE_KEYS.items()
        ]

    moments = [since, since + timedelta(days=40), NOW]
    before = [visible_at(moment) for moment in moments]
    rows = count(settings, "user_activity")

    done = run(HALF_A_YEAR)

    assert [visible_at(moment) for moment in moments] == before
    assert count(settings, "user_activity") < rows
    assert done["superseded feature rows deleted"] > 0


def test_the_newest_row_of_an_entity_stays_however_old(settings, run):
    for days in (900, 800):
        query(settings, "INSERT INTO user_profile (user_id, event_timestamp) VALUES ('u1', %s)", (at(days),))

    run(HALF_A_YEAR)

    assert query(settings, "SELECT event_timestamp FROM user_profile") == [(at(800),)]


def test_a_rebuild_after_dropping_replays_what_is_left(settings, history, run):
    run(HALF_A_YEAR)

    assert build_projector(settings)[0].rebuild() == count(settings, "events") < 12


def test_who_was_forgotten_long_ago_is_recognized_no_more(settings, run):
    build_forget_user(settings)("u1")
    run(HALF_A_YEAR)
    assert count(settings, "forgotten_users") == 1
    query(settings, "UPDATE forgotten_users SET forgotten_at = %s", (at(181),))

    done = run(HALF_A_YEAR)

    assert done["digests of forgotten users deleted"] == 1
    assert query(settings, "SELECT DISTINCT has_forgotten FROM log_heads") == [(False,)]


def test_again_there_is_nothing_left_to_do(settings, history, run):
    run(HALF_A_YEAR)

    assert not any(run(HALF_A_YEAR).values())


def test_a_table_in_use_is_waited_for_a_moment_only_and_named(settings, history, run, monkeypatch):
    monkeypatch.setattr(maintenance, "LOCK_ATTEMPTS", 2)
    monkeypatch.setattr(maintenance, "LOCK_PAUSE_S", 0)
    reader = psycopg2.connect(settings.postgres_url)
    try:
        with reader.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM events")
            with pytest.raises(StoreUnavailable, match=r"stays in use.*DROP TABLE IF EXISTS events_"):
                run(HALF_A_YEAR)
    finally:
        reader.close()

    assert any(name.startswith("dropped events_") for name in run(HALF_A_YEAR))


def test_while_one_process_maintains_another_ends_well_at_once(settings):
    command = [sys.executable, "-m", "app", "maintain"]

    with PostgresMaintenance(batch_database(settings)).exclusive() as is_only:
        assert is_only
        second = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    alone = subprocess.run(command, capture_output=True, text=True, env=os.environ)

    assert second.returncode == 0 and "another process" in second.stdout
    assert alone.returncode == 0 and "partitions made ahead: 0" in alone.stdout
