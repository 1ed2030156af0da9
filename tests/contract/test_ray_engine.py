"""The engine on Ray leaves in Redis what the engine without it leaves there, and fails where that fails."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import pytest
import redis
import yaml
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource

from app.adapters.feast_ray import _share
from app.adapters.feature_store import open_feature_store
from app.settings import Settings
from tests.builders import query
from tests.contract.test_materialization import empty_redis, redis_content

REPO = Path(__file__).parents[2] / "feature_repo"
START, END = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
FEAST = Path(sys.executable).with_name("feast")
ENTITIES = 300
# Keys that SQL, Redis or a hash might take for something else.
KEYS = """CASE i WHEN 1 THEN '' WHEN 2 THEN 'it''s' WHEN 3 THEN '100' || chr(37) || 's' WHEN 4 THEN 'back\\slash' WHEN 5 THEN 'grün'
    WHEN 6 THEN 'a' || chr(31) || 'b' ELSE 'k' || i END"""
COUNTERS = "ARRAY[i, i / 7.0, 0, random()], ARRAY[0, 0, i, 1], '{0,0,0,0}', '{}', i + 0.25"
# With one value that columns do not hold, so that this view is materialized Feast's own way, where the command runs.
HISTORY = "ARRAY['p' || i, 'p1'], ARRAY[i, 2.0], ARRAY[CASE i WHEN 11 THEN 'NaN' ELSE 0.5 END, i]"
VALUES = {
    "user_profile": (
        "user_id",
        "age_years, gender, segment",
        "NULLIF(i, 9), NULLIF('g' || mod(i, 3), 'g0'), repeat('s', i)",
    ),
    "proposition_catalog": (
        "proposition_id",
        "category, value, created_at_s, traits, number_names, number_values",
        "'c' || mod(i, 5), random(), 1.7e9 + i, ARRAY['t', 'ü' || i], '{pages}', ARRAY[i * 1e-300]",
    ),
    "user_history": ("user_id", "propositions, impressions, clicks", HISTORY),
    "user_recent": (
        "user_id",
        "propositions, counted_at_s",
        "CASE WHEN mod(i, 2) = 0 THEN ARRAY['p' || i] ELSE '{}' END, '{}'",
    ),
    **{
        f"{name}": (f"{key}", "impressions, clicks, conversions, dismissals, as_of_s", COUNTERS)
        for name, key in (
            ("context_activity", "context_key"),
            ("user_activity", "user_id"),
            ("proposition_performance", "proposition_id"),
            ("user_category_affinity", "user_category_key"),
            ("context_proposition_performance", "context_proposition_key"),
        )
    },
}


@pytest.fixture
def filled(settings) -> Settings:
    """Two rows of each entity in every view's table; some as old as no view's time to live allows."""
    for table, (key, columns, values) in VALUES.items():
        query(
            settings,
            f"INSERT INTO {table} ({key}, {columns}, event_timestamp)"
            f" SELECT {KEYS}, {values}, '2026-05-01 12:00:00.123456'::timestamptz - i * day * interval '1 day'"
            f" FROM generate_series(1, {ENTITIES}) AS i, generate_series(2, 5, 3) AS day",
        )
    return settings


@pytest.fixture
def materialize(monkeypatch) -> Iterator[Callable[[Settings], subprocess.CompletedProcess]]:
    """Runs the stock command with the engine on Ray, on two processors of this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Ray's sockets lie there, and the paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)

        def run(settings: Settings) -> subprocess.CompletedProcess:
            command = [
                FEAST,
                "-f",
                "feature_store_ray.yaml",
                "materialize",
                START.isoformat(),
                END.isoformat(),
            ]
            return subprocess.run(
                command, cwd=settings.feature_repo, capture_output=True, text=True, timeout=300
            )

        yield run


def tasks_of_workers() -> int:
    """How many shares Ray's workers copied, by what it writes before the output of each task."""
    logs = Path(os.environ["RAY_TMPDIR"]).glob("ray/session_2*/logs/worker-*.out")
    return sum(path.read_text().count(":task_name:_copy_share") for path in logs)


def test_workers_write_the_rows_that_the_engine_without_ray_writes(filled, materialize):
    open_feature_store(filled).materialize(START, END)
    without_ray = redis_content(filled)
    empty_redis(filled)

    done = materialize(filled)

    assert done.returncode == 0, done.stderr
    assert redis_content(filled) == without_ray
    assert len(without_ray) > ENTITIES
    assert tasks_of_workers() == len(VALUES) * os.cpu_count()


@contextmanager
def refusing_writes(settings: Settings) -> Iterator[None]:
    with redis.Redis.from_url(settings.redis_address) as client:
        client.config_set("min-replicas-to-write", 1)  # and there is none
        try:
            yield
        finally:
            client.config_set("min-replicas-to-write", 0)


def test_a_row_that_a_worker_cannot_write_fails_the_command(filled, materialize):
    with refusing_writes(filled):
        done = materialize(filled)

    assert done.returncode != 0 and "NOREPLICAS" in done.stderr


def test_shares_hold_every_row_once_and_all_rows_of_an_entity_together(settings):
    query(settings, "CREATE TABLE feast.shared (a text, b bigint, event_timestamp timestamptz)")
    query(
        settings,
        f"INSERT INTO feast.shared SELECT NULLIF({KEYS}, 'k7'), mod(i, 50), now()"
        f" FROM generate_series(1, {ENTITIES}) AS i, generate_series(1, 3)",
    )
    source = PostgreSQLSource(name="shared", table="feast.shared", timestamp_field="event_timestamp")

    shares = [
        query(settings, f"SELECT a, b FROM {_share(source, ['a', 'b'], n, 7).get_table_query_string()} AS s")
        for n in range(7)
    ]

    assert Counter(chain.from_iterable(shares)) == Counter(query(settings, "SELECT a, b FROM feast.shared"))
    assert sum(len(set(share)) for share in shares) == ENTITIES
    assert min(map(len, shares)) > 0.5 * 3 * ENTITIES / 7


def test_the_feature_repo_with_ray_is_the_other_one_but_for_the_engine():
    with_ray, without = (
        yaml.safe_load((REPO / f"{name}.yaml").read_text()) for name in ("feature_store_ray", "feature_store")
    )

    assert with_ray.pop("batch_engine") != without.pop("batch_engine")
    assert with_ray == without
