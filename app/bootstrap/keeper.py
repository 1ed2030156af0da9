"""The process that keeps the snapshot, the feature schema and the API keys on disk current."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from app.adapters.database import batch_database, wait_cooperatively
from app.adapters.key_file import KeyFile, KeyKeeper
from app.adapters.schema_file import RegistrySchema, SchemaFile
from app.adapters.snapshots import KeeperReport, SnapshotFolder, SnapshotSource
from app.bootstrap.stores import key_store
from app.domain.errors import ConfigurationError, StoreUnavailable
from app.serving.keeper import SnapshotKeeper, pause_s
from app.serving.refresh import Background
from app.settings import Settings

log = logging.getLogger(__name__)

SCHEMA_INTERVAL_S = 5.0
# Changed API keys are looked for as often as workers look at their file: after two of these all have seen them.
KEYS_INTERVAL_S = 1.0
# Some of a list is not eligible for a request, or on other lists, too.
LIST_LENGTH_PER_BUDGET = 2
# A PostgreSQL that accepts and then never replies is given up after this long; a large catalog takes seconds.
KEEPER_REPLY_S = 60.0


def build_keeper(settings: Settings) -> SnapshotKeeper:
    return SnapshotKeeper(
        SnapshotSource(batch_database(settings)),
        SnapshotFolder(settings.snapshot_dir),
        settings.half_lives_s,
        settings.rules_weights,
        settings.new_below_impressions,
        list_length=LIST_LENGTH_PER_BUDGET * settings.candidate_budget,
    )


def take_snapshot(settings: Settings) -> int:
    """Publishes what has changed, for web workers to see; returns the number of propositions.

    Raises:
        StoreUnavailable: PostgreSQL does not answer, or the disk takes no files.
    """
    keeper = build_keeper(settings)
    keeper.refresh(time.time())
    if keeper.problem is not None:
        raise StoreUnavailable(keeper.problem)
    RegistrySchema(settings).read()
    _key_publisher(settings)()
    _report(SnapshotFolder(settings.snapshot_dir), None)
    return keeper.size


def follow_news(settings: Settings, stop: threading.Event) -> None:
    """Publishes changes until stopped, and keeps the feature schema on disk current."""
    wait_cooperatively(KEEPER_REPLY_S)
    keeper, folder = build_keeper(settings), SnapshotFolder(settings.snapshot_dir)
    read_schema, publish_keys = _schema_reader(settings), _key_publisher(settings)
    publish_keys()
    Background({publish_keys: KEYS_INTERVAL_S}).start()
    is_first = True
    while not stop.is_set():
        began_s = time.process_time()  # to wait for PostgreSQL is no work
        keeper.refresh(time.time())
        worked_s = time.process_time() - began_s
        if is_first:
            if SchemaFile(settings.snapshot_dir).saved() is None:
                read_schema()  # workers wait for the first report, and need the schema to load a model
            Background({read_schema: SCHEMA_INTERVAL_S}).start()
            is_first = False
        _report(folder, keeper.problem)
        stop.wait(pause_s(settings.snapshot_refresh_s, worked_s))


def _report(folder: SnapshotFolder, problem: str | None) -> None:
    now_s, last = time.time(), folder.last_report()
    folder.report(KeeperReport(now_s, problem, now_s if problem is None else last and last.current_at_s))


def _key_publisher(settings: Settings) -> Callable[[], None]:
    """Brings the API keys on disk up to date."""
    keeper = KeyKeeper(key_store(settings).valid, KeyFile(settings.snapshot_dir))
    return lambda: keeper.refresh(datetime.now(UTC))


def _schema_reader(settings: Settings) -> Callable[[], None]:
    """Brings the schema on disk up to date."""
    source = RegistrySchema(settings)

    def read() -> None:
        try:
            source.read()
        except (StoreUnavailable, ConfigurationError) as error:
            log.warning("the feature schema on disk stays as it is: %s", error)

    return read
