"""API keys on local disk, for workers: they know them while PostgreSQL is down, and when they start without it.

The file holds digests and no secrets, and only its owner may read it.
"""

import logging
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from app.domain.access import ApiKey, KeyRing
from app.domain.errors import StoreUnavailable

log = logging.getLogger(__name__)

_KEYS = TypeAdapter(
    list[ApiKey],
    config=ConfigDict(ser_json_bytes="hex", val_json_bytes="hex", hide_input_in_errors=True),
)


class KeyFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "keys.json"

    def mark(self) -> tuple[int, int] | None:
        """What differs whenever the file was written; None if there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def read(self) -> list[ApiKey]:
        """The keys that were written last.

        Raises:
            OSError: there is no file, or it cannot be read.
            ValueError: it is damaged.
        """
        return _KEYS.validate_json(self._path.read_bytes())

    def write(self, keys: Iterable[ApiKey]) -> None:
        """Replaces the file in one step; after a power cut it is the old one or the new one.

        Raises:
            OSError: the disk is full or read-only; the old file stays.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # also if a draft was left behind with other rights
            file.write(_KEYS.dump_json(list(keys), indent=1))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class KeyKeeper:
    """Brings the file up to date with what PostgreSQL has. One process per machine does that."""

    def __init__(self, valid_keys: Callable[[datetime], list[ApiKey]], file: KeyFile) -> None:
        self._valid_keys = valid_keys
        self._file = file
        self._problem: str | None = None

    def refresh(self, now: datetime) -> None:
        """Writes the keys that are valid now, if they differ; else, and while PostgreSQL is down, the file stays."""
        try:
            keys = self._valid_keys(now)
            if keys != self._written():
                self._file.write(keys)
        except (StoreUnavailable, OSError) as error:
            if self._problem is None:
                log.warning("the API keys on disk stay as they are: %s", error)
            self._problem = str(error)
        else:
            self._problem = None

    def _written(self) -> list[ApiKey] | None:
        try:
            return self._file.read()
        except (OSError, ValueError):
            return None


class LiveKeys:
    """The keys of the file, as it was when it could be read last."""

    def __init__(self, file: KeyFile) -> None:
        self._file = file
        self._mark: tuple[int, int] | str | None = "never looked"
        self._is_damaged = False
        self._ring = KeyRing()

    def find(self, presented: str, now: datetime) -> ApiKey | None:
        return self._ring.find(presented, now)

    def refresh(self) -> None:
        """Reads the file if it is another one than before. A damaged one leaves the keys as they are."""
        mark = self._file.mark()
        if mark == self._mark and not self._is_damaged:
            return
        try:
            self._ring = KeyRing(self._file.read())
            self._is_damaged = False
        except (OSError, ValueError) as error:
            if mark != self._mark:
                log.error(
                    "the file of API keys cannot be read, %d known ones stay: %s", len(self._ring), error
                )
            self._is_damaged = True
        self._mark = mark  # from before reading: what was written meanwhile is read the next time
