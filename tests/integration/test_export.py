"""Exports: what DuckDB reads is what PostgreSQL holds."""

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import duckdb
import pyarrow.parquet as pq
import pytest

from app.adapters import parquet_export
from app.adapters.database import batch_database
from app.adapters.parquet_export import TABLES, ParquetExport
from app.bootstrap.life import build_forget_user
from app.bootstrap.projector import build_projector
from app.bootstrap.stores import open_import
from app.domain.errors import ConfigurationError
from app.domain.types import User
from tests.builders import NOON, count, event, proposition, query

NOW = datetime.now(UTC)
FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2100, 1, 1)


@pytest.fixture
def history(settings):
    """Three days of events with all that texts, numbers and gaps can be."""
    with open_import(settings) as loader:
        loader.add(proposition("p1", category="spört \u2603"))
        loader.add(User("u1", segment='a"b\\c\n\u00fc'))
        loader.add(User("u2", age_years=30.5))
        for n in range(30):
            at = NOON + timedelta(hours=2 * n, microseconds=n)
            user_id = ("u1", "u2", None)[n % 3]
            fields = {"position": n + 1, "value": n / 3, "request_id": f"r{n // 5}"} if n % 2 else {}
            context = {"page": 'hö"me', "note": "a\tb"}
            loader.add(
                event(
                    f"e{n}",
                    "click" if n % 2 else "impression",
                    "p1",
                    at,
                    user_id=user_id,
                    context=context,
                    **fields,
                )
            )
        loader.finish(False)
    query(
        settings,
        "INSERT INTO decisions SELECT 'r' || n, %s + n * interval '1 hour', nullif('u' || n, 'u0'), '{\"a\": \"\u00fc\"}',"
        " 'key', 'rules', NULL, 2, '{}', 7, '[{\"rank\": 1}]', n %% 2 = 0 FROM generate_series(0, 40) n",
        (NOON,),
    )
    build_projector(settings)[0].run()


@pytest.fixture
def run(settings, tmp_path):
    """A function that exports and tells what was done, by table."""

    def run(first: date = FIRST_DAY, last: date = LAST_DAY, now: datetime = NOW):
        export = ParquetExport(batch_database(settings), tmp_path / "out")
        return {done.table: done for done in export.run(first, last, now)}

    return run


def read(folder, table: str) -> list[tuple]:
    """All rows of a table as DuckDB sees them, without the column of the folders' names."""
    spec = next(t for t in TABLES if t.name == table)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(
            f"SELECT {', '.join(spec.schema.names)} FROM"
            f" read_parquet('{folder}/{table}/**/*.parquet', hive_partitioning=true)"
            f" ORDER BY {', '.join(spec.identity)}"
        ).fetchall()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_duckdb_reads_every_row_as_postgres_holds_it(settings, history, run, tmp_path, table):
    run()

    columns = [f"{f.name}::text" if f.metadata else f.name for f in table.schema]
    identity = [
        f'{name} COLLATE "C"' if table.schema.field(name).type == "string" else name
        for name in table.identity
    ]
    stored = query(settings, f"SELECT {', '.join(columns)} FROM {table.name} ORDER BY {', '.join(identity)}")
    assert stored
    assert read(tmp_path / "out", table.name) == stored


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_column_of_a_table_is_exported(settings, table):
    rows = query(
        settings,
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = %s",
        (table.name,),
    )

    assert {name for (name,) in rows} == set(table.schema.names)


def test_the_days_are_folders_that_duckdb_knows_as_dates(history, run, tmp_path):
    run()

    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT date, count(*), count(*) FILTER (received_at::date = date) FROM"
            f" read_parquet('{tmp_path}/out/events/**/*.parquet', hive_partitioning=true) GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert [(day.isoformat(), n) for day, n, _ in rows] == [
        ("2026-05-15", 6),
        ("2026-05-16", 12),
        ("2026-05-17", 12),
    ]
    assert all(n == in_day for _, n, in_day in rows)


def test_json_columns_are_json_and_files_are_compressed(history, run, tmp_path):
    run()

    file = pq.ParquetFile(tmp_path / "out/events/date=2026-05-15/part-0.parquet")
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert json.loads(file.read()["context"][0].as_py())["page"] == 'hö"me'


def test_days_that_did_not_change_are_left_alone(history, run, tmp_path):
    first = run()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}

    again = run()

    assert first["events"].written == 3 and first["events"].rows == 30
    assert all((done.written, done.removed) == (0, 0) for done in again.values())
    assert again["events"].unchanged == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == files


def test_history_that_is_imported_later_appears_in_its_old_days(settings, history, run, tmp_path):
    run()
    with open_import(settings) as loader:
        loader.add(event("late", "click", "p1", NOON + timedelta(minutes=1)))
        loader.finish(False)

    done = run()["events"]

    assert (done.written, done.unchanged, done.rows) == (1, 2, 7)
    assert len(read(tmp_path / "out", "events")) == count(settings, "events") == 31


def test_another_row_in_the_place_of_one_is_a_change(settings, history, run):
    run()
    query(settings, "UPDATE events SET seq = 1000000 WHERE event_id = 'e0'")

    assert run()["events"].written == 1


def test_who_was_forgotten_is_gone_from_the_files_after_the_next_export(settings, history, run, tmp_path):
    query(
        settings,
        "DELETE FROM events WHERE received_at::date = '2026-05-17' AND user_id IS DISTINCT FROM 'u1'",
    )
    run()
    build_forget_user(settings)("u1")

    done = run()["events"]

    assert (done.written, done.removed) == (2, 1)
    assert not list((tmp_path / "out/events").glob("date=2026-05-17"))
    for table in TABLES:
        if table.user_column:
            rows = read(tmp_path / "out", table.name)
            position = table.schema.get_field_index(table.user_column)
            assert not any((row[position] or "").split("\x1f")[0] == "u1" for row in rows)


def test_days_that_postgres_keeps_no_longer_stay_and_who_was_forgotten_goes_from_them_too(
    settings, history, run, tmp_path
):
    run(now=NOON)
    query(settings, "UPDATE log_heads SET kept_since = '2026-05-17T00:00:00Z' WHERE name = 'events'")
    query(settings, "DELETE FROM events WHERE received_at < '2026-05-17T00:00:00Z'")
    assert run()["events"].unchanged == 3

    build_forget_user(settings)("u1")
    done = run()["events"]

    rows = read(tmp_path / "out", "events")
    assert done.written == 3 and len(rows) == 20
    assert {row[3] for row in rows} == {"u2", None}
    assert run()["events"].unchanged == 3


def test_only_the_days_that_were_asked_for_are_touched(history, run, tmp_path):
    run(date(2026, 5, 16), date(2026, 5, 16))

    assert [path.name for path in (tmp_path / "out/events").iterdir()] == ["date=2026-05-16"]
    run(date(2026, 5, 15), date(2026, 5, 15))
    assert len(list((tmp_path / "out/events").iterdir())) == 2


def test_what_a_killed_export_left_is_no_data_and_goes(history, run, tmp_path):
    folder = tmp_path / "out/events/date=2026-05-15"
    folder.mkdir(parents=True)
    (folder / ".part-0.parquet.123").write_bytes(b"PAR1 half")
    (tmp_path / "out/events/date=2026-05-16").mkdir()
    (tmp_path / "out/events/date=2026-05-16/part-0.parquet").write_bytes(b"damaged")

    assert run()["events"].written == 3

    assert [path.name for path in folder.iterdir()] == ["part-0.parquet"]
    assert len(read(tmp_path / "out", "events")) == 30


def test_two_exports_do_not_write_to_one_folder(settings, history, tmp_path):
    running = ParquetExport(batch_database(settings), tmp_path).run(FIRST_DAY, LAST_DAY, NOW)
    next(running)

    with pytest.raises(ConfigurationError, match="another export"):
        next(ParquetExport(batch_database(settings), tmp_path).run(FIRST_DAY, LAST_DAY, NOW))


def test_rows_go_through_memory_a_part_at_a_time(history, run, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_export, "_BATCH_ROWS", 5)

    run()

    file = pq.ParquetFile(tmp_path / "out/events/date=2026-05-16/part-0.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [5, 5, 2]


def test_the_command_tells_what_it_wrote_and_takes_days(history, tmp_path):
    command = [sys.executable, "-m", "app", "export", str(tmp_path / "out"), "--from", "2026-05-16"]

    done = subprocess.run([*command, "--to", "2026-05-16"], capture_output=True, text=True, env=os.environ)

    assert done.returncode == 0
    assert "events: 1 days written (12 rows), 0 unchanged, 0 removed" in done.stdout
    assert len(read(tmp_path / "out", "events")) == 12
