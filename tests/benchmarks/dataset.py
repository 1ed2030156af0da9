"""The data set of training, joined in PostgreSQL and from Parquet files, side by side on the same rows."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pyarrow as pa

from app.adapters.database import batch_database
from app.adapters.embedded import EmbeddedServers
from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.parquet_export import TABLES, ExportTable
from app.bootstrap.stores import migrate_database
from app.features.fold import COUNTER_VIEWS, KEY_COLUMNS
from app.features.history import HISTORY_VIEW
from app.features.schema import COUNTER_FIELDS
from app.settings import Settings, load_settings
from training.dataset import Dataset
from training.dataset_folder import is_same
from training.duckdb_join import build_dataset_from_parquet
from training.joins import build_dataset
from training.labels import LabelOptions

SLATE_SIZE, PROPOSITIONS, CONTEXTS, CATEGORIES, HISTORY_LENGTH = 10, 5_000, 20, 20, 30
DAYS, SEED = 60, 7

# Slates of ten over sixty days; a tenth of what is shown is clicked half a minute later. Whoever is shown something, and
# what is shown, has a feature row from then on: its numbers mean nothing.
_AT = f"timestamptz '2026-01-01' + to_microseconds((slate * {DAYS * 86_400_000_000}) // {{slates}})"
_EVENTS = f"""
    CREATE TABLE shown AS
    SELECT i, i // {SLATE_SIZE} AS slate, i % {SLATE_SIZE} + 1 AS position,
           'u' || (hash(i // {SLATE_SIZE}, {SEED}) % {{users}}) AS user_id,
           'p' || ((hash(i // {SLATE_SIZE}, {SEED + 1}) + (i % {SLATE_SIZE}) * 1_237) % {PROPOSITIONS}) AS proposition_id,
           'page=' || (hash(i // {SLATE_SIZE}, {SEED + 2}) % {CONTEXTS}) AS context_key,
           hash(i, {SEED + 3}) % 10 = 0 AS is_clicked
    FROM range({{rows}}) AS rows(i);
    CREATE TABLE happened AS
    SELECT *, 'impression' AS event_type, {_AT} AS moment FROM shown
    UNION ALL SELECT *, 'click', {_AT} + interval '30 seconds' FROM shown WHERE is_clicked;
    INSERT INTO events BY NAME
    SELECT row_number() OVER (ORDER BY moment, event_type, i) AS seq, event_type || i AS event_id, event_type, user_id,
           proposition_id, 'c' || (substr(proposition_id, 2)::integer % {CATEGORIES}) AS category, '{{{{}}}}' AS context,
           context_key, 'r' || slate AS request_id, position::integer AS position, moment AS occurred_at, moment AS received_at
    FROM happened;
    INSERT INTO decisions BY NAME
    SELECT request_id, received_at - interval '100 milliseconds' AS decided_at, user_id, '{{{{}}}}' AS context, context_key,
           'model' AS strategy, 0 AS degradation_level, '{{{{}}}}' AS feature_states, {PROPOSITIONS} AS candidate_count,
           '[]' AS slate, false AS is_cached
    FROM events WHERE event_type = 'impression' AND position = 1;
    INSERT INTO proposition_catalog BY NAME
    SELECT 'p' || i AS proposition_id, 'c' || (i % {CATEGORIES}) AS category, i::double AS value, 0.0 AS created_at_s,
           ['genre=' || (i % 7), 'tag' || (i % 31)] AS traits, ['length'] AS number_names, [i / 3.0] AS number_values,
           timestamptz '2025-12-31' AS event_timestamp, timestamptz '2025-12-31' AS created_timestamp
    FROM range({PROPOSITIONS}) AS rows(i);
    INSERT INTO user_profile BY NAME
    SELECT 'u' || i AS user_id, 20.0 + i % 60 AS age_years, 'f' AS gender, 's' || (i % 5) AS segment,
           timestamptz '2025-12-31' AS event_timestamp, timestamptz '2025-12-31' AS created_timestamp
    FROM range({{users}}) AS rows(i);
    INSERT INTO {HISTORY_VIEW} BY NAME
    SELECT DISTINCT ON (user_id, received_at) user_id,
           list_transform(range({HISTORY_LENGTH}), lambda n: 'p' || ((hash(seq) + n * 1_237) % {PROPOSITIONS})) AS propositions,
           list_transform(range({HISTORY_LENGTH}), lambda n: 1.0 + n % 3) AS impressions,
           list_transform(range({HISTORY_LENGTH}), lambda n: (n % 2)::double) AS clicks,
           received_at AS event_timestamp, received_at AS created_timestamp
    FROM events"""
_COUNTERS = """
    INSERT INTO {view} BY NAME
    SELECT DISTINCT ON ({key}, received_at) {expression} AS {key}, {counters},
           epoch_us(received_at) / 1e6 AS as_of_s, received_at AS event_timestamp, received_at AS created_timestamp
    FROM events"""
_KEYS = {
    "user_category_key": "user_id || chr(31) || category",
    "context_proposition_key": "context_key || chr(31) || proposition_id",
}


def measure(settings: Settings, rows: int = 1_000_000) -> dict[str, Any]:
    """Seconds that each way takes for a data set of `rows` impressions, and how many times as fast Parquet is.

    Replaces events, decisions and features in the database of `settings`, whose feature repo must be applied.
    `is_same` compares every array of both data sets.
    """
    with tempfile.TemporaryDirectory(prefix="propositions-bench-") as folder:
        generate(Path(folder), rows)
        load(settings, Path(folder))
        store = open_feature_store(settings)
        schema, half_lives, options = load_schema(store), len(settings.half_lives_s), LabelOptions()
        postgres_s, joined = _timed(
            lambda: build_dataset(store, schema, half_lives, options, batch_database(settings))
        )
        parquet_s, read = _timed(
            lambda: build_dataset_from_parquet(Path(folder), schema, half_lives, options)
        )
    return {
        "postgres_s": round(postgres_s, 2),
        "parquet_s": round(parquet_s, 2),
        "dataset_vs_postgres": round(postgres_s / parquet_s, 2),
        "is_same": is_same(joined, read),
        "rows": len(read),
        "slates": read.slate_count,
    }


def generate(folder: Path, rows: int) -> None:
    """Writes tables as an export does: a folder per table, and in it one per day."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table in TABLES:
            connection.register("none", table.schema.empty_table())
            connection.execute(f"CREATE TABLE {table.name} AS SELECT * FROM none")
        slates = -(-rows // SLATE_SIZE)
        connection.execute(_EVENTS.format(rows=rows, slates=slates, users=max(slates // 10, 1)))
        for entity, view in COUNTER_VIEWS.items():
            key = KEY_COLUMNS[entity]
            counters = ", ".join(
                f"list_transform(range(4), lambda n: (hash(seq, {place}) % 1_000) / 7.0 + n) AS {name}"
                for place, name in enumerate(COUNTER_FIELDS)
            )
            expression = _KEYS.get(key, key)
            connection.execute(_COUNTERS.format(view=view, key=key, expression=expression, counters=counters))
        for table in TABLES:
            connection.execute(
                f"COPY (SELECT *, {table.time_column}::date AS date FROM {table.name}) TO '{folder / table.name}'"
                " (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (date))"
            )


def load(settings: Settings, folder: Path) -> None:
    """The same rows into PostgreSQL."""
    connection = psycopg2.connect(settings.postgres_url)
    try:
        with connection, connection.cursor() as cursor:
            for table in TABLES:
                cursor.execute(f"TRUNCATE {table.name}")
                if not any((folder / table.name).glob("date=*")):
                    continue
                columns = ", ".join(table.schema.names)
                path = folder / f"{table.name}.csv"
                _write_csv(table, folder, path)
                with path.open("rb") as file:
                    cursor.copy_expert(f"COPY {table.name} ({columns}) FROM STDIN (FORMAT csv)", file)
                path.unlink()
                cursor.execute(f"ANALYZE {table.name}")
    finally:
        connection.close()


def _write_csv(table: ExportTable, folder: Path, path: Path) -> None:
    columns = (
        f"'{{' || array_to_string({field.name}, ',') || '}}'" if pa.types.is_list(field.type) else field.name
        for field in table.schema
    )
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            f"COPY (SELECT {', '.join(columns)} FROM read_parquet('{folder / table.name}/**/*.parquet'))"
            f" TO '{path}' (FORMAT csv, HEADER false)"
        )


def _timed(build: Callable[[], Dataset]) -> tuple[float, Dataset]:
    started = time.perf_counter()
    dataset = build()
    return time.perf_counter() - started, dataset


@contextmanager
def _own_servers() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="propositions-bench-") as folder:
        servers = EmbeddedServers(Path(folder) / "servers")
        with servers.running():
            os.environ.update({name.upper(): url for name, url in servers.addresses().items()})
            os.environ["DATA_DIR"] = folder
            settings = load_settings()
            migrate_database(settings)
            subprocess.run(
                [Path(sys.executable).with_name("feast"), "apply"],
                cwd=settings.feature_repo,
                check=True,
                capture_output=True,
            )
            yield settings


if __name__ == "__main__":
    with _own_servers() as settings:
        print(json.dumps(measure(settings, *map(int, sys.argv[1:])), indent=2))
