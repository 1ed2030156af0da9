"""A disk without room: nothing is acknowledged that is not stored, slates go on, and room again is enough."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.adapters.snapshots import SnapshotFolder
from app.adapters.spool import SpoolFolder
from app.api.factory import create_app
from app.bootstrap.keeper import take_snapshot
from app.bootstrap.stores import open_import
from app.bootstrap.web import build_api
from app.domain.errors import StoreUnavailable
from app.settings import Settings, load_settings
from tests.builders import proposition

DISK = "4m"


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only who may mount can make a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not a byte fits any more."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65_536, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    yield
    ballast.unlink()


@pytest.fixture
def on_disk(settings, disk, monkeypatch) -> Settings:
    monkeypatch.setenv("DATA_DIR", str(disk / "data"))
    monkeypatch.setenv("DEVELOPMENT_MODE", "true")
    (disk / "data").mkdir()
    return load_settings()


def catalog(settings: Settings, *names: str) -> None:
    with open_import(settings) as loader:
        for name in names:
            loader.add(proposition(name))
        loader.finish(False)


def click(client, event_id: str):
    event = {"event_id": event_id, "event_type": "click", "user_id": "u", "proposition_id": "a"}
    return client.post("/log_event", data=json.dumps(event), content_type="application/json")


def test_an_event_that_fits_nowhere_is_not_acknowledged_and_may_be_sent_again(on_disk, disk, postgres):
    services, _, registry = build_api(on_disk)
    client = create_app(on_disk, services, registry).test_client()
    postgres.kill()

    with filled(disk):
        refused = [click(client, f"e{n}") for n in range(5)]
    kept = click(client, "e0")

    assert {answer.status_code for answer in refused} == {503}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert kept.status_code == 202 and kept.get_json()["events"][0]["stored_in"] == "spool"
    spool = SpoolFolder(on_disk.spool_dir, 1 << 30)
    assert [event.event_id for event in spool.oldest().events] == ["e0"]


def test_slates_and_events_do_without_the_disk_while_their_stores_are_up(on_disk, disk):
    catalog(on_disk, "a", "b")
    take_snapshot(on_disk)
    services, _, registry = build_api(on_disk)
    client = create_app(on_disk, services, registry).test_client()

    with filled(disk):
        slate = client.post("/suggest", data="{}", content_type="application/json")
        event = click(client, "e1")

    assert [p["proposition_id"] for p in slate.get_json()["propositions"]] == ["a", "b"]
    assert event.get_json()["events"][0]["stored_in"] == "postgres"


def test_news_that_cannot_be_written_leave_the_last_snapshot_in_service(on_disk, disk):
    catalog(on_disk, "a")
    take_snapshot(on_disk)
    catalog(on_disk, *(f"p{n}" for n in range(2_000)))

    with filled(disk), pytest.raises(StoreUnavailable):
        take_snapshot(on_disk)

    assert len(SnapshotFolder(on_disk.snapshot_dir).open(on_disk.half_lives_s).catalog) == 1
    assert take_snapshot(on_disk) == 2_001
