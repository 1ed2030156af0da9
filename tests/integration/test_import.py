import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from app.bootstrap.stores import open_import
from app.domain.types import User
from tests.builders import NOON, count, event, proposition, query


def load(settings, *records, shift_to_now=False):
    with open_import(settings) as loader:
        for record in records:
            loader.add(record)
        return loader.finish(shift_to_now)


def three_events():
    return [
        event("e1", "impression", at=NOON),
        event("e2", "click", at=NOON + timedelta(seconds=5)),
        event("e3", "click", at=NOON - timedelta(days=40)),
    ]


def test_importing_again_changes_nothing(settings):
    records = [User("u1", age_years=30.0), proposition("p1", category="sport"), *three_events()]
    load(settings, *records)
    before = query(settings, "SELECT * FROM events ORDER BY seq"), count(settings, "user_profile")

    loaded = load(settings, *records)

    assert (loaded.users, loaded.propositions, loaded.events, loaded.duplicate_events) == (0, 0, 0, 3)
    assert (query(settings, "SELECT * FROM events ORDER BY seq"), count(settings, "user_profile")) == before


def test_events_enter_the_log_in_the_order_of_their_time_with_their_category(settings):
    load(settings, proposition("p1", category="sport"), *three_events())

    rows = query(settings, "SELECT event_id, category, received_at = occurred_at FROM events ORDER BY seq")
    assert rows == [("e3", "sport", True), ("e1", "sport", True), ("e2", "sport", True)]


def test_each_month_gets_its_partition(settings):
    load(settings, *three_events())

    assert count(settings, "events_2026_04") == 1 and count(settings, "events_2026_05") == 2
    assert count(settings, "events_default") == 0


def test_shifting_moves_all_times_by_the_same_span_so_that_the_last_is_now(settings):
    load(settings, *three_events(), shift_to_now=True)

    moments = dict(query(settings, "SELECT event_id, occurred_at FROM events"))
    assert abs(moments["e2"] - datetime.now(UTC)) < timedelta(minutes=1)
    assert moments["e2"] - moments["e1"] == timedelta(seconds=5)
    assert moments["e1"] - moments["e3"] == timedelta(days=40)


def test_a_changed_user_gets_a_new_version_and_an_unchanged_one_none(settings):
    load(settings, User("u1", age_years=30.0), User("u2"))
    load(settings, User("u1", age_years=31.0), User("u2"))

    versions = query(
        settings, "SELECT user_id, age_years FROM user_profile ORDER BY user_id, event_timestamp"
    )
    assert versions == [("u1", 30.0), ("u1", 31.0), ("u2", None)]


def test_what_has_imported_history_counts_as_known_before_it(settings):
    sport = proposition("p1", category="sport", tags=("ball",), attributes={"pages": 7})
    load(settings, User("u1", age_years=30.0), sport, *three_events())

    (earliest,) = query(settings, "SELECT min(event_timestamp) FROM user_profile WHERE age_years = 30")[0]
    assert earliest < NOON - timedelta(days=40)
    (earliest, *described) = query(
        settings,
        "SELECT event_timestamp, traits, number_names, number_values FROM proposition_catalog ORDER BY 1 LIMIT 1",
    )[0]
    assert earliest < NOON - timedelta(days=40)
    assert described == [["ball"], ["pages"], [7.0]]


def test_texts_keep_their_tabs_quotes_and_backslashes(settings):
    odd = 'a\tb\n"c" \\d {e,f} \u00fc'
    load(settings, proposition("p1", title=odd, tags=('x"y', "z\\w", "{,}", "\u00fc"), attributes={"k": odd}))

    assert query(settings, "SELECT title, tags, attributes->>'k' FROM propositions") == [
        (odd, ['x"y', "z\\w", "{,}", "\u00fc"], odd)
    ]


def propositions(*arguments, cwd) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "app", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, cwd=cwd, env=os.environ)


@pytest.fixture
def mixed_file(tmp_path):
    good = {
        "event_id": "e1",
        "event_type": "click",
        "proposition_id": "p1",
        "timestamp": "2026-05-15T11:00:00Z",
    }
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(good) + "\n{bad\n")
    return path


def test_the_exit_status_tells_of_rejects_and_the_rest_is_imported(settings, mixed_file, tmp_path):
    done = propositions("import", mixed_file, "--rejects", tmp_path / "r.jsonl", cwd=tmp_path)

    assert done.returncode == 3
    assert "rejected: 1 lines" in done.stderr
    assert count(settings, "events") == 1
    assert json.loads((tmp_path / "r.jsonl").read_text())["line"] == 2


def test_a_strict_import_imports_nothing_from_a_bad_file(settings, mixed_file, tmp_path):
    done = propositions("import", mixed_file, "--strict", cwd=tmp_path)

    assert done.returncode == 1
    assert "line 2" in done.stderr and "Traceback" not in done.stderr
    assert count(settings, "events") == 0


def test_a_file_that_is_no_data_is_refused_without_a_trace(settings, tmp_path):
    path = tmp_path / "events.parquet"
    path.write_bytes(b"not parquet")

    done = propositions("import", path, cwd=tmp_path)

    assert done.returncode == 1
    assert "cannot be read" in done.stderr and "Traceback" not in done.stderr
