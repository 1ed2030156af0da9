"""Which model serves: the pointer on disk decides, the table keeps the record."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text

from app.adapters.database import Database, service_database
from app.adapters.model_store import ModelStore
from app.adapters.schema_file import RegistrySchema
from app.domain.errors import ModelRefused
from app.settings import Settings


class ModelTable:
    """The table `models`: every trained version with its manifest, and when it was promoted last."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, version: str, manifest: Mapping[str, Any]) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                text("INSERT INTO models (version, manifest) VALUES (:version, CAST(:manifest AS jsonb))"),
                {"version": version, "manifest": json.dumps(manifest)},
            )

    def note_promotion(self, version: str) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                text("UPDATE models SET promoted_at = now() WHERE version = :version"), {"version": version}
            )


class Promotions:
    def __init__(self, store: ModelStore, table: ModelTable, schemas: RegistrySchema) -> None:
        self._store = store
        self._table = table
        self._schemas = schemas

    def promote(self, version: str) -> str:
        """Makes a version (or `latest`) serve, after checking its files against its manifest; returns its name.

        Raises:
            ModelRefused: the present model goes on serving.
        """
        if version == "latest":
            versions = self._store.versions()
            if not versions:
                raise ModelRefused("there are no models: run `propositions train`")
            version = versions[-1]
        self._store.check(version, self._schemas.read())
        self._store.activate(version)
        self._table.note_promotion(version)
        return version

    def roll_back(self) -> str:
        active = self._store.roll_back()
        self._table.note_promotion(active.version)
        return active.version


def open_promotions(settings: Settings) -> Promotions:
    database = service_database(settings)
    return Promotions(
        ModelStore(settings.model_dir, settings.half_lives_s), ModelTable(database), RegistrySchema(settings)
    )
