"""Databases and what is kept in them: migrations, imports, exports, keys, the embedded servers."""

from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.adapters import import_loader
from app.adapters.database import batch_database, service_database
from app.adapters.embedded import EmbeddedServers
from app.adapters.import_loader import ImportLoader
from app.adapters.key_store import KeyStore
from app.settings import Settings

if TYPE_CHECKING:
    from app.adapters.parquet_export import ParquetExport

FEAST_PROJECT = "propositions"


def embedded_servers(settings: Settings) -> EmbeddedServers:
    return EmbeddedServers(settings.embedded_dir)


def migrate_database(settings: Settings, up_to: str = "head", down_to: str | None = None) -> str | None:
    """Brings the tables to a revision and returns the one they are at (None: no tables).

    Raises:
        StoreUnavailable: PostgreSQL does not answer, or a lock was not free in time; nothing half-done.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

    config = Config()
    (location,) = find_spec("migrations").submodule_search_locations
    config.set_main_option("script_location", location)
    with service_database(settings).transaction() as connection:
        if down_to is None:
            command.upgrade(config, up_to)
        else:
            command.downgrade(config, down_to)
        return MigrationContext.configure(connection).get_current_revision()


def open_import(settings: Settings) -> AbstractContextManager[ImportLoader]:
    return import_loader.open_import(batch_database(settings), settings.context_fields)


def key_store(settings: Settings) -> KeyStore:
    return KeyStore(service_database(settings))


def build_export(settings: Settings, folder: Path) -> "ParquetExport":
    from app.adapters.parquet_export import ParquetExport

    return ParquetExport(batch_database(settings), folder)
