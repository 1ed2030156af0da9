from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from app.adapters.database import batch_database
from app.adapters.feature_tables import FeatureTables
from app.adapters.snapshots import SnapshotSource
from app.bootstrap.stores import migrate_database, open_import
from app.domain.errors import ConfigurationError, StoreUnavailable
from app.events.project import Projector
from app.features.slots import ALL_SLOTS
from app.features.snapshot import empty_snapshot
from tests.builders import CONTEXT_FIELDS, event, proposition, query
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


@pytest.fixture
def database(settings):
    return batch_database(settings)


@pytest.fixture
def online():
    return FakeOnlineStore()


@pytest.fixture
def project(settings, database, online):
    """A function that makes a new projector, as a restarted process would."""

    def make(batch_events: int = 1_000, half_lives_s=settings.half_lives_s) -> Projector:
        return Projector(FeatureTables(database), online, half_lives_s, COVISITS, batch_events)

    return make


def test_every_event_is_folded_once_however_often_the_projector_runs(settings, project):
    import_events(settings, 50)

    assert project().run() == 50
    before = feature_rows(settings)
    assert project().run() == 0
    assert feature_rows(settings) == before


def test_the_size_of_batches_and_restarts_between_them_do_not_matter(settings, project):
    import_events(settings, 60)
    project(batch_events=1_000).run()
    at_once = feature_rows(settings)

    query(settings, "UPDATE projection_slots SET folded_until = '-infinity'")
    for table in at_once:
        query(settings, f"TRUNCATE {table}")
    while project(batch_events=7).step(ALL_SLOTS)[0]:
        pass

    assert feature_rows(settings) == at_once


def test_a_rebuild_from_scratch_gives_the_same_rows_after_late_and_live_events(settings, database, project):
    import_events(settings, 60)
    project(batch_events=11).run()
    log_events(database, event("late", at=START), event("now", at=datetime.now(UTC)))
    project().run()
    before = feature_rows(settings)

    assert project(batch_events=13).rebuild() == 62

    assert feature_rows(settings) == before


def test_history_that_is_imported_later_is_folded_as_if_it_had_come_first(settings, project):
    import_events(settings, 30)
    project().run()
    import_events(settings, 30, START - timedelta(days=1), prefix="older")

    project().run()
    after = feature_rows(settings)
    project().rebuild()

    assert feature_rows(settings) == after
    first_seen = min(row[-1] for row in after["user_activity"])
    assert first_seen < START - timedelta(hours=12)


def test_a_crash_before_the_commit_leaves_nothing_and_loses_nothing(settings, project, monkeypatch):
    import_events(settings, 20)
    projector = project()

    def crash(self, slots, moment):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("app.adapters.feature_tables.ProjectionBatch.set_folded_until", crash)
        with pytest.raises(KeyboardInterrupt):
            projector.run()
    assert not any(feature_rows(settings).values())

    assert project().run() == 20


def test_a_projector_whose_commit_failed_folds_nothing_twice_when_it_goes_on(settings, project, monkeypatch):
    import_events(settings, 60)
    projector = project()

    def fail(self, slots, moment):
        raise StoreUnavailable("gone at the last moment")

    with monkeypatch.context() as patch:
        patch.setattr("app.adapters.feature_tables.ProjectionBatch.set_folded_until", fail)
        with pytest.raises(StoreUnavailable):
            projector.run()

    projector.run()
    went_on = feature_rows(settings)
    project().rebuild()

    assert went_on["proposition_neighbours"]
    assert went_on == feature_rows(settings)


def test_what_was_committed_before_a_crash_reaches_the_online_store_after_it(settings, project, online):
    import_events(settings, 20)
    project().run()
    import_events(settings, 5, datetime.now(UTC) - timedelta(minutes=1), prefix="more")
    online.is_down = True  # as if the process had died between the commit and the write
    project().run()
    online.is_down = False

    project().run()

    assert_online_is_current(settings, online)


def test_an_online_store_that_lost_its_data_gets_all_of_it_again(settings, project, online):
    import_events(settings, 20)
    project().run()
    online.lose_everything()

    project().run()

    assert_online_is_current(settings, online)
    assert online.has_facts


def test_what_was_derived_from_another_database_is_not_taken_for_this_one(
    settings, database, project, online
):
    import_events(settings, 20)
    project().run()
    online.known = {
        name: "some-other-generation " + mark.partition(" ")[2] for name, mark in online.known.items()
    }
    online.rows = {}
    snapshot = SnapshotSource(database).refresh(empty_snapshot(settings.half_lives_s))
    foreign = replace(
        empty_snapshot(settings.half_lives_s), version=replace(snapshot.version, generation="another")
    )

    project().run()

    assert_online_is_current(settings, online)
    refreshed = SnapshotSource(database).refresh(foreign)
    assert refreshed.contexts.contexts == snapshot.contexts.contexts


def test_what_a_user_clicked_last_and_what_is_clicked_together_is_kept(settings, database, project):
    now = datetime.now(UTC)
    log_events(
        database,
        event("e1", "click", "p1", now - timedelta(hours=2)),
        event("e2", "impression", "p2", now - timedelta(hours=2)),
        event("e3", "conversion", "p3", now - timedelta(hours=1)),
    )
    log_events(database, event("e4", "click", "p1", now - timedelta(hours=3), user_id="u2"))
    project().run()

    log_events(
        database,
        event("e5", "click", "p4", now - timedelta(days=2)),
        event("e6", "click", "p3", now, user_id="u2"),
    )
    project().run()

    rows = feature_rows(settings)
    assert [row[:2] for row in rows["user_recent"]] == [
        ("u1", ["p3", "p1"]),
        ("u1", ["p3", "p1", "p4"]),
        ("u2", ["p1"]),
        ("u2", ["p3", "p1"]),
    ]
    (p1, p3) = rows["proposition_neighbours"]
    assert (p1[:2], p3[:2]) == (("p1", ["p3"]), ("p3", ["p1"]))
    decay = 2 ** (-(now.timestamp() - p1[3]) / COVISITS.half_life_s)
    assert p1[2][0] * decay == pytest.approx(2, rel=1e-2)
    assert p1[4] == query(settings, "SELECT max(received_at) FROM events")[0][0]


def test_what_a_user_was_shown_and_clicked_is_kept_for_every_moment(settings, database, project):
    log_events(
        database,
        *(event(f"e{n}", "impression", f"p{n}") for n in range(3)),
        event("e3", "impression", "p1", user_id=None),
    )
    log_events(database, event("e4", "click", "p1"), event("e5", "dismiss", "p0"))
    project(batch_events=1).run()

    assert [row[1:4] for row in feature_rows(settings)["user_history"]] == [
        (["p2", "p1", "p0"], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        (["p0", "p1", "p2"], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]),
    ]


def test_neighbours_that_nothing_touched_keep_their_time(settings, database, project):
    for user_id, propositions in (("u1", ("p1", "p2")), ("u2", ("p3", "p4"))):
        log_events(database, *(event(f"{user_id}-{p}", "click", p, user_id=user_id) for p in propositions))
        project().run()

    changed = query(
        settings,
        "SELECT proposition_id FROM proposition_neighbours"
        " WHERE updated_at > (SELECT min(received_at) FROM events) ORDER BY 1",
    )

    assert changed == [("p3",), ("p4",)]


def test_ids_of_any_printable_text_are_kept_as_they_are(settings, database, project):
    ids = ['"', "\\", "a,b", "{}", "NULL", "it's 100 %", "\u4e00"]
    log_events(database, *(event(f"e{n}", "click", i) for n, i in enumerate(ids)))

    project().run()
    project().rebuild()

    (row,) = feature_rows(settings)["user_recent"]
    assert row[1] == ids[::-1]
    assert {row[0] for row in feature_rows(settings)["proposition_neighbours"]} == set(ids)


def test_an_upgrade_replays_what_was_folded_before_it(empty_database):
    migrate_database(empty_database, up_to="0001")
    database = batch_database(empty_database)
    query(
        empty_database,
        "INSERT INTO events (event_id, event_type, user_id, proposition_id, context, context_key, occurred_at,"
        " received_at) SELECT 'e' || n, 'click', 'u1', 'p' || n, '{}', '', now(), now() FROM generate_series(1, 2) n",
    )
    query(empty_database, "UPDATE projection SET folded_until = (SELECT max(received_at) FROM events)")

    migrate_database(empty_database)
    flagged = query(empty_database, "SELECT needs_rebuild FROM projection")
    projector = Projector(FeatureTables(database), None, empty_database.half_lives_s, COVISITS, 1_000)

    assert flagged == [(True,)]
    assert projector.run() == 2
    assert projector.run() == 0
    assert [row[1] for row in feature_rows(empty_database)["user_recent"]] == [["p2", "p1"]]
    assert [row[1] for row in feature_rows(empty_database)["user_history"]] == [["p2", "p1"]]
    assert len(feature_rows(empty_database)["proposition_neighbours"]) == 2


def test_an_upgrade_without_events_replays_nothing(empty_database):
    migrate_database(empty_database, up_to="0001")

    migrate_database(empty_database)

    assert not FeatureTables(batch_database(empty_database)).progress().needs_rebuild


def test_what_a_projector_of_the_release_before_left_is_replayed_or_gone_on_from(empty_database):
    migrate_database(empty_database)
    database = batch_database(empty_database)
    log_events(database, event("e1", "click", "p1"), event("e2", "click", "p2"))
    migrate_database(empty_database, down_to="0003")
    moved = "UPDATE projection SET folded_until = %s, positives_until = %s"
    latest = query(empty_database, "SELECT max(received_at) FROM events")[0][0]
    query(empty_database, moved, (latest, latest))

    migrate_database(empty_database, up_to="0005")
    assert query(empty_database, "SELECT needs_rebuild FROM projection") == [(False,)]
    migrate_database(empty_database, down_to="0003")
    assert query(empty_database, "SELECT folded_until, positives_until, needs_rebuild FROM projection") == [
        (latest, latest, False)
    ]

    query(empty_database, moved, (latest, "-infinity"))  # the release before that one folded no positives
    migrate_database(empty_database, up_to="0005")
    assert query(empty_database, "SELECT needs_rebuild FROM projection") == [(True,)]
    migrate_database(empty_database)
    assert Projector(FeatureTables(database), None, empty_database.half_lives_s, COVISITS, 9).run() == 2


def test_a_downgrade_while_slots_are_differently_far_makes_the_release_before_replay(empty_database):
    migrate_database(empty_database)
    database = batch_database(empty_database)
    projector = Projector(FeatureTables(database), None, empty_database.half_lives_s, COVISITS, 9)
    log_events(database, event("e1", "click", "p1"))
    projector.run()
    log_events(database, event("e2", "click", "p2"))
    projector.step({0, 1, 2})

    migrate_database(empty_database, down_to="0003")

    (found,) = query(empty_database, "SELECT needs_rebuild, folded_until FROM projection")
    assert found == (True, query(empty_database, "SELECT max(received_at) FROM events")[0][0])
    migrate_database(empty_database)
    assert projector.run() == 2


def test_the_longest_ids_and_contexts_can_be_folded(settings, database, project):
    longest = "\u4e00" * 66  # 198 bytes
    context = dict.fromkeys(CONTEXT_FIELDS, longest)
    query(
        settings,
        "INSERT INTO propositions (proposition_id, title, category, updated_at) VALUES (%s, 'P', %s, now())",
        (longest, longest),
    )
    log_events(database, event(longest, "click", longest, user_id=longest, context=context))
    log_events(
        database, event("wide", "click", longest, context=dict.fromkeys(CONTEXT_FIELDS, "一" * 66 + "x"))
    )

    assert project().run() == 2


def test_the_online_store_holds_the_rebuilt_rows_after_a_rebuild(settings, project, online):
    import_events(settings, 20)
    project().run()
    import_events(settings, 20, START - timedelta(days=1), prefix="older")

    project().run()

    assert_online_is_current(settings, online)


def test_changed_half_lives_are_refused_until_a_rebuild(settings, database, project):
    import_events(settings, 5)
    project().run()
    log_events(database, event("e-new", user_id="u0"))
    changed = project(half_lives_s=(60.0, 3_600.0))

    with pytest.raises(ConfigurationError, match="rebuild-features"):
        changed.run()

    assert changed.rebuild() == 6


def test_a_projector_sees_what_another_one_has_folded_in_between(settings, database, project):
    import_events(settings, 10)
    first = project()
    first.run()
    log_events(database, event("e-a", user_id="u0"))
    project().run()
    log_events(database, event("e-b", user_id="u0"))

    first.run()
    before = feature_rows(settings)
    project().rebuild()

    assert feature_rows(settings) == before


def test_only_one_projector_runs_at_a_time(database):
    tables = FeatureTables(database)

    with tables.exclusive() as first, FeatureTables(database).exclusive() as second:
        assert (first, second) == (True, False)
    with tables.exclusive() as again:
        assert again


def test_a_snapshot_follows_the_catalog_and_the_counters(settings, database, project):
    source = SnapshotSource(database)
    import_events(settings, 20)
    project().run()
    first = source.refresh(empty_snapshot(settings.half_lives_s))
    assert source.refresh(first) is first

    with open_import(settings) as loader:
        loader.add(proposition("p0", is_active=False))
        loader.add(proposition("p1", category="news", value=2.0))
        loader.finish(False)
    log_events(database, event("live", "click", "p1", datetime.now(UTC)))
    project().run()
    second = source.refresh(first)

    assert second.catalog.is_active.tolist() == [False, True]
    from_scratch = source.refresh(empty_snapshot(settings.half_lives_s))
    assert np.array_equal(second.performance.counts, from_scratch.performance.counts)
    assert second.attributes["category"].take(np.arange(2)).tolist() == ["", "news"]
    expected = latest_online(settings)["proposition_performance", "p1"]
    p1 = second.catalog.position_of("p1")
    assert np.array_equal(second.performance.counts[p1], expected.astype(np.float32))


def test_a_rebuild_reaches_snapshots_though_no_row_is_newer(settings, database, project):
    source = SnapshotSource(database)
    import_events(settings, 20)
    project().run()
    first = source.refresh(empty_snapshot(settings.half_lives_s))
    import_events(settings, 20, START - timedelta(days=1), prefix="older")
    project().run()

    second = source.refresh(first)

    expected = latest_online(settings)["proposition_performance", "p0"]
    assert np.array_equal(second.performance.counts[0], expected.astype(np.float32))
    assert not np.array_equal(second.performance.counts[0], first.performance.counts[0])
