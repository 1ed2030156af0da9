"""The feature schema, as Feast's registry holds it, and on local disk for those who need not ask there."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from app.adapters.database import Database, service_database
from app.domain.errors import StoreUnavailable
from app.features.schema import FeatureSchema
from app.settings import Settings

_MARK = text("""
    SELECT metadata_value FROM feast.feast_metadata
    WHERE project_id = :project AND metadata_key = 'last_updated_timestamp'""")


class RegistrySchema:
    """The schema of the registry. Feast, which takes seconds to import, is asked only when that has changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = SchemaFile(settings.snapshot_dir)
        self._database = service_database(settings)

    def read(self) -> FeatureSchema:
        """As the registry has it now; as on disk while that does not answer.

        Raises:
            ConfigurationError: the feature repo was not applied.
            StoreUnavailable: the registry does not answer, and nothing is on disk.
        """
        saved = self._file.saved()
        try:
            if saved is not None and saved.mark == registry_mark(self._database, saved.schema.project):
                return saved.schema
            return self._from_registry()
        except StoreUnavailable:
            if saved is None:
                raise
            return saved.schema

    def _from_registry(self) -> FeatureSchema:
        from app.adapters.feature_store import load_schema, open_feature_store

        store = open_feature_store(self._settings)
        mark = registry_mark(self._database, store.project)  # before reading: too old a mark does no harm
        store.refresh_registry()
        schema = load_schema(store)
        self._file.write(schema, mark)
        return schema


def registry_mark(database: Database, project: str) -> str | None:
    """What changes whenever Feast's registry does; None before the first `feast apply`.

    Raises:
        StoreUnavailable: the database does not answer, or has no registry.
    """
    with database.transaction() as connection:
        return connection.execute(_MARK, {"project": project}).scalar_one_or_none()


@dataclass(frozen=True, slots=True)
class SavedSchema:
    """A schema, and the registry's mark from before it was read there."""

    schema: FeatureSchema
    mark: str | None


class SchemaFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "schema.json"

    def saved(self) -> SavedSchema | None:
        """What was written last; None if that was never, or cannot be read."""
        try:
            content = json.loads(self._path.read_text())
            return SavedSchema(FeatureSchema.from_json(content["schema"]), content["mark"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read(self) -> FeatureSchema:
        """The schema as the registry was read last.

        Raises:
            StoreUnavailable: it was not read yet.
        """
        saved = self.saved()
        if saved is None:
            raise StoreUnavailable("the feature schema is not on disk yet: is the feature repo applied?")
        return saved.schema

    def write(self, schema: FeatureSchema, mark: str | None) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_text(json.dumps({"schema": schema.to_json(), "mark": mark}))
        draft.replace(self._path)
