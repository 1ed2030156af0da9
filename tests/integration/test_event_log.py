from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from app.adapters.database import Database, event_database, service_database
from app.adapters.event_log import PostgresEventLog, advance_head
from app.adapters.feature_store import open_feature_store
from app.domain.errors import StoreUnavailable
from tests.builders import CONTEXT_FIELDS, NOON, count, event, query, refusal


@pytest.fixture
def log(settings) -> PostgresEventLog:
    return PostgresEventLog(service_database(settings), CONTEXT_FIELDS)


def test_an_event_is_stored_whole(settings, log):
    query(
        settings,
        "INSERT INTO propositions (proposition_id, title, category, updated_at) VALUES ('p1', 'P', 'sport', now())",
    )

    log.append([event("e1", "conversion", context={"page": "home"}, request_id="r1", position=3, value=9.5)])

    assert query(
        settings,
        "SELECT event_id, event_type, user_id, proposition_id, category, context_key, request_id, position,"
        " value, occurred_at FROM events",
    ) == [
        (
            "e1", "conversion", "u1", "p1", "sport", "page=home\x1fdaypart=afternoon\x1fweekday=fri",
            "r1", 3, 9.5, NOON,
        )
    ]  # fmt: skip


def test_a_repeated_id_counts_once_however_it_is_sent(settings, log):
    first = log.append([event("e1"), event("e1"), event("e2")])
    again = log.append([event("e2"), event("e3")])

    assert (first.recorded_ids, first.duplicate_ids) == (("e1", "e2"), ("e1",))
    assert (again.recorded_ids, again.duplicate_ids) == (("e3",), ("e2",))
    assert count(settings, "events") == count(settings, "event_keys") == 3


def test_nothing_is_nothing(settings, log):
    assert log.append([]).recorded_ids == ()


def test_commits_are_received_in_strictly_ascending_order_under_concurrency(settings, log):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: log.append([event(f"a{n}"), event(f"b{n}")]), range(50)))

    rows = query(settings, "SELECT received_at, count(*), max(seq) FROM events GROUP BY 1 ORDER BY 1")
    assert len(rows) == 50
    assert {size for _, size, _ in rows} == {2}
    assert [seq for *_, seq in rows] == sorted(seq for *_, seq in rows)


def test_the_same_events_sent_by_many_at_once_are_stored_once(settings, log):
    events = [event(f"e{n}") for n in range(20)]

    with ThreadPoolExecutor(4) as pool:
        receipts = list(pool.map(lambda _: log.append(events), range(8)))

    assert sum(len(r.recorded_ids) for r in receipts) == count(settings, "events") == 20


def test_a_later_commit_waits_for_the_one_before(settings, log):
    database = service_database(settings)
    with database.transaction() as connection, ThreadPoolExecutor(1) as pool:
        advance_head(connection, "events")
        other = pool.submit(log.append, [event("e1")])
        waits = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with service_database(settings).transaction() as observer:
            while not observer.execute(waits).scalar_one():
                observer.execute(text("SELECT pg_stat_clear_snapshot()"))
        assert not other.done()
        connection.commit()
        assert other.result(timeout=10).recorded_ids == ("e1",)


def test_when_postgres_is_gone_nothing_is_stored_and_the_error_says_so(settings):
    gone = Database("postgresql://nobody@127.0.0.1:1/none", 1, 1, 1_000)

    with pytest.raises(StoreUnavailable, match="did not answer"):
        PostgresEventLog(gone, CONTEXT_FIELDS).append([event("e1")])


def test_a_statement_past_its_time_is_an_outage_not_a_bug(settings):
    database = Database(settings.postgres_url, 1, 1, 50)

    with pytest.raises(StoreUnavailable, match="timeout"), database.transaction() as connection:
        connection.execute(text("SELECT pg_sleep(5)"))


def test_a_read_only_server_and_a_database_without_tables_are_outages(settings, empty_database):
    read_only = service_database(settings)
    query(
        settings,
        f"ALTER DATABASE {settings.postgres_url.rpartition('/')[2].partition('?')[0]}"
        " SET default_transaction_read_only = on",
    )
    with pytest.raises(StoreUnavailable, match="read-only"):
        PostgresEventLog(read_only, CONTEXT_FIELDS).append([event("e1")])

    with pytest.raises(StoreUnavailable, match="propositions migrate"):
        PostgresEventLog(service_database(empty_database), CONTEXT_FIELDS).append([event("e1")])


def test_a_role_without_grants_is_an_outage_of_the_event_log_and_shows_elsewhere(settings):
    name = settings.postgres_url.rpartition("/")[2].partition("?")[0]
    query(settings, f"ALTER DATABASE {name} SET role = 'pg_read_all_data'")

    with pytest.raises(StoreUnavailable, match="PostgreSQL refuses: permission denied for table log_heads"):
        PostgresEventLog(event_database(settings), CONTEXT_FIELDS).append([event("e1")])
    with pytest.raises(ProgrammingError, match="permission denied"):
        PostgresEventLog(service_database(settings), CONTEXT_FIELDS).append([event("e1")])


@pytest.mark.parametrize(
    "condition",
    ["insufficient_privilege", "undefined_function", "index_corrupted", "internal_error", "raise_exception"],
)
def test_what_postgres_refuses_whatever_the_events_are_is_an_outage_of_the_event_log(settings, condition):
    log = PostgresEventLog(event_database(settings), CONTEXT_FIELDS)
    log.append([event("e1")])

    with refusal(settings, condition), pytest.raises(StoreUnavailable, match="PostgreSQL refuses: not now"):
        log.append([event("e2")])

    assert log.append([event("e2")]).recorded_ids == ("e2",)


def test_an_event_that_postgres_refuses_for_what_is_in_it_is_no_outage(settings):
    query(settings, "ALTER TABLE events ADD CONSTRAINT no_curse CHECK (proposition_id <> 'cursed')")
    log = PostgresEventLog(event_database(settings), CONTEXT_FIELDS)

    with pytest.raises(IntegrityError, match="no_curse"):
        log.append([event("e1", proposition_id="cursed")])
    with pytest.raises(DataError, match="out of range"):
        log.append([event("e1", position=1 << 40)])


def test_errors_do_not_tell_whom_a_statement_was_about(settings):
    with pytest.raises(DataError) as failure, service_database(settings).transaction() as connection:
        connection.execute(text("SELECT 1 / 0 WHERE :user_id <> ''"), {"user_id": "ann"})

    assert "ann" not in str(failure.value)


def test_a_registry_without_a_place_is_an_outage_with_advice(empty_database):
    with pytest.raises(StoreUnavailable, match="propositions migrate"):
        open_feature_store(empty_database)


def test_a_pool_that_is_used_up_is_an_outage(settings):
    database = Database(settings.postgres_url, 1, 1, 1_000)

    with database.transaction(), pytest.raises(StoreUnavailable), database.transaction():
        pass
