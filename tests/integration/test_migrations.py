import psycopg2
import pytest

from app.bootstrap import migrate_database
from app.domain.errors import StoreUnavailable
from tests.builders import query


def tables(settings) -> set[str]:
    return {
        name
        for (name,) in query(
            settings,
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
        )
    }


def test_from_empty_to_head_and_back_leaves_nothing(empty_database):
    assert migrate_database(empty_database) is not None
    assert {"users", "propositions", "events", "decisions", "models", "user_activity"} <= tables(
        empty_database
    )

    assert migrate_database(empty_database, down_to="base") is None

    assert tables(empty_database) == set()
    assert migrate_database(empty_database) is not None


def test_migrating_twice_changes_nothing(empty_database):
    migrate_database(empty_database)
    before = tables(empty_database)

    migrate_database(empty_database)

    assert tables(empty_database) == before


def test_a_locked_table_stops_a_migration_in_time_and_undoes_it(empty_database, monkeypatch):
    from app.settings import load_settings

    migrate_database(empty_database)
    monkeypatch.setenv("MIGRATION_LOCK_TIMEOUT_MS", "200")
    blocker = psycopg2.connect(empty_database.postgres_url)
    try:
        with blocker.cursor() as cursor:
            cursor.execute("LOCK TABLE decisions IN ACCESS SHARE MODE")

            with pytest.raises(StoreUnavailable, match="lock"):
                migrate_database(load_settings(), down_to="base")
    finally:
        blocker.close()

    assert "models" in tables(empty_database)


def test_rows_that_fell_into_the_default_move_to_their_month_when_it_is_made(empty_database):
    migrate_database(empty_database)
    query(
        empty_database, "DROP TABLE events_" + query(empty_database, "SELECT to_char(now(), 'YYYY_MM')")[0][0]
    )
    insert = (
        "INSERT INTO events (event_id, event_type, proposition_id, context, context_key, occurred_at, received_at)"
        " VALUES ('e1', 'click', 'p1', '{}', '', now(), now())"
    )
    query(empty_database, insert)
    assert query(empty_database, "SELECT count(*) FROM events_default") == [(1,)]

    query(empty_database, "SELECT ensure_partitions_ahead()")

    assert query(empty_database, "SELECT count(*) FROM events_default") == [(0,)]
    assert query(empty_database, "SELECT event_id FROM events") == [("e1",)]


def test_events_are_partitioned_by_month_and_fall_back_to_a_default(empty_database):
    migrate_database(empty_database)

    partitions = {name for name in tables(empty_database) if name.startswith("events_")}

    assert "events_default" in partitions
    assert len(partitions) == 1 + 4
