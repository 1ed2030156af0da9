"""Models on disk: one immutable folder per version, and a pointer to the one that serves."""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from app.adapters.xgboost_model import read_model
from app.domain.errors import ModelRefused
from app.features.assembly import MatrixSpec
from app.features.ports import Model
from app.features.schema import FeatureSchema

MANIFEST = "manifest.json"
RANKER = "ranker.json"
BASELINE = "baseline.pkl"
_POINTER = "active.json"


@dataclass(frozen=True, slots=True)
class ActiveVersion:
    version: str
    previous: str | None


class ModelStore:
    """Folders `<root>/<version>/` with a manifest that names every file's SHA-256.

    `half_lives_s` are those of the counters that are kept now; models for others are refused.
    """

    def __init__(self, root: Path, half_lives_s: Sequence[float]) -> None:
        self._root = root
        self._half_lives_s = tuple(half_lives_s)

    def folder(self, version: str) -> Path:
        return self._root / version

    def versions(self) -> list[str]:
        """Complete versions, oldest first: names begin with the time of training."""
        return sorted(path.parent.name for path in self._root.glob(f"*/{MANIFEST}"))

    def size_bytes(self, version: str) -> int:
        """Of the ranker's file.

        Raises:
            ModelRefused: it is missing.
        """
        try:
            return (self.folder(version) / RANKER).stat().st_size
        except OSError as error:
            raise ModelRefused(f"model {version} lacks its file {RANKER}") from error

    def manifest(self, version: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder(version) / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise ModelRefused(
                f"model {version} has no readable manifest in {self.folder(version)}"
            ) from error

    def trained_at(self, version: str) -> datetime | None:
        """None if its manifest does not tell.

        Raises:
            ModelRefused: it has no readable manifest.
        """
        try:
            return datetime.fromisoformat(self.manifest(version)["created_at"])
        except (KeyError, TypeError, ValueError):
            return None

    def write(self, version: str, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Stores a version, and returns its manifest with the hashes of the files.

        The folder appears at once and complete, and its files are read-only.

        Raises:
            FileExistsError: versions are immutable.
        """
        if self.folder(version).exists():
            raise FileExistsError(f"model {version} exists")
        draft = self._root / f".{version}.{os.getpid()}"
        draft.mkdir(parents=True)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        complete = json.dumps({**manifest, "files_sha256": hashes}, indent=2)
        for name, content in {**files, MANIFEST: complete.encode()}.items():
            (draft / name).write_bytes(content)
            (draft / name).chmod(0o444)
        draft.rename(self.folder(version))
        return json.loads(complete)

    def load(self, version: str, schema: FeatureSchema) -> Model:
        """The model of a version, ready to score rows of `schema`.

        Raises:
            ModelRefused: see `check`; or XGBoost cannot read it.
        """
        spec, content = self.check(version, schema)
        return read_model(version, spec, content)

    def check(self, version: str, schema: FeatureSchema) -> tuple[MatrixSpec, bytes]:
        """The spec and the file of a version, as they were written by the training that has loaded them.

        Raises:
            ModelRefused: a file is missing or changed, or the model reads other features.
        """
        manifest = self.manifest(version)
        try:
            spec, hashes = MatrixSpec.from_json(manifest["matrix"]), dict(manifest["files_sha256"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelRefused(f"the manifest of model {version} is damaged: {error!r}") from error
        if spec.schema.hash() != schema.hash():
            raise ModelRefused(
                f"model {version} was trained for feature schema {spec.schema.hash()[:12]}, the feature repo "
                f"declares {schema.hash()[:12]}: train again"
            )
        if spec.half_lives_s != self._half_lives_s:
            raise ModelRefused(
                f"model {version} reads half-lives {spec.half_lives_s}, HALF_LIVES_S is {self._half_lives_s}: "
                "train again"
            )
        return spec, self._verified(version, RANKER, hashes)

    def load_baseline(self, version: str) -> Any:
        """The baseline of a version, as it was pickled. Unpickling runs what the file says, so its hash is checked before.

        Raises:
            ModelRefused: the file is missing or not the one that was written with the manifest.
        """
        return pickle.loads(self._verified(version, BASELINE, self._hashes(version)))  # noqa: S301  (its hash was checked)

    def verify(self, version: str) -> None:
        """Checks every file that the manifest names.

        Raises:
            ModelRefused: a file is missing or changed.
        """
        hashes = self._hashes(version)
        for name in hashes:
            self._verified(version, name, hashes)

    def _hashes(self, version: str) -> dict[str, str]:
        try:
            return dict(self.manifest(version)["files_sha256"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelRefused(f"the manifest of model {version} is damaged: {error!r}") from error

    def _verified(self, version: str, name: str, hashes: Mapping[str, str]) -> bytes:
        try:
            content = (self.folder(version) / name).read_bytes()
        except OSError as error:
            raise ModelRefused(f"model {version} lacks its file {name}") from error
        if hashlib.sha256(content).hexdigest() != hashes.get(name):
            raise ModelRefused(f"model {version}: {name} is not the file that was trained (SHA-256 differs)")
        return content

    def active(self) -> ActiveVersion | None:
        """The version that serves; None before the first promotion.

        Raises:
            ModelRefused: the pointer cannot be read.
        """
        pointer = self._root / _POINTER
        try:
            return ActiveVersion(**json.loads(pointer.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ModelRefused(f"{pointer} is damaged: promote a model again") from error

    def activate(self, version: str) -> None:
        """Points at a version, in one step; what was active becomes the previous one."""
        self.manifest(version)
        try:
            current = self.active()
        except ModelRefused:
            current = None
        if current is not None and current.version == version:
            return
        draft = self._root / f".{_POINTER}.{os.getpid()}"
        draft.write_text(json.dumps({"version": version, "previous": current and current.version}))
        draft.replace(self._root / _POINTER)

    def roll_back(self) -> ActiveVersion:
        """Makes the previous version active again and returns it.

        Raises:
            ModelRefused: there is no previous version.
        """
        current = self.active()
        if current is None or current.previous is None:
            raise ModelRefused("there is no earlier model to roll back to")
        self.activate(current.previous)
        return self.active()
