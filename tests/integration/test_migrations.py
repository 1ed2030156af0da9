import json

import psycopg2
import psycopg2.errors
import pytest

from app.bootstrap.stores import migrate_database
from app.domain.errors import StoreUnavailable
from tests.builders import query
from tests.unit.test_additive_migrations import FIRST_RELEASE


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


def relied_on(settings) -> set[tuple[str, ...]]:
    """What statements name: columns with their types, uniqueness for ON CONFLICT, functions."""
    return set(
        query(
            settings,
            """
            SELECT 'column', table_name, column_name, udt_name
            FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL
            SELECT 'unique', indrelid::regclass::text, pg_get_indexdef(indexrelid), ''
            FROM pg_index WHERE indisunique AND indrelid::regclass::text !~ '^pg_'
            UNION ALL
            SELECT 'function', oid::regprocedure::text, pg_get_function_result(oid), ''
            FROM pg_proc WHERE pronamespace = 'public'::regnamespace""",
        )
    )


def to_be_given(settings) -> set[tuple[str, str]]:
    """Columns that no row can be written without."""
    return set(
        query(
            settings,
            """
            SELECT table_name, column_name FROM information_schema.columns
            WHERE table_schema = 'public' AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'""",
        )
    )


def test_the_first_release_finds_all_that_it_reads_and_gives_all_that_is_asked_of_it(empty_database):
    migrate_database(empty_database, up_to=FIRST_RELEASE)
    known, relied, given = tables(empty_database), relied_on(empty_database), to_be_given(empty_database)

    migrate_database(empty_database)

    assert len(relied) > 100 and relied - relied_on(empty_database) == set()
    assert {column for column in to_be_given(empty_database) if column[0] in known} <= given


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


def traits(settings, tags: list[str], **attributes) -> list[str]:
    """What these tags and attributes give a proposition in common with others."""
    ((found,),) = query(
        settings, "SELECT proposition_traits(CAST(%s AS text[]), %s)", (tags, json.dumps(attributes))
    )
    return found


def numbers(settings, attributes: str) -> dict[str, float]:
    ((names, values),) = query(
        settings,
        "SELECT proposition_number_names(a), proposition_number_values(a) FROM CAST(%s AS jsonb) AS a",
        (attributes,),
    )
    assert names == sorted(names)
    return dict(zip(names, values, strict=True))


def test_traits_are_tags_and_short_texts_of_attributes_sorted_and_each_once(settings):
    assert traits(
        settings,
        ["b", "a", "b"],
        author="Ann",
        genres=["noir", "noir", 7, None, ["deep"], "x" * 65],
        blurb="y" * 65,
        price=3,
        nested={"author": "no"},
        name="z" * 64,
    ) == ["a", "author=Ann", "b", "genres=noir", f"name={'z' * 64}"]
    assert traits(settings, []) == []


def test_of_many_traits_tags_come_first_and_then_those_with_the_first_names(settings):
    tags = [f"z{number:02d}" for number in range(60)]

    found = traits(settings, tags, words=[f"w{number}" for number in range(9)])

    assert found == ["words=w0", "words=w1", "words=w2", "words=w3", *tags]


def test_numbers_are_those_of_attributes_and_truth_counts_as_one(settings):
    found = numbers(
        settings, '{"b": 2, "a": -1.5, "yes": true, "no": false, "text": "3", "list": [4], "null": null}'
    )

    assert found == {"a": -1.5, "b": 2.0, "no": 0.0, "yes": 1.0}
    assert numbers(settings, "{}") == {}
    assert len(numbers(settings, json.dumps({f"n{number}": number for number in range(40)}))) == 32


def test_numbers_beyond_those_of_computers_are_none_and_hinder_no_others(settings):
    assert numbers(settings, '{"huge": 1e400, "tiny": 1e-400, "zero": 0.00, "one": 1}') == {
        "one": 1.0,
        "zero": 0.0,
    }


def test_an_upgrade_fills_all_versions_of_propositions_and_wants_them_online(empty_database):
    migrate_database(empty_database, up_to="0005")
    query(
        empty_database,
        """
        INSERT INTO propositions (proposition_id, title, tags, attributes, updated_at)
        VALUES ('p1', 'P', '{t}', '{"pages": 3}', now()), ('p2', 'P', '{}', '{}', now())""",
    )
    query(
        empty_database,
        """
        INSERT INTO proposition_catalog (proposition_id, event_timestamp)
        VALUES ('p1', now()), ('p1', now() - interval '1 day'), ('p2', now())""",
    )

    migrate_database(empty_database)

    assert query(
        empty_database,
        "SELECT proposition_id, traits, number_names, number_values FROM proposition_catalog ORDER BY 1",
    ) == [("p1", ["t"], ["pages"], [3.0])] * 2 + [("p2", [], [], [])]
    assert query(empty_database, "SELECT needs_rebuild FROM projection") == [(True,)]


def test_a_projector_of_the_release_before_histories_cannot_fold_without_them(empty_database):
    migrate_database(empty_database, up_to="0005")
    its_first_statement = "SELECT generation::text, needs_rebuild, states_version FROM projection FOR SHARE"
    query(empty_database, its_first_statement)

    migrate_database(empty_database)

    with pytest.raises(psycopg2.errors.UndefinedColumn):
        query(empty_database, its_first_statement)
    migrate_database(empty_database, down_to="0005")
    assert query(empty_database, its_first_statement)


def test_events_are_partitioned_by_month_and_fall_back_to_a_default(empty_database):
    migrate_database(empty_database)

    partitions = {name for name in tables(empty_database) if name.startswith("events_")}

    assert "events_default" in partitions
    assert len(partitions) == 1 + 4
