"""Several projectors on one log: whatever happens to them, the counters are those of a replay by one."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from app.adapters.database import Database, batch_database
from app.adapters.feature_store import open_feature_store
from app.adapters.feature_tables import FORGET_STATES, FeatureTables, hold_projection
from app.adapters.snapshots import SnapshotSource
from app.domain.errors import ConfigurationError, StoreUnavailable
from app.events.follow import follow_log
from app.events.metrics import ProjectorMetrics
from app.events.project import Projector
from app.features.slots import ALL_SLOTS, COVISIT_SLOT, slot_of
from app.features.snapshot import empty_snapshot
from tests.builders import event, query
from tests.projection import (
    COVISITS,
    START,
    FakeOnlineStore,
    assert_online_is_current,
    feature_rows,
    import_events,
    latest_online,
    log_events,
)

WAIT_S = 60.0


@pytest.fixture
def database(settings) -> Database:
    return batch_database(settings)


@pytest.fixture
def online() -> FakeOnlineStore:
    return FakeOnlineStore()


@pytest.fixture
def project(settings, online) -> Callable[..., Projector]:
    """A function that makes a projector as another process would have it, with connections of its own."""

    def make(batch_events: int = 1_000) -> Projector:
        tables = FeatureTables(batch_database(settings))
        return Projector(tables, online, settings.half_lives_s, COVISITS, batch_events)

    return make


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def some_events(first: int, count: int) -> list:
    types = ("impression", "click", "impression", "conversion", "click")
    return [
        event(f"e{n}", types[n % 5], f"p{n % 7}", datetime.now(UTC), user_id=f"u{n % 11}")
        for n in range(first, first + count)
    ]


def log_in_commits(database, count: int, first: int = 0) -> None:
    for start in range(first, first + count, 10):
        log_events(database, *some_events(start, 10))


def is_all_folded(settings) -> bool:
    return query(
        settings, "SELECT min(folded_until) = (SELECT max(received_at) FROM events) FROM projection_slots"
    ) == [(True,)]


def assert_equals_a_replay(settings, project) -> None:
    folded = feature_rows(settings)
    project().rebuild()
    assert folded == feature_rows(settings)
    assert folded["proposition_neighbours"] and folded["user_recent"] and folded["user_history"]


# --- slots and leases ---


def test_the_database_has_a_mark_for_every_slot(settings):
    assert {slot for (slot,) in query(settings, "SELECT slot FROM projection_slots")} == ALL_SLOTS


@pytest.mark.parametrize("member_count", [1, 2, 4, 10])
def test_slots_are_shared_out_evenly_and_each_has_one_owner(database, member_count):
    with ExitStack() as stack:
        members = [stack.enter_context(FeatureTables(database).leases()) for _ in range(member_count)]

        for _ in range(2):
            owned = [member.balance() for member in members]

        sizes = [len(slots) for slots in owned]
        assert max(sizes) - min(sizes) <= 1
        assert sorted(slot for slots in owned for slot in slots) == sorted(ALL_SLOTS)


def test_the_slots_of_one_that_left_are_taken_and_those_of_one_that_came_are_given(database):
    tables = FeatureTables(database)
    with tables.leases() as first:
        assert first.balance() == ALL_SLOTS
        with tables.leases() as second:
            assert second.balance() == frozenset()
            assert len(first.balance()) == 5
            assert len(second.balance()) == 4

        assert first.balance() == ALL_SLOTS


def test_whoever_is_the_only_projector_keeps_followers_away_and_they_it(database):
    tables = FeatureTables(database)

    with tables.exclusive() as is_only, tables.leases() as leases:
        assert is_only and leases is None
    with tables.leases() as leases, tables.exclusive() as is_only:
        assert leases is not None and not is_only


# --- folding by slots ---


def test_slots_folded_one_by_one_in_any_order_give_the_rows_of_one_replay(settings, database, project):
    log_in_commits(database, 100)
    one, other = project(batch_events=13), project(batch_events=17)

    for slot in sorted(ALL_SLOTS, reverse=True):
        (one, other)[slot % 2].step({slot})
    one.run()

    assert is_all_folded(settings)
    assert_equals_a_replay(settings, project)


def test_slots_that_are_behind_are_brought_to_the_others_and_go_on_with_them(settings, database, project):
    projector = project()
    log_in_commits(database, 20)
    projector.step({1, 2})
    log_in_commits(database, 20, first=20)

    assert projector.step(ALL_SLOTS) == (20, True)
    assert projector.step(ALL_SLOTS) == (20, False)

    assert is_all_folded(settings)
    assert_equals_a_replay(settings, project)


def test_slots_between_which_no_event_is_left_go_on_together(settings, database, project):
    log_in_commits(database, 20)
    project().step({1, 2})
    query(settings, "DELETE FROM events")

    assert project().step(ALL_SLOTS) == (0, True)
    assert project().step(ALL_SLOTS) == (0, False)
    assert query(settings, "SELECT count(DISTINCT folded_until) FROM projection_slots") == [(1,)]


def test_a_slot_that_went_to_another_and_came_back_is_not_folded_from_memory(settings, database, project):
    one, other = project(), project()
    for number, projector in enumerate((one, other, one, other, one)):
        log_in_commits(database, 20, first=20 * number)
        projector.step({0, 3, COVISIT_SLOT})
    one.run()

    assert_equals_a_replay(settings, project)


def test_two_that_think_to_own_the_same_slots_count_nothing_twice(settings, database, project):
    log_in_commits(database, 200)

    run_together(lambda: project(batch_events=10).run(), lambda: project(batch_events=10).run())

    assert_equals_a_replay(settings, project)


def test_a_batch_whose_lease_went_to_another_ends_before_that_begins_its_own(settings, database, project):
    log_in_commits(database, 50)
    with FeatureTables(database).batch(ALL_SLOTS) as (batch, progress):
        second = threading.Thread(target=project().run)
        second.start()
        wait_until(lambda: query(settings, "SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)])
        first = project()
        rows = first._fold_next(batch, progress).rows
    second.join(WAIT_S)

    assert rows and not second.is_alive()
    assert_equals_a_replay(settings, project)


def test_what_is_changed_behind_their_backs_is_read_again(settings, database, project):
    projector = project()
    log_events(database, event("e1", "click", "p1"))
    projector.run()
    with database.transaction() as connection:
        hold_projection(connection)
        connection.execute(text("DELETE FROM user_activity"))
        connection.execute(FORGET_STATES)

    log_events(database, event("e2", "click", "p1"))
    projector.run()

    ((clicks,),) = query(settings, "SELECT clicks FROM user_activity")
    assert clicks == [1.0] * len(settings.half_lives_s)


# --- together, in threads ---


def run_together(*works: Callable[[], object]) -> None:
    """Runs them in threads; raises what any of them raised."""
    errors: list[BaseException] = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not errors and not any(thread.is_alive() for thread in threads)


@dataclass
class Follower:
    """A projector that follows the log in a thread, and starts again when it lost its leases."""

    projector: Projector
    tables: FeatureTables
    stop: threading.Event

    def __call__(self) -> None:
        metrics = ProjectorMetrics(CollectorRegistry())
        while not self.stop.is_set():
            try:
                with self.tables.leases() as leases:
                    follow_log(self.projector, leases, metrics, 0.01, self.stop)
            except StoreUnavailable:
                continue


def test_three_followers_that_lose_their_leases_again_and_again_count_as_one(
    settings, database, project, online
):
    stop = threading.Event()
    followers = [
        Follower(project(batch_events=30), FeatureTables(batch_database(settings)), stop) for _ in "123"
    ]

    def produce():
        try:
            for first in range(0, 600, 10):
                log_events(database, *some_events(first, 10))
                if first % 100 == 50:
                    query(settings, TERMINATE_LEASES)
            wait_until(lambda: is_all_folded(settings))
        finally:
            stop.set()

    run_together(*followers, produce)

    project().run()
    assert_online_is_current(settings, online)
    assert_equals_a_replay(settings, project)


TERMINATE_LEASES = """
    SELECT pg_terminate_backend(pid) FROM (
        SELECT DISTINCT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE locktype = 'advisory' AND datname = current_database()
    ) AS holders"""


# --- rebuilds and imports ---


def test_events_that_are_imported_while_all_are_replayed_are_counted(settings, project):
    import_events(settings, 30)
    projector = project()
    projector.run()
    tables = projector._tables

    class ImportsBeforeTheEnd(FeatureTables):
        @contextmanager
        def final_rebuild_batch(self):
            import_events(settings, 10, START - timedelta(days=1), prefix="older")
            with super().final_rebuild_batch() as batch:
                yield batch

    projector._tables = ImportsBeforeTheEnd(batch_database(settings))
    projector.rebuild()
    projector._tables = tables

    projector.run()
    assert_equals_a_replay(settings, project)


def test_batches_of_different_slots_do_not_wait_for_each_other_but_an_import_does_for_all(
    settings, database, project
):
    log_in_commits(database, 20)
    importing = threading.Thread(
        target=import_events, args=(settings, 10, START - timedelta(days=1), "older"), daemon=True
    )
    tables = FeatureTables(database)
    with tables.batch({0}), tables.batch({1}):
        importing.start()
        wait_until(lambda: query(settings, "SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)])
        assert query(settings, "SELECT count(*) FROM events WHERE starts_with(event_id, 'older')") == [(0,)]
    importing.join(WAIT_S)

    assert query(settings, "SELECT count(*) FROM events WHERE starts_with(event_id, 'older')") == [(10,)]


def test_events_that_are_imported_behind_the_foremost_slot_are_replayed(settings, database, project):
    import_events(settings, 60)
    project().run()
    log_events(database, event("now", "click", "p1"))
    project().step({0})

    import_events(settings, 10, datetime.now(UTC) - timedelta(hours=1), prefix="between")

    assert query(settings, "SELECT needs_rebuild FROM projection") == [(True,)]
    project().run()
    assert_equals_a_replay(settings, project)


def test_only_one_replays_and_the_others_wait(settings, database, project):
    import_events(settings, 30)
    query(settings, "UPDATE projection SET needs_rebuild = true")

    with FeatureTables(database).rebuilding() as is_free:
        assert is_free
        assert project().step(ALL_SLOTS) == (0, False)
        with pytest.raises(ConfigurationError, match="let it finish"):
            project().rebuild()

    assert project().run() == 30
    assert query(settings, "SELECT needs_rebuild FROM projection") == [(False,)]


def test_a_replay_beside_followers_reaches_their_caches_and_the_online_store(
    settings, database, project, online
):
    follower = project()
    import_events(settings, 30)
    follower.run()
    query(settings, "DELETE FROM events WHERE user_id = 'u1'")

    project().rebuild()
    log_events(database, event("e-new", "click", "p1", user_id="u2"))
    online.rows = {}
    follower.run()

    assert_online_is_current(settings, online)
    assert_equals_a_replay(settings, project)


# --- the online store ---


def test_what_a_dead_owner_had_committed_its_successor_brings_online(settings, database, project, online):
    log_in_commits(database, 50)
    online.is_down = True  # as if it had died between the commit and the write
    project().step(ALL_SLOTS)
    online.is_down = False
    log_in_commits(database, 20, first=50)

    project().run()

    assert_online_is_current(settings, online)


def test_a_slot_that_lags_in_the_online_store_is_written_and_only_that(settings, database, project, online):
    log_in_commits(database, 50)
    project().run()
    written = dict(online.rows)
    del online.known["3"]
    online.rows = {}

    project().run()

    assert online.rows.keys() == {entity for entity in written if slot_of(*entity) == 3} != set()


def test_an_owner_of_some_slots_does_not_write_those_of_others(settings, database, project, online):
    log_in_commits(database, 50)

    project().step({0, 1})

    assert {slot_of(*entity) for entity in online.rows} == {0, 1}
    assert online.known.keys() == {"0", "1"}


# --- readers ---


def test_a_snapshot_misses_no_row_of_a_slot_that_lags(settings, database, project):
    import_events(settings, 5)
    project().run()
    source = SnapshotSource(database)
    snapshot = source.refresh(empty_snapshot(settings.half_lives_s))
    lagging = slot_of("proposition_performance", "p0")
    first, second = (event(f"e-{n}", "click", "p0", START + timedelta(days=1, seconds=n)) for n in range(2))

    log_events(database, first)
    project().step(ALL_SLOTS - {lagging})
    behind = source.refresh(snapshot)
    log_events(database, second)
    project().step(ALL_SLOTS - {lagging})
    behind = source.refresh(behind)
    assert np.array_equal(behind.performance.counts, snapshot.performance.counts)
    project().run()
    after = source.refresh(behind)

    expected = latest_online(settings)["proposition_performance", "p0"]
    assert np.array_equal(after.performance.counts[0], expected.astype(np.float32))
    assert source.refresh(after) is after


def test_a_snapshot_sees_the_news_of_slots_though_another_one_stands_still(settings, database, project):
    import_events(settings, 5)
    project().run()
    source = SnapshotSource(database)
    snapshot = source.refresh(empty_snapshot(settings.half_lives_s))
    own = slot_of("proposition_performance", "p0")

    for number in range(2):
        log_events(database, event(f"e-{number}", "click", "p0", datetime.now(UTC)))
        project().step({own})
        snapshot = source.refresh(snapshot)

        expected = latest_online(settings)["proposition_performance", "p0"]
        assert np.array_equal(snapshot.performance.counts[0], expected.astype(np.float32))


# --- processes ---


@contextmanager
def processes() -> Iterator[list[subprocess.Popen]]:
    started: list[subprocess.Popen] = []
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def start(started: list[subprocess.Popen], **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "app", "project", "--follow"]
    process = subprocess.Popen(command, env={**os.environ, "PROJECT_BATCH_EVENTS": "50", **environment})
    started.append(process)
    return process


def member_count(settings) -> int:
    """How many processes hold slots."""
    return query(settings, COUNT_OWNERS)[0][0]


COUNT_OWNERS = """
    SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND objsubid = 2 AND datname = current_database()"""


def test_processes_that_are_killed_and_added_mid_stream_count_as_one(settings, database, project):
    with processes() as started:
        first, _ = start(started), start(started)
        wait_until(lambda: member_count(settings) == 2)
        log_in_commits(database, 500)
        first.kill()
        log_in_commits(database, 500, first=500)
        third = start(started)
        log_in_commits(database, 500, first=1_000)
        wait_until(lambda: member_count(settings) == 2)
        log_in_commits(database, 500, first=1_500)
        wait_until(lambda: is_all_folded(settings))

        third.send_signal(signal.SIGTERM)
        assert third.wait(WAIT_S) == 0
        wait_until(lambda: member_count(settings) == 1)
        wait_until(lambda: is_online_current(settings))

    assert_equals_a_replay(settings, project)


def is_online_current(settings) -> bool:
    """Whether stock Feast reads what PostgreSQL has."""
    store = open_feature_store(settings)
    expected = {
        key: counts for (view, key), counts in latest_online(settings).items() if view == "user_activity"
    }
    read = store.get_online_features(
        features=["user_activity:impressions", "user_activity:clicks", "user_activity:conversions"],
        entity_rows=[{"user_id": key} for key in expected],
    ).to_dict()
    return all(
        read[name] == [counts[position].tolist() for counts in expected.values()]
        for position, name in enumerate(("impressions", "clicks", "conversions"))
    )


def test_a_process_tells_of_itself_where_it_is_asked_to(settings, database):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def metrics() -> dict[str, float]:
        try:
            lines = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode().splitlines()
        except URLError:
            return {}
        return {name: float(value) for name, value in (line.split() for line in lines if line[0] != "#")}

    with processes() as started:
        start(started, PROJECT_METRICS_PORT=str(port))
        wait_until(lambda: metrics().get("propositions_projection_slots") == len(ALL_SLOTS))
        log_in_commits(database, 30)
        for part in ('{part="counters"}', '{part="covisits"}'):
            wait_until(lambda p=part: metrics().get(f"propositions_projected_events_total{p}") == 30)
            wait_until(lambda p=part: metrics()[f"propositions_freshness_seconds_count{p}"] == 3)
            wait_until(lambda p=part: metrics()[f"propositions_projection_delay_seconds{p}"] == 0)
        clicks = 'propositions_outcomes_total{event_type="click",model_version="none",strategy="none"}'
        wait_until(lambda: metrics()[clicks] == 12)
