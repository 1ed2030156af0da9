"""Where snapshots come from: news from PostgreSQL, and the last good one from local disk."""

import io
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.adapters.feature_tables import latest_counters
from app.domain.catalog import Catalog
from app.domain.types import Proposition
from app.features.fold import BEGINNING
from app.features.rows import Rows
from app.features.schema import EntityName
from app.features.snapshot import (
    ClickPrior,
    ContextCounters,
    Snapshot,
    SnapshotChanges,
    SnapshotVersion,
    empty_snapshot,
)

log = logging.getLogger(__name__)

_VERSION = text("""
    SELECT generation::text, nullif(folded_until, '-infinity'), nullif(last_at, '-infinity')
    FROM projection, log_heads WHERE name = 'catalog'""")

_PROPOSITIONS = text("""
    SELECT proposition_id, title, category, tags, value, is_active, starts_at, ends_at, attributes, created_at
    FROM propositions WHERE updated_at > :after ORDER BY proposition_id""")

_ATTRIBUTES = text("""
    SELECT latest.* FROM propositions p CROSS JOIN LATERAL (
        SELECT * FROM proposition_catalog c
        WHERE c.proposition_id = p.proposition_id ORDER BY event_timestamp DESC LIMIT 1
    ) latest WHERE p.updated_at > :after""")
_BOOKKEEPING = {"proposition_id", "event_timestamp", "created_timestamp"}


class SnapshotSource:
    """Reads from PostgreSQL what changed since a snapshot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def refresh(self, snapshot: Snapshot) -> Snapshot:
        """The newest snapshot: the given one when nothing changed.

        Raises:
            StoreUnavailable: PostgreSQL does not answer; the given snapshot stays good.
        """
        with self._database.snapshot() as connection:
            generation, counters_at, catalog_at = connection.execute(_VERSION).one()
            version = SnapshotVersion(generation, catalog_at, counters_at)
            if version == snapshot.version:
                return snapshot
            if generation != snapshot.version.generation:
                snapshot = empty_snapshot(snapshot.half_lives_s)
            return snapshot.with_changes(_changes(connection, snapshot, version))


def _changes(connection: Connection, snapshot: Snapshot, new: SnapshotVersion) -> SnapshotChanges:
    old = snapshot.version
    propositions, attributes = [], {}
    if old.catalog_at != new.catalog_at:
        after = {"after": old.catalog_at or BEGINNING}
        propositions = [
            Proposition(**{**row, "tags": tuple(row["tags"])})
            for row in connection.execute(_PROPOSITIONS, after).mappings()
        ]
        attributes = {
            row["proposition_id"]: {name: value for name, value in row.items() if name not in _BOOKKEEPING}
            for row in connection.execute(_ATTRIBUTES, after).mappings()
        }
    # Of propositions that were not known yet, the older counters are wanted, too.
    has_unknown = any(p.proposition_id not in snapshot.catalog.index for p in propositions)
    counters_after = None if has_unknown else old.counters_at
    performance, context_performance = (
        {key: counters for key, counters, _ in latest_counters(connection, entity, counters_after)}
        for entity in (EntityName.PROPOSITION, EntityName.CONTEXT_PROPOSITION)
    )
    return SnapshotChanges(new, propositions, attributes, performance, context_performance)


class SnapshotFile:
    """The last good snapshot in one file on local disk, replaced in one step."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "snapshot.npz"

    def save(self, snapshot: Snapshot) -> None:
        arrays: dict[str, np.ndarray] = {
            "header": _as_bytes(_header(snapshot)),
            "performance_counts": snapshot.performance.counts,
            "performance_as_of_s": snapshot.performance.as_of_s,
        }
        for name, column in snapshot.attributes.values.items():
            arrays[f"attribute_{name}"] = column
        for number, known in enumerate(snapshot.contexts.values()):
            arrays[f"context_{number}_positions"] = known.positions
            arrays[f"context_{number}_counts"] = known.rows.counts
            arrays[f"context_{number}_as_of_s"] = known.rows.as_of_s
        content = io.BytesIO()
        np.savez(content, **arrays)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_bytes(content.getvalue())
        draft.replace(self._path)

    def load(self, half_lives_s: tuple[float, ...]) -> Snapshot | None:
        """The saved snapshot; None if there is none, or it was made with other half-lives."""
        try:
            return self._read(half_lives_s)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            log.error("the saved snapshot cannot be read and is ignored: %s", error)
            return None

    def _read(self, half_lives_s: tuple[float, ...]) -> Snapshot | None:
        with np.load(self._path, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            if tuple(header["half_lives_s"]) != half_lives_s:
                return None
            return Snapshot(
                version=_version_from(header["version"]),
                half_lives_s=half_lives_s,
                catalog=Catalog([_proposition_from(record) for record in header["propositions"]]),
                attributes=Rows(
                    None,
                    None,
                    {
                        name.removeprefix("attribute_"): arrays[name]
                        for name in arrays.files
                        if name.startswith("attribute_")
                    },
                ),
                performance=Rows(arrays["performance_counts"], arrays["performance_as_of_s"], {}),
                contexts={
                    context_key: ContextCounters(
                        arrays[f"context_{number}_positions"],
                        Rows(arrays[f"context_{number}_counts"], arrays[f"context_{number}_as_of_s"], {}),
                    )
                    for number, context_key in enumerate(header["contexts"])
                },
                click_prior=ClickPrior(**header["click_prior"]),
            )


_TIMES = ("starts_at", "ends_at", "created_at")


def _header(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "version": [
            snapshot.version.generation,
            _iso(snapshot.version.catalog_at),
            _iso(snapshot.version.counters_at),
        ],
        "half_lives_s": snapshot.half_lives_s,
        "click_prior": {"rate": snapshot.click_prior.rate, "strength": snapshot.click_prior.strength},
        "contexts": list(snapshot.contexts),
        "propositions": [_proposition_record(p) for p in snapshot.catalog.propositions],
    }


def _proposition_record(proposition: Proposition) -> dict[str, Any]:
    record = {name: getattr(proposition, name) for name in Proposition.__slots__}
    return {**record, **{name: _iso(record[name]) for name in _TIMES}}


def _proposition_from(record: Mapping[str, Any]) -> Proposition:
    times = {name: record[name] and datetime.fromisoformat(record[name]) for name in _TIMES}
    return Proposition(**{**record, **times, "tags": tuple(record["tags"])})


def _version_from(parts: list[Any]) -> SnapshotVersion:
    generation, *times = parts
    return SnapshotVersion(generation, *(time and datetime.fromisoformat(time) for time in times))


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _as_bytes(data: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(data).encode(), dtype=np.uint8)
