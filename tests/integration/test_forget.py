"""People who are forgotten: nothing of them is left, and nothing of them comes back."""

import itertools
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis
from sqlalchemy import text

from app.adapters import online_eraser
from app.adapters.database import batch_database, service_database
from app.adapters.decision_log import PostgresDecisionLog
from app.adapters.erasures import PostgresErasures
from app.adapters.event_log import PostgresEventLog
from app.adapters.feast_layout import timestamp_field, value_field
from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.online_eraser import RedisEraser, fields_until
from app.adapters.spool import SpoolFolder
from app.api.factory import create_app
from app.bootstrap.life import build_forget_user
from app.bootstrap.projector import build_projector
from app.bootstrap.stores import open_import
from app.bootstrap.web import build_api
from app.domain.errors import StoreUnavailable
from app.domain.types import DegradationLevel, Slate, Strategy, User
from app.features.schema import EntityName
from app.features.slots import ALL_SLOTS
from app.life.forget import SETTLED_AFTER, ForgetUser
from app.settings import load_settings
from tests.builders import CONTEXT_FIELDS, count, event, proposition, query, request
from training.joins import build_dataset
from training.labels import LabelOptions

EARLIER = datetime.now(UTC) - timedelta(hours=2)
# Ids that begin alike, or would if keys were not separated, or are patterns elsewhere.
OTHERS = ("u", "u10", "u1 x", "U1", "u_", "%", "u1:x")


def a_slate(at: datetime, request_id: str) -> Slate:
    return Slate(request_id, at, (), Strategy.RULES, None, DegradationLevel.RULES, {}, 0)


def log_decision(settings, user_id: str, at: datetime = EARLIER) -> None:
    decision = request(user_id=user_id), a_slate(at, f"r-{user_id}")
    PostgresDecisionLog(service_database(settings)).append([decision])


def events_of(user_id: str, at: datetime = EARLIER):
    shown = {"request_id": f"r-{user_id}", "user_id": user_id}
    return [
        event(f"i-{user_id}", "impression", "p1", at, **shown),
        event(f"c-{user_id}", "click", "p1", at + timedelta(seconds=5), **shown),
    ]


@pytest.fixture
def event_log(settings):
    return PostgresEventLog(service_database(settings), CONTEXT_FIELDS)


@pytest.fixture
def crowd(settings, event_log):
    """u1 and others with similar ids, each with a profile, events, a decision and features everywhere."""
    with open_import(settings) as loader:
        loader.add(proposition("p1", category="sport"))
        for user_id in ("u1", *OTHERS):
            loader.add(User(user_id, age_years=30.0))
            for one in events_of(user_id):
                loader.add(one)
        loader.finish(False)
    for user_id in ("u1", *OTHERS):
        log_decision(settings, user_id)
    build_projector(settings)[0].run()


@pytest.fixture
def online(settings):
    with redis.Redis.from_url(settings.redis_address) as client:
        yield client


@pytest.fixture
def forget(settings):
    return build_forget_user(settings)


TABLES_OF_USERS = {
    "users": "user_id",
    "user_profile": "user_id",
    "user_activity": "user_id",
    "user_history": "user_id",
    "user_recent": "user_id",
    "events": "user_id",
    "decisions": "user_id",
    "user_category_affinity": "split_part(user_category_key, chr(31), 1)",
    "event_keys": "substr(event_id, 3)",  # of `events_of`
}


def rows_of(settings, user_id: str) -> dict[str, int]:
    return {
        table: query(settings, f"SELECT count(*) FROM {table} WHERE {column} = %s", (user_id,))[0][0]
        for table, column in TABLES_OF_USERS.items()
    }


def online_keys_of(online, user_id: str) -> list[bytes]:
    """Keys of Feast's hashes of a user, alone and crossed: their value is an id or begins with it."""
    return [
        key
        for key in online.keys("*")
        for value in (user_id.encode(), f"{user_id}\x1fsport".encode())
        if len(value).to_bytes(4, "little") + value + b"propositions" in key
    ]


@pytest.mark.parametrize("user_id", ["u1", "u_", "%"])
def test_everything_of_a_person_goes_and_everything_of_others_stays(settings, crowd, online, forget, user_id):
    assert all(rows_of(settings, user_id).values()) and len(online_keys_of(online, user_id)) == 2
    others = {other: rows_of(settings, other) for other in ("u1", *OTHERS) if other != user_id}

    forgotten = forget(user_id)

    assert rows_of(settings, user_id) == dict.fromkeys(TABLES_OF_USERS, 0)
    assert online_keys_of(online, user_id) == []
    assert {other: rows_of(settings, other) for other in others} == others
    assert all(len(online_keys_of(online, other)) == 2 for other in others)
    assert forgotten.is_complete
    assert forgotten.counts["events"] == 2 and forgotten.counts["online"] == 3


def test_counters_over_many_people_stay(settings, crowd, forget):
    before = query(settings, "SELECT impressions, clicks FROM proposition_performance")

    forget("u1")

    assert query(settings, "SELECT impressions, clicks FROM proposition_performance") == before


def test_the_audit_says_when_and_how_much_and_not_who(settings, crowd, forget):
    forget("u1")
    forget("never seen")

    rows = query(
        settings, "SELECT counts, erased_at, row_to_json(erasures)::text FROM erasures ORDER BY number"
    )
    assert [counts["events"] for counts, *_ in rows] == [2, 0]
    assert all(datetime.now(UTC) - at < timedelta(minutes=1) for _, at, _ in rows)
    assert not any("u1" in line or "never" in line for *_, line in rows)


def test_training_data_are_free_of_who_was_forgotten(settings, crowd, forget):
    def slate_count():
        store, half_life_count = open_feature_store(settings), len(settings.half_lives_s)
        database = batch_database(settings)
        return build_dataset(store, load_schema(store), half_life_count, LabelOptions(), database).slate_count

    assert slate_count() == 1 + len(OTHERS)

    forget("u1")

    assert slate_count() == len(OTHERS)
    build_projector(settings)[0].rebuild()
    assert rows_of(settings, "u1") == dict.fromkeys(TABLES_OF_USERS, 0)


def test_late_copies_of_events_from_before_do_not_bring_a_person_back(settings, crowd, event_log, forget):
    forget("u1")

    resent = event_log.append(events_of("u1"))
    unseen = event_log.append([event("unseen", at=EARLIER), event("other", at=EARLIER, user_id="u10")])

    assert resent.recorded_ids == () and unseen.recorded_ids == ("other",)
    assert unseen.dropped_ids == ("unseen",) and unseen.duplicate_ids == ()
    assert rows_of(settings, "u1")["events"] == 0


def test_the_id_of_a_forgotten_event_is_free_for_somebody_else(settings, crowd, event_log, forget):
    forget("u1")

    receipt = event_log.append([event("c-u1", at=EARLIER, user_id="u10"), event("i-u1", at=EARLIER)])

    assert receipt.recorded_ids == ("c-u1",) and receipt.dropped_ids == ("i-u1",)


def test_a_copy_that_comes_while_most_is_deleted_already_is_dropped(settings, crowd, event_log):
    erasures = PostgresErasures(service_database(settings))
    _, tables = build_projector(settings)

    with ThreadPoolExecutor(1) as pool:
        with tables.batch(ALL_SLOTS):
            erasing = pool.submit(erasures.erase, "u1", {})
            wait_for_a_lock(settings)
            assert rows_of(settings, "u1")["events"] == rows_of(settings, "u1")["event_keys"] == 0
            resent = event_log.append(events_of("u1"))
        erasing.result(timeout=10)

    assert resent.recorded_ids == () and set(resent.dropped_ids) == {"i-u1", "c-u1"}


def test_a_copy_of_an_event_that_was_dated_ahead_does_not_bring_a_person_back(settings, event_log, forget):
    ahead = event("ahead", at=datetime.now(UTC) + timedelta(minutes=4))
    event_log.append([ahead])
    for _ in range(2):
        forget("u1")

    resent = event_log.append([ahead])
    back = event_log.append([event("back", at=ahead.occurred_at + timedelta(seconds=1))])

    assert resent.dropped_ids == ("ahead",) and count(settings, "event_keys") == 1
    assert back.recorded_ids == ("back",)


def test_importing_history_again_does_not_bring_a_person_back(settings, crowd, forget):
    forget("u1")

    with open_import(settings) as loader:
        for one in (*events_of("u1"), event("unseen", at=EARLIER), event("other", at=EARLIER, user_id="u10")):
            loader.add(one)
        loaded = loader.finish(False)

    assert loaded.events == 1
    assert rows_of(settings, "u1")["events"] == 0


def test_a_decision_that_waited_in_a_worker_is_dropped(settings, crowd, forget):
    forget("u1")

    log_decision(settings, "u1", EARLIER)
    log_decision(settings, "u10", EARLIER + timedelta(seconds=1))

    assert rows_of(settings, "u1")["decisions"] == 0
    assert rows_of(settings, "u10")["decisions"] == 2


def test_who_comes_back_is_a_new_user(settings, crowd, event_log, forget):
    forget("u1")

    event_log.append([replace(event("back"), occurred_at=datetime.now(UTC))])
    log_decision(settings, "u1", datetime.now(UTC))
    build_projector(settings)[0].run()

    assert rows_of(settings, "u1")["events"] == rows_of(settings, "u1")["decisions"] == 1
    ((impressions, clicks),) = query(
        settings, "SELECT impressions[4], clicks[4] FROM user_activity WHERE user_id = 'u1'"
    )
    assert (impressions, clicks) == (0.0, pytest.approx(1.0))


def test_projectors_are_told_to_forget_what_they_keep_in_memory(settings, crowd, forget):
    (before,) = query(settings, "SELECT state_changes FROM projection")[0]

    forget("u1")

    assert query(settings, "SELECT state_changes FROM projection") == [(before + 1,)]


def test_forgetting_waits_for_the_projector_and_then_deletes_what_it_wrote(settings, crowd):
    erasures = PostgresErasures(service_database(settings))
    _, tables = build_projector(settings)

    with ThreadPoolExecutor(1) as pool:
        with tables.batch(ALL_SLOTS) as (batch, _):
            erasing = pool.submit(erasures.erase, "u1", {})
            wait_for_a_lock(settings)
            batch._connection.execute(
                text(
                    "INSERT INTO user_activity SELECT 'u1', impressions, clicks, conversions, dismissals,"
                    " as_of_s, now() FROM user_activity WHERE user_id = 'u10' LIMIT 1"
                )
            )
            assert not erasing.done()
        erasing.result(timeout=10)

    assert rows_of(settings, "u1") == dict.fromkeys(TABLES_OF_USERS, 0)


def test_a_projector_that_knew_a_forgotten_person_starts_from_nothing_with_who_comes_back(
    settings, event_log, forget
):
    projector = build_projector(settings)[0]
    event_log.append([event(f"before-{n}", "click", "p1", user_id="u1") for n in range(3)])
    projector.run()
    forget("u1")

    event_log.append([event("after", "click", "p1", at=datetime.now(UTC), user_id="u1")])
    projector.run()

    assert query(settings, "SELECT clicks[4] FROM user_activity WHERE user_id = 'u1'") == [(1.0,)]


def test_what_waits_in_the_spool_of_this_machine_goes_too(settings, forget):
    spool = SpoolFolder(settings.spool_dir, settings.spool_max_bytes)
    spool.append([event("e1", user_id="u1"), event("e2", user_id="u2"), event("e3", user_id="u1")])

    forgotten = forget("u1")

    assert forgotten.counts["spool"] == 2
    assert [kept.event_id for kept in spool.oldest().events] == ["e2"]


def test_forgetting_waits_for_decisions_under_way(settings, crowd):
    erasures = PostgresErasures(service_database(settings))

    with ThreadPoolExecutor(1) as pool:
        with service_database(settings).transaction() as connection:
            connection.execute(text("SELECT FROM log_heads WHERE name = 'decisions' FOR SHARE"))
            erasing = pool.submit(erasures.erase, "u1", {})
            wait_for_a_lock(settings)
            connection.execute(
                text(
                    "INSERT INTO decisions SELECT 'late', decided_at, 'u1', context, context_key, strategy,"
                    " model_version, degradation_level, feature_states, candidate_count, slate, is_cached"
                    " FROM decisions WHERE user_id = 'u10'"
                )
            )
        erasing.result(timeout=10)

    assert rows_of(settings, "u1")["decisions"] == 0


def test_what_a_rebuild_has_made_again_is_deleted_too(settings, crowd, forget):
    build_projector(settings)[1].start_rebuild()
    for table in ("user_activity", "user_history", "user_recent", "user_category_affinity"):
        query(settings, f"INSERT INTO {table}_rebuild SELECT * FROM {table}")

    forget("u1")

    (users,) = query(
        settings, "SELECT array_agg(DISTINCT user_id ORDER BY user_id) FROM user_activity_rebuild"
    )[0]
    assert users == sorted(OTHERS)
    assert count(settings, "user_category_affinity_rebuild") == 2 * len(OTHERS)
    assert count(settings, "user_recent_rebuild") == len(OTHERS)
    assert count(settings, "user_history_rebuild") == count(settings, "user_activity_rebuild")


def test_under_live_traffic_nothing_from_before_is_left(settings, crowd, event_log, forget):
    """Events of the user come in, are folded and forgotten all at once; what counts is when they happened."""
    stop = threading.Event()

    def record(first: int) -> None:
        for n in itertools.count(first, 4):
            if stop.is_set():
                return
            event_log.append([event(f"live{n}", at=datetime.now(UTC))])

    def fold() -> None:
        projector = build_projector(settings)[0]
        while not stop.is_set():
            projector.run()

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(record, 0), pool.submit(record, 1), pool.submit(fold)]
        while rows_of(settings, "u1")["events"] < 50:
            pass
        for _ in range(5):
            forget("u1")
        stop.set()
        for worker in workers:
            worker.result(timeout=30)

    ((forgotten_at,),) = query(settings, "SELECT forgotten_at FROM forgotten_users")
    (occurred, received) = query(
        settings, "SELECT min(occurred_at), min(received_at) FROM events WHERE user_id = 'u1'"
    )[0]
    assert occurred is None or (occurred > forgotten_at and received > forgotten_at)
    for table in ("user_activity", "user_history", "user_recent"):
        ((oldest,),) = query(settings, f"SELECT min(event_timestamp) FROM {table} WHERE user_id = 'u1'")
        assert oldest is None or oldest > forgotten_at
    assert rows_of(settings, "u1")["decisions"] == rows_of(settings, "u1")["users"] == 0


def test_the_command_tells_what_it_removed_and_refuses_what_is_no_id(settings, crowd):
    def command(user_id: str) -> subprocess.CompletedProcess:
        program = [sys.executable, "-m", "app", "forget-user", user_id]
        return subprocess.run(program, capture_output=True, text=True, env=os.environ)

    done, refused = command("u1"), command(" ")

    assert done.returncode == 0 and "events: 2 removed" in done.stdout and "online: 3 removed" in done.stdout
    assert not any(rows_of(settings, "u1").values())
    assert refused.returncode == 2 and "no id" in refused.stderr


def wait_for_a_lock(settings) -> None:
    """Until somebody waits for a lock in this database."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while query(settings, waits) == [(0,)]:
        pass


def test_what_a_projector_writes_to_redis_late_is_removed_when_things_have_settled(
    settings, crowd, online, forget
):
    (key, _) = online_keys_of(online, "u1")
    forget("u1")
    online.hset(key, "late", "row")

    assert forget.finish(datetime.now(UTC)) == 0
    assert forget.finish(datetime.now(UTC) + SETTLED_AFTER) == 1

    assert online_keys_of(online, "u1") == []
    assert count(settings, "unfinished_erasures") == 0


@pytest.fixture
def returned(settings, crowd, event_log, online, forget):
    """u1 after an erasure, with a new profile and a new impression of sport; u1's hash from before, by field."""
    keys = online_keys_of(online, "u1")
    before = {key: online.hgetall(key) for key in keys}
    forget("u1")
    with open_import(settings) as loader:
        loader.add(User("u1", age_years=40.0))
        loader.finish(False)
    event_log.append([event("back", "impression", at=datetime.now(UTC))])
    build_projector(settings)[0].run()
    return before


def test_what_is_online_of_who_came_back_stays_when_things_have_settled(settings, returned, online, forget):
    before = {key: online.hgetall(key) for key in returned}

    assert forget.finish(datetime.now(UTC) + SETTLED_AFTER) == 1

    assert all(before.values()) and {key: online.hgetall(key) for key in returned} == before


def test_of_who_came_back_only_late_rows_from_before_are_removed(settings, returned, online, forget):
    (key,) = (key for key in returned if key.endswith(b"u1propositions"))
    after = online.hgetall(key)
    recent = [timestamp_field("user_recent"), value_field("user_recent", "propositions")]
    late = {field: returned[key][field] for field in recent}
    assert not late.keys() & after.keys()
    online.hset(key, mapping=late)

    forget.finish(datetime.now(UTC) + SETTLED_AFTER)

    assert online.hgetall(key) == after


def test_rows_from_up_to_a_moment_are_removed_from_a_hash_and_later_ones_stay(settings, crowd, online):
    (key,) = (key for key in online_keys_of(online, "u1") if key.endswith(b"u1propositions"))
    stored = online.hgetall(key)
    eraser = RedisEraser(online, "propositions")
    folded_at = EARLIER + timedelta(seconds=5)

    eraser.erase("u1", [], until=folded_at - timedelta(microseconds=1))
    assert online.hgetall(key) == stored

    eraser.erase("u1", [], until=folded_at)
    assert {field for field in online.hgetall(key) if field.startswith(b"_ts")} == {b"_ts:user_profile"}

    eraser.erase("u1", [], until=datetime.now(UTC))
    assert not online.exists(key)


def test_a_row_that_is_written_while_one_from_before_is_removed_stays(settings, online, monkeypatch):
    eraser = RedisEraser(online, "propositions")
    (key,) = eraser._feast_keys(EntityName.USER, ["u1"])
    before, after = ({b"_ts:user_profile": timestamp_of_s(seconds), b"age": b"40"} for seconds in (10, 20))
    online.hset(key, mapping=before)
    seen = []

    def look_and_be_overtaken(stored, until_ns):
        if not seen:
            online.hset(key, mapping=after)
        seen.append(stored)
        return fields_until(stored, until_ns)

    monkeypatch.setattr(online_eraser, "fields_until", look_and_be_overtaken)
    eraser.erase("u1", [], until=datetime.fromtimestamp(15, UTC))

    assert seen == [before, after] and online.hgetall(key) == after


def test_values_of_no_row_and_rows_without_a_readable_time_count_as_from_before():
    later = timestamp_of_s(20)
    activity = {timestamp_field("user_activity"): later, value_field("user_activity", "clicks"): b"1"}

    assert fields_until({b"late": b"row"}, 10_000_000_000) == [b"late"]
    assert fields_until(activity | {b"late": b"row"}, 10_000_000_000) == [b"late"]
    assert fields_until({timestamp_field("user_activity"): b"\xff"}, 10_000_000_000) == [b"_ts:user_activity"]


def test_entered_rows_go_together_for_nobody_can_tell_whose_a_value_is():
    both_later = {
        b"_ts:user_profile": timestamp_of_s(20),
        b"_ts:user_more": timestamp_of_s(30),
        b"age": b"40",
    }
    one_before = both_later | {b"_ts:user_more": timestamp_of_s(10)}

    assert fields_until(both_later, 10_000_000_000) == []
    assert fields_until(one_before, 10_000_000_000) == list(one_before)


def timestamp_of_s(seconds: int) -> bytes:
    """A protobuf timestamp of less than 128 seconds after 1970."""
    return bytes([8, seconds])


def test_while_redis_is_gone_the_rest_is_erased_and_redis_follows(settings, crowd, online, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    without_redis = build_forget_user(load_settings())

    forgotten = without_redis("u1")

    assert not forgotten.is_complete and not any(rows_of(settings, "u1").values())
    with pytest.raises(StoreUnavailable):
        without_redis.finish(datetime.now(UTC) + SETTLED_AFTER)
    assert len(online_keys_of(online, "u1")) == 2
    assert build_forget_user(settings)("u1").is_complete
    assert online_keys_of(online, "u1") == []


def test_the_spool_of_this_machine_is_asked_and_its_count_is_in_the_audit(settings, crowd, forget):
    asked = []
    erasures = PostgresErasures(service_database(settings))

    forgotten = ForgetUser(erasures, forget._online, lambda user_id: asked.append(user_id) or 3)("u1")

    assert asked == ["u1"] and forgotten.counts["spool"] == 3
    assert query(settings, "SELECT counts->>'spool' FROM erasures") == [("3",)]


def test_over_http_anybody_can_be_forgotten_any_number_of_times(settings, crowd, online):
    services, _, registry = build_api(settings)
    client = create_app(settings, services, registry).test_client()
    client.post("/suggest", data=json.dumps({"user_id": "u1"}), content_type="application/json")
    services.flush_decisions()

    first, again, unknown = (client.delete(f"/users/{user_id}") for user_id in ("u1", "u1", "nobody"))

    assert first.status_code == again.status_code == unknown.status_code == 200
    assert first.get_json()["removed"]["decisions"] == 2 and first.get_json()["is_complete"]
    assert not any(again.get_json()["removed"].values()) and not any(unknown.get_json()["removed"].values())
    assert not any(rows_of(settings, "u1").values())
    assert client.get("/users/u1").status_code == 404
