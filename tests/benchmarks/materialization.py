"""Stock Feast and this project's engine and store, materializing the same rows side by side."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg2
import redis
from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Array, Bool, FeastType, Float64, Int64, String

from app.adapters.embedded import EmbeddedServers
from app.settings import Settings, load_settings

VIEW = "bench_materialization"
START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
WARM_UP_ROWS = 1_000
REPEATS = 2

# Feature types by turns, with the SQL of their values.
KINDS: tuple[tuple[FeastType, str], ...] = (
    (Float64, "random() * 1000"),
    (Int64, "(random() * 100000)::bigint"),
    (String, "'category-' || mod(i, 50)"),
    (Float64, "CASE WHEN mod(i, 10) > 0 THEN random() END"),
    (Bool, "mod(i, 3) = 0"),
    (Array(Float64), "ARRAY[random(), random(), random(), random()]"),
    (Float64, "-random()"),
    (String, "md5(i::text)"),
    (Int64, "i::bigint * 1000000007"),
    (Float64, "i::double precision"),
)


def measure(settings: Settings, rows: int = 200_000, features: int = 10) -> dict[str, Any]:
    """Seconds of `FeatureStore.materialize` into an empty Redis, the best of two by turns, after warming up.

    Empties the Redis of `settings`. `byte_identical` compares all of its keys, fields and values.
    """
    _fill_table(settings, rows, features)
    stores = {"stock": stock_store(settings), "ours": our_store(settings)}
    digests: dict[str, str] = {}
    best = dict.fromkeys(stores, float("inf"))
    for store in stores.values():
        store.apply(_definitions(features))
        _seconds(settings, store, START + timedelta(seconds=WARM_UP_ROWS))
    for _ in range(REPEATS):
        for name, store in stores.items():
            best[name] = min(best[name], _seconds(settings, store, END))
            digests[name] = content_digest(settings)
    return {
        "stock_s": round(best["stock"], 3),
        "ours_s": round(best["ours"], 3),
        "materialize_vs_stock": round(best["stock"] / best["ours"], 2),
        "byte_identical": digests["stock"] == digests["ours"],
        "rows": rows,
        "features": features,
    }


def stock_store(settings: Settings, **online: Any) -> FeatureStore:
    """Feast's own stores and engine on the servers of `settings`; `online` adds options of the Redis store."""
    database, cache = urlsplit(settings.postgres_url), urlsplit(settings.redis_address)
    return _store(
        settings,
        {
            "type": "postgres",
            "host": database.hostname,
            "port": database.port,
            "database": database.path.lstrip("/"),
            "user": unquote(database.username),
            "password": unquote(database.password),
            "db_schema": "feast",
            "sslmode": "disable",
        },
        {
            "type": "redis",
            "connection_string": f"{cache.hostname}:{cache.port},password={unquote(cache.password)}",
            **online,
        },
        {"type": "local"},
    )


def our_store(settings: Settings, **online: Any) -> FeatureStore:
    """This project's stores and engine; their addresses come from the environment."""
    return _store(
        settings,
        {"type": "app.adapters.feast_stores.PropositionsPostgresOfflineStore"},
        {"type": "app.adapters.feast_stores.PropositionsRedisOnlineStore", **online},
        {"type": "app.adapters.feast_engine.PropositionsComputeEngine"},
    )


def _store(settings: Settings, offline: dict, online: dict, engine: dict) -> FeatureStore:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    registry = Path(tempfile.mkdtemp(dir=settings.data_dir)) / "registry.db"
    config = {
        "project": "propositions",
        "provider": "local",
        "registry": {
            "registry_type": "file",
            "path": str(registry),
            "enable_online_feature_view_versioning": True,
        },
        "offline_store": offline,
        "online_store": online,
        "batch_engine": engine,
        "entity_key_serialization_version": 3,
        "materialization": {"pull_latest_features": True, "online_write_batch_size": 10_000},
    }
    return FeatureStore(config=RepoConfig(**config))


def content_digest(settings: Settings) -> str:
    """A hash over all keys, fields and values of Redis in their order."""
    digest = hashlib.sha256()
    with redis.Redis.from_url(settings.redis_address) as client:
        keys = sorted(client.scan_iter(count=10_000))
        for start in range(0, len(keys), 1_000):
            part = keys[start : start + 1_000]
            pipeline = client.pipeline(transaction=False)
            for key in part:
                pipeline.hgetall(key)
            for key, fields in zip(part, pipeline.execute(), strict=True):
                digest.update(repr((key, sorted(fields.items()))).encode())
    return digest.hexdigest()


def _definitions(features: int) -> list[Entity | FeatureView]:
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = PostgreSQLSource(
        name=VIEW, table=VIEW, timestamp_field="event_timestamp", created_timestamp_column="created_timestamp"
    )
    schema = [Field(name=f"f{i}", dtype=KINDS[i % len(KINDS)][0]) for i in range(features)]
    view = FeatureView(name=VIEW, entities=[user], ttl=timedelta(days=3650), schema=schema, source=source)
    return [user, view]


def _fill_table(settings: Settings, rows: int, features: int) -> None:
    columns = ", ".join(f"{KINDS[i % len(KINDS)][1]} AS f{i}" for i in range(features))
    connection = psycopg2.connect(settings.postgres_url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA IF NOT EXISTS feast")
            cursor.execute(f"DROP TABLE IF EXISTS feast.{VIEW}")
            cursor.execute("SELECT setseed(0.5)")
            cursor.execute(
                f"CREATE TABLE feast.{VIEW} AS SELECT 'user-' || i AS user_id, {columns},"
                " timestamptz '2026-01-01' + i * interval '1.000001 seconds' AS event_timestamp,"
                f" timestamptz '2026-06-01' AS created_timestamp FROM generate_series(1, {rows}) AS i"
            )
            cursor.execute(f"ANALYZE feast.{VIEW}")
    finally:
        connection.close()


def _seconds(settings: Settings, store: FeatureStore, end: datetime) -> float:
    with redis.Redis.from_url(settings.redis_address) as client:
        client.flushdb()
    started = time.perf_counter()
    with redirect_stdout(StringIO()):
        store.materialize(START, end, [VIEW])
    return time.perf_counter() - started


@contextmanager
def _own_servers() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="propositions-bench-") as folder:
        servers = EmbeddedServers(Path(folder) / "servers")
        with servers.running():
            os.environ.update({name.upper(): url for name, url in servers.addresses().items()})
            os.environ["DATA_DIR"] = folder
            yield load_settings()


if __name__ == "__main__":
    with _own_servers() as settings:
        print(json.dumps(measure(settings), indent=2))
