"""What this project relies on in Feast, held against the installed version on real servers."""

import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
import redis
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import PostgreSQLOfflineStore

from app.adapters.database import Database, batch_database
from app.adapters.event_log import PostgresEventLog
from app.adapters.feature_store import (
    OnlineFeatureWriter,
    load_schema,
    open_feature_store,
    open_online_writer,
)
from app.adapters.feature_tables import FeatureTables
from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import open_wire
from app.bootstrap.stores import FEAST_PROJECT, open_import
from app.domain.errors import ConfigurationError, FeaturesUnavailable
from app.domain.types import FeatureState, Proposition, User
from app.events.project import Projector
from app.features.covisits import CovisitRules
from app.features.fold import COUNTER_VIEWS, FOLDED_VIEWS, KEY_COLUMNS, Counters, FeatureRow
from app.features.history import HISTORY_FIELDS, HISTORY_VIEW
from app.features.recent import RECENT_FIELD, RECENT_VIEW
from app.features.schema import COUNTER_FIELDS, EntityName, FieldKind
from tests.builders import CONTEXT_FIELDS, event, query
from training.joins import build_dataset
from training.labels import LabelOptions

HALF_LIFE_COUNT = 4
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
def store(settings):
    return open_feature_store(settings)


@pytest.fixture
def database(settings) -> Database:
    query(
        settings,
        "INSERT INTO propositions (proposition_id, title, category, updated_at)"
        " VALUES ('p1', 'One', 'sport', now()), ('p2', 'Two', 'news', now())",
    )
    return batch_database(settings)


@pytest.fixture
def projector(settings, store, database) -> Projector:
    return Projector(
        FeatureTables(database),
        OnlineFeatureWriter(store),
        settings.half_lives_s,
        CovisitRules(settings.covisit_window_s, settings.covisit_half_life_s),
        1_000,
    )


@pytest.fixture
def reader(settings) -> RedisOnlineReader:
    return RedisOnlineReader(open_wire(connect_redis(settings.redis_address, 1_000)), "propositions")


def record(database, *events):
    PostgresEventLog(database, CONTEXT_FIELDS).append(events)


def some_events():
    return [
        event("e1", "impression", at=YESTERDAY, request_id="r1"),
        event("e2", "click", at=YESTERDAY, request_id="r1"),
        event("e3", "impression", "p2", at=YESTERDAY, user_id="u2", request_id="r2"),
    ]


def redis_content(settings) -> dict[bytes, dict[bytes, bytes]]:
    with redis.Redis.from_url(settings.redis_address) as client:
        keys = [key for key in client.scan_iter() if not key.startswith(b"propositions:")]
        return {key: client.hgetall(key) for key in keys}


def test_the_feature_repo_declares_the_views_that_the_fold_fills(store):
    recent = store.get_feature_view(RECENT_VIEW)
    assert [(field.name, str(field.dtype)) for field in recent.features] == [(RECENT_FIELD, "Array(String)")]
    assert [column.name for column in recent.entity_columns] == [KEY_COLUMNS[FOLDED_VIEWS[RECENT_VIEW]]]
    history = load_schema(store).view(HISTORY_VIEW)
    assert [(field.name, field.kind) for field in history.fields] == [
        (name, FieldKind.HISTORY) for name in HISTORY_FIELDS
    ]
    assert (history.entity, history.join_key) == (EntityName.USER, KEY_COLUMNS[FOLDED_VIEWS[HISTORY_VIEW]])

    schema = load_schema(store)

    declared = {view.entity: (view.name, view.join_key) for view in schema.views if view.has_counters}
    assert declared == {entity: (COUNTER_VIEWS[entity], KEY_COLUMNS[entity]) for entity in EntityName}
    for view in schema.views:
        if view.has_counters:
            assert [f.name for f in view.fields if f.kind is FieldKind.COUNTER] == [
                *COUNTER_FIELDS,
                "as_of_s",
            ]


def test_the_service_reads_the_keys_of_the_project_that_the_feature_repo_names(store):
    assert store.project == FEAST_PROJECT


def test_what_the_projector_pushes_is_read_by_stock_feast_and_by_our_reader_alike(
    store, database, projector, reader
):
    record(database, *some_events())
    projector.run()
    schema = load_schema(store)

    for entity, name in COUNTER_VIEWS.items():
        rows = query_keys(database, entity)
        view = schema.view(name)
        ours = reader.read({view: rows}, HALF_LIFE_COUNT, datetime.now(UTC))[name]
        stock = store.get_online_features(
            features=[f"{name}:{field}" for field in view.field_names],
            entity_rows=[{view.join_key: key} for key in rows],
        ).to_dict()
        assert set(ours.states) == {FeatureState.FRESH}
        assert ours.rows.as_of_s.tolist() == stock["as_of_s"]
        for position, field in enumerate(COUNTER_FIELDS):
            assert ours.rows.counts[:, position, :].tolist() == stock[field]


def test_what_a_user_clicked_last_is_read_by_stock_feast(store, database, projector):
    clicked = ["p1", 'p"2\\', "p,3", "\u4e00"]
    record(
        database,
        *(event(f"e{n}", "click", p, YESTERDAY + timedelta(seconds=n)) for n, p in enumerate(clicked)),
    )
    projector.run()

    read = store.get_online_features(
        features=["user_recent:propositions", "user_activity:clicks"],
        entity_rows=[{"user_id": "u1"}, {"user_id": "nobody"}],
    ).to_dict()

    assert read["propositions"] == [clicked[::-1], None]
    assert read["clicks"][0] is not None


def test_what_a_user_was_shown_is_read_by_stock_feast_and_by_our_reader_alike(
    store, database, projector, reader
):
    shown = ["p1", 'p"2\\', "p,3", "\u4e00"]
    record(database, *(event(f"e{n}", "impression", p, YESTERDAY) for n, p in enumerate(shown)))
    record(database, event("e9", "click", "p1", YESTERDAY))
    projector.run()

    stock = store.get_online_features(
        features=[f"{HISTORY_VIEW}:{field}" for field in HISTORY_FIELDS],
        entity_rows=[{"user_id": "u1"}, {"user_id": "nobody"}],
    ).to_dict()
    view = load_schema(store).view(HISTORY_VIEW)
    ours = reader.read({view: ["u1", "nobody"]}, HALF_LIFE_COUNT, datetime.now(UTC))[HISTORY_VIEW].rows.values

    assert stock["propositions"] == [["p1", *shown[:0:-1]], None]
    assert stock["impressions"] == [[1.0] * 4, None]
    assert stock["clicks"] == [[1.0, 0.0, 0.0, 0.0], None]
    for field in HISTORY_FIELDS:
        assert ours[field].tolist() == [tuple(stock[field][0]), ()]


def test_what_a_user_had_clicked_last_is_known_for_every_past_moment(settings, store, database, projector):
    first, second = event("e1", "click", "p1", YESTERDAY), event("e2", "click", "p2", datetime.now(UTC))
    record(database, first)
    between = query(settings, "SELECT clock_timestamp()")[0][0]
    record(database, second)
    projector.run()

    moments = [YESTERDAY, between, datetime.now(UTC)]
    values = ", ".join(f"('u1', timestamptz '{moment.isoformat()}')" for moment in moments)
    joined = store.get_historical_features(
        entity_df=f"SELECT * FROM (VALUES {values}) AS asked(user_id, event_timestamp)",
        features=["user_recent:propositions"],
    ).to_df()

    known = joined.sort_values("event_timestamp")["propositions"].tolist()
    assert [None if row is None else list(row) for row in known] == [None, ["p1"], ["p2", "p1"]]


def test_the_projector_waits_for_a_feature_repo_that_lacks_its_views(settings, store):
    store.registry.delete_feature_view("user_recent", store.project)

    with pytest.raises(ConfigurationError, match="feast apply"):
        OnlineFeatureWriter(open_feature_store(settings))
    assert open_online_writer(settings) is None


def query_keys(database, entity) -> list[str]:
    from sqlalchemy import text

    with database.transaction() as connection:
        return list(
            connection.execute(
                text(f"SELECT DISTINCT {KEY_COLUMNS[entity]} FROM {COUNTER_VIEWS[entity]}")
            ).scalars()
        )


def test_materialize_writes_byte_for_byte_what_the_projector_pushes(settings, store, database, projector):
    record(database, *some_events())
    projector.run()
    pushed = redis_content(settings)
    with redis.Redis.from_url(settings.redis_address) as client:
        client.flushdb()

    store.materialize_incremental(datetime.now(UTC) + timedelta(minutes=1), list(FOLDED_VIEWS))

    assert redis_content(settings) == pushed


def test_facts_are_materialized_and_read_with_their_nulls(settings, store, reader):
    query(
        settings,
        "INSERT INTO user_profile (user_id, age_years, gender, segment, event_timestamp)"
        " VALUES ('u1', 42.5, NULL, 'writer', now() - interval '1 hour')",
    )
    store.materialize_incremental(datetime.now(UTC), ["user_profile"])

    view = load_schema(store).view("user_profile")
    read = reader.read({view: ["u1", "u2"]}, HALF_LIFE_COUNT, datetime.now(UTC))["user_profile"]

    assert list(read.states) == [FeatureState.FRESH, FeatureState.MISSING]
    assert read.rows.values["age_years"][0] == 42.5
    assert read.rows.values["gender"].tolist() == ["", ""]
    assert read.rows.values["segment"].tolist() == ["writer", ""]


def test_a_redis_that_lost_everything_gets_its_profiles_back_too(
    settings, store, projector, reader, database
):
    record(database, *some_events())
    query(
        settings,
        "INSERT INTO user_profile (user_id, age_years, event_timestamp) VALUES ('u1', 42, now() - interval '9 days')",
    )
    store.materialize_incremental(datetime.now(UTC), ["user_profile"])
    projector.run()
    with redis.Redis.from_url(settings.redis_address) as client:
        client.flushdb()

    projector.run()

    view = load_schema(store).view("user_profile")
    read = reader.read({view: ["u1"]}, HALF_LIFE_COUNT, datetime.now(UTC))["user_profile"]
    assert read.rows.values["age_years"].tolist() == [42.0]
    for folded in FOLDED_VIEWS:
        assert not store.get_feature_view(folded).materialization_intervals


def test_a_profile_that_changes_is_read_by_stock_feast_after_the_next_look(settings, store, projector):
    def import_user(segment: str) -> None:
        with open_import(settings) as loader:
            loader.add(User("u1", segment=segment))
            loader.add(User("u2", segment="reader"))
            described = {"tags": ("ball",), "attributes": {"pages": 12}}
            loader.add(Proposition("p1", "One", "sport", value=2.0, **described))
            loader.finish(False)

    def read() -> list:
        found = store.get_online_features(
            features=["user_profile:segment"], entity_rows=[{"user_id": "u1"}, {"user_id": "u2"}]
        )
        return found.to_dict()["segment"]

    import_user("writer")
    projector.write_facts()
    assert read() == ["writer", "reader"]
    with redis.Redis.from_url(settings.redis_address) as client:
        unchanged = next(key for key in client.scan_iter() if b"u2" in key)
        client.delete(unchanged)
        import_user("editor")

        projector.write_facts()

        assert read() == ["editor", None]  # what did not change is not written again
        projector._online._client.delete("propositions:projected-slots")
        projector.write_facts()
        assert read() == ["editor", "reader"]
    fields = ("value", "traits", "number_names", "number_values")
    read_of_p1 = store.get_online_features(
        [f"proposition_catalog:{field}" for field in fields], [{"proposition_id": "p1"}]
    ).to_dict()
    assert [read_of_p1[field] for field in fields] == [[2.0], [["ball"]], [["pages"]], [[12.0]]]


def test_facts_are_written_as_feast_materializes_them(settings, store, projector):
    query(
        settings,
        "INSERT INTO user_profile (user_id, age_years, gender, segment, event_timestamp)"
        " VALUES ('u1', 42.5, NULL, 'writer', now() - interval '1 hour'), ('u1', 41, 'F', NULL, now() - interval '1 day')",
    )
    query(
        settings,
        "INSERT INTO proposition_catalog (proposition_id, traits, number_names, number_values, event_timestamp)"
        " VALUES ('p1', '{a,\"b=\u00fc\"}', '{n,o}', '{0,-1.5}', now()), ('p2', '{}', '{}', '{}', now())",
    )
    projector.write_facts()
    written = redis_content(settings)
    with redis.Redis.from_url(settings.redis_address) as client:
        client.flushdb()

    store.materialize_incremental(datetime.now(UTC), ["user_profile", "proposition_catalog"])

    assert redis_content(settings) == written != {}


def test_an_older_row_that_comes_late_overwrites_none_but_by_intent(store):
    def row(clicks: float, at: datetime) -> dict[str, list[FeatureRow]]:
        state = Counters(np.full((len(COUNTER_FIELDS), HALF_LIFE_COUNT), clicks), at.timestamp())
        return {"user_activity": [FeatureRow("user_activity", "u1", state, at)]}

    def read() -> float:
        rows = store.get_online_features(["user_activity:clicks"], [{"user_id": "u1"}]).to_dict()
        return rows["clicks"][0][0]

    writer = OnlineFeatureWriter(store)
    writer.write(row(2.0, YESTERDAY))

    writer.write(row(1.0, YESTERDAY - timedelta(seconds=1)))
    assert read() == 2.0
    writer.write(row(1.0, YESTERDAY - timedelta(seconds=1)), over_newer=True)
    assert read() == 1.0


def test_feast_reads_an_unknown_entity_as_null_and_we_as_missing(store, reader):
    stock = store.get_online_features(
        features=["user_activity:as_of_s"], entity_rows=[{"user_id": "nobody"}]
    ).to_dict()
    view = load_schema(store).view("user_activity")

    ours = reader.read({view: ["nobody"]}, HALF_LIFE_COUNT, datetime.now(UTC))["user_activity"]

    assert stock["as_of_s"] == [None]
    assert list(ours.states) == [FeatureState.MISSING]


def test_feast_returns_rows_past_their_ttl_and_we_call_them_stale(store, database, projector, reader):
    record(database, *some_events())
    projector.run()
    view = load_schema(store).view("user_activity")
    later = datetime.now(UTC) + timedelta(seconds=view.ttl_s + 60)

    ours = reader.read({view: ["u1"]}, HALF_LIFE_COUNT, later)["user_activity"]

    assert list(ours.states) == [FeatureState.STALE]
    assert not ours.rows.counts.any() and np.isnan(ours.rows.as_of_s).all()


def test_foreign_bytes_under_our_keys_are_refused_not_served(settings, store, database, projector, reader):
    record(database, *some_events())
    projector.run()
    with redis.Redis.from_url(settings.redis_address) as client:
        for key, fields in redis_content(settings).items():
            for name in fields:
                client.hset(key, name, b"\xff\xff\xff not a value")

    with pytest.raises(FeaturesUnavailable):
        reader.read({load_schema(store).view("user_activity"): ["u1"]}, HALF_LIFE_COUNT, datetime.now(UTC))


def test_a_dead_redis_costs_milliseconds_through_our_store_class(settings, store, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{unused.getsockname()[1]}/0")
        started = time.perf_counter()

        with pytest.raises(redis.ConnectionError):
            store.get_online_features(features=["user_activity:as_of_s"], entity_rows=[{"user_id": "u1"}])

    # Feast's own client retries for two seconds and more.
    assert time.perf_counter() - started < 1.0


def test_reads_go_on_while_a_view_is_materializing(settings, store, database, projector):
    from feast.feature_view import FeatureViewState

    record(database, *some_events())
    projector.run()
    view = store.get_feature_view("user_activity")
    view.state = FeatureViewState.MATERIALIZING
    store.registry.apply_feature_view(view, store.project)

    read = open_feature_store(settings).get_online_features(
        features=["user_activity:as_of_s"], entity_rows=[{"user_id": "u1"}]
    )

    assert read.to_dict()["as_of_s"][0] is not None


ENTITY_SQL = """
    SELECT DISTINCT user_id, proposition_id, context_key,
           user_id || chr(31) || category AS user_category_key,
           context_key || chr(31) || proposition_id AS context_proposition_key,
           moment AS event_timestamp
    FROM events CROSS JOIN (VALUES (now() - interval '2 days'), (now() - interval '1 microsecond')) AS m(moment)
"""


def test_our_point_in_time_join_gives_what_feasts_own_gives(settings, store, database, projector):
    record(database, *some_events())
    projector.run()
    query(
        settings,
        "INSERT INTO user_profile (user_id, age_years, event_timestamp)"
        " VALUES ('u1', 30, now() - interval '3 days'), ('u1', 31, now() - interval '1 hour'),"
        " ('u2', 50, now() - interval '4000 days')",
    )
    service = store.get_feature_service("ranker_v1")

    def joined(offline_store) -> pd.DataFrame:
        store.provider._offline_store = offline_store
        frame = store.get_historical_features(
            entity_df=ENTITY_SQL, features=service, full_feature_names=True
        ).to_df()
        order = ["user_id", "proposition_id", "event_timestamp"]
        frame = frame.sort_values(order).reset_index(drop=True)
        return frame[sorted(frame.columns)].astype(str)

    ours = joined(store.provider.offline_store)
    feasts = joined(PostgreSQLOfflineStore())

    feasts = feasts[ours.columns]
    ours["event_timestamp"] = feasts["event_timestamp"] = ""  # each query has its own now()
    pd.testing.assert_frame_equal(ours, feasts)
    assert "31.0" in set(ours["user_profile__age_years"])


def test_the_join_takes_rows_before_the_slate_and_none_at_its_own_instant(
    settings, store, database, projector
):
    earlier = event("e0", "click", at=YESTERDAY - timedelta(minutes=1), request_id="r0")
    record(database, earlier)
    record(database, *some_events())
    projector.run()
    # As imports do: what happened was received when it happened.
    query(settings, "UPDATE events SET received_at = occurred_at")
    projector.rebuild()

    dataset = build_dataset(store, load_schema(store), HALF_LIFE_COUNT, LabelOptions(), database)

    impressions, clicks = 0, 1
    of_u1 = dataset.rows["user_activity"].counts[0]
    assert len(dataset) == 2
    assert of_u1[clicks, -1] == pytest.approx(1.0, rel=1e-3) and of_u1[impressions, -1] == 0.0
    assert not dataset.rows["user_activity"].counts[1].any()


def test_importing_feast_leaves_our_metrics_folder_alone(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    program = "import os, feast; print(os.environ['PROMETHEUS_MULTIPROC_DIR'])"

    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == str(tmp_path)


@pytest.mark.parametrize("arguments", [["plan"], ["feature-views", "list"], ["entities", "list"]])
def test_the_stock_command_works_inside_the_feature_repo(settings, arguments):
    repo = Path(settings.feature_repo)

    done = subprocess.run(
        [Path(sys.executable).with_name("feast"), *arguments], cwd=repo, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "No changes" in done.stdout or "user" in done.stdout


def test_the_stock_ui_serves_the_registry(settings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    feast = Path(sys.executable).with_name("feast")
    command = [feast, "ui", "--host", "127.0.0.1", "--port", str(port)]
    ui = subprocess.Popen(
        command, cwd=settings.feature_repo, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert "<html" in page.read().decode()
                return
            except URLError:
                assert ui.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        ui.kill()
        ui.wait()


def test_a_push_source_takes_rows_as_stock_feast_sends_them(store):
    frame = pd.DataFrame(
        {
            "user_id": ["pushed"],
            **{name: [[1.0, 2.0, 3.0, 4.0]] for name in COUNTER_FIELDS},
            "as_of_s": [YESTERDAY.timestamp()],
            "event_timestamp": [YESTERDAY],
            "created_timestamp": [YESTERDAY],
        }
    )

    store.push("user_activity_push", frame)

    read = store.get_online_features(
        features=["user_activity:clicks"], entity_rows=[{"user_id": "pushed"}]
    ).to_dict()
    assert read["clicks"] == [[1.0, 2.0, 3.0, 4.0]]


def test_no_address_and_no_password_stands_in_the_feature_repo(settings):
    text = (settings.feature_repo / "feature_store.yaml").read_text()

    assert "${" not in text and "password:" not in text and "@" not in text
