"""The feature schema on local disk, for processes that need not wait for Feast's registry, or import Feast."""

import json
import os
from pathlib import Path

from app.domain.errors import StoreUnavailable
from app.features.schema import FeatureSchema


class SchemaFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "schema.json"

    @property
    def exists(self) -> bool:
        return self._path.exists()

    def read(self) -> FeatureSchema:
        """The schema as the registry was read last.

        Raises:
            StoreUnavailable: it was not read yet.
        """
        try:
            return FeatureSchema.from_json(json.loads(self._path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreUnavailable(
                "the feature schema is not on disk yet: is the feature repo applied?"
            ) from error

    def write(self, schema: FeatureSchema) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_text(json.dumps(schema.to_json()))
        draft.replace(self._path)
