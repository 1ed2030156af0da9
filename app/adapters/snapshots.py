"""Where snapshots come from: news from PostgreSQL, and the last good one in mapped files on local disk."""

import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from app.adapters.database import Database, patience
from app.adapters.feature_tables import latest_counters
from app.domain.types import Proposition
from app.features.candidate_lists import CandidateLists, GroupedList
from app.features.catalog import ARRAY_COLUMNS, RAGGED_COLUMNS, Catalog
from app.features.columns import RaggedColumn
from app.features.fold import BEGINNING
from app.features.rows import NUMBER_PREFIX
from app.features.schema import EntityName
from app.features.snapshot import ClickPrior, Snapshot, SnapshotChanges, SnapshotVersion, empty_snapshot
from app.features.snapshot_columns import (
    MAX_NEIGHBOURS,
    ContextCounters,
    CounterColumn,
    Neighbours,
    TextColumn,
)

log = logging.getLogger(__name__)

_TRAITS = "traits"

# Whether there is anything new is told at once by a PostgreSQL that is well; what is new may take long to read.
_TELLING_S = 2.0
# Rows read at a time: enough to share the cost of growing the columns, few enough for a flat memory.
_BATCH_ROWS = 50_000

# All rows up to the slot that is hindmost are there; of others also later ones, which are read again.
_VERSION = text("""
    SELECT generation::text, nullif(last_at, '-infinity'), nullif(hindmost, '-infinity'), progress
    FROM projection, log_heads, (
        SELECT min(folded_until) AS hindmost, md5(string_agg(folded_until::text, ' ' ORDER BY slot)) AS progress
        FROM projection_slots
    ) AS slots WHERE name = 'catalog'""")

# A deleted proposition is known to a snapshot as one that may never be shown.
_PROPOSITIONS = text("""
    SELECT proposition_id, title, category, tags, value, is_active AND deleted_at IS NULL AS is_active,
           starts_at, ends_at, attributes, created_at
    FROM propositions WHERE updated_at > :after ORDER BY proposition_id""")

_ATTRIBUTES = text("""
    SELECT latest.* FROM propositions p CROSS JOIN LATERAL (
        SELECT * FROM proposition_catalog c
        WHERE c.proposition_id = p.proposition_id ORDER BY event_timestamp DESC LIMIT 1
    ) latest WHERE p.updated_at > :after""")
# Nearest first; only as many as a snapshot keeps.
_NEIGHBOURS = text(f"""
    SELECT proposition_id, neighbour_ids[1:{MAX_NEIGHBOURS}] FROM proposition_neighbours
    WHERE updated_at > :after""")
_NO_ATTRIBUTES = {
    *("proposition_id", "event_timestamp", "created_timestamp"),
    *("traits", "number_names", "number_values"),
}


class SnapshotSource:
    """Reads from PostgreSQL what changed since a snapshot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def refresh(self, snapshot: Snapshot) -> Snapshot:
        """The newest snapshot: the given one when nothing changed.

        Raises:
            StoreUnavailable: PostgreSQL does not answer; the given snapshot stays good.
        """
        with ExitStack() as stack:
            with patience(_TELLING_S):
                connection = stack.enter_context(self._database.snapshot())
                version = SnapshotVersion(*connection.execute(_VERSION).one())
            if version == snapshot.version:
                return snapshot
            if version.generation != snapshot.version.generation:
                snapshot = empty_snapshot(snapshot.half_lives_s)
            old = snapshot.version
            # A cursor of the server: not all rows of a large catalog at once.
            connection = connection.execution_options(yield_per=_BATCH_ROWS)
            for changes in _changes(connection, snapshot.catalog, old, version):
                snapshot = snapshot.with_changes(changes)
            return replace(snapshot, version=version)


def _changes(
    connection: Connection, known: Catalog, old: SnapshotVersion, new: SnapshotVersion
) -> Iterator[SnapshotChanges]:
    has_unknown = False
    if old.catalog_at != new.catalog_at:
        after = {"after": old.catalog_at or BEGINNING}
        for rows in _batches(connection.execute(_PROPOSITIONS, after).mappings()):
            propositions = [Proposition(**{**row, "tags": tuple(row["tags"])}) for row in rows]
            has_unknown |= bool((known.positions_of([p.proposition_id for p in propositions]) < 0).any())
            yield SnapshotChanges(propositions=propositions)
        for rows in _batches(connection.execute(_ATTRIBUTES, after).mappings()):
            yield SnapshotChanges(
                attributes={row["proposition_id"]: _attributes(row) for row in rows},
                traits={row["proposition_id"]: row["traits"] or () for row in rows},
            )
    # Of propositions that were not known yet, the older counters and neighbours are wanted, too.
    after = None if has_unknown else old.counters_at
    for name, entity in (
        ("performance", EntityName.PROPOSITION),
        ("context_performance", EntityName.CONTEXT_PROPOSITION),
    ):
        for rows in _batches(latest_counters(connection, entity, after)):
            yield SnapshotChanges(**{name: {key: counters for key, counters, _ in rows}})
    for rows in _batches(connection.execute(_NEIGHBOURS, {"after": after or BEGINNING})):
        yield SnapshotChanges(neighbours=dict(map(tuple, rows)))


def _batches(rows: Iterable) -> Iterator[list]:
    remaining = iter(rows)
    while batch := list(islice(remaining, _BATCH_ROWS)):
        yield batch


def _attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = zip(row["number_names"] or (), row["number_values"] or (), strict=True)
    return {
        **{name: value for name, value in row.items() if name not in _NO_ATTRIBUTES},
        **{NUMBER_PREFIX + name: value for name, value in numbers},
    }


@dataclass(frozen=True, slots=True)
class KeeperReport:
    """When the keeper of the snapshot last looked for news, in seconds since the epoch, and how it went.

    `current_at_s`: when it last found the snapshot current or renewed it; None if it never did.
    """

    at_s: float
    problem: str | None
    current_at_s: float | None


class SnapshotFolder:
    """The last good snapshot on local disk, a file per column.

    One process publishes; any number map the files and so share their memory. A new version writes the
    columns that changed and points at the others; the pointer is replaced in one step. Files that neither
    the pointer nor the one before it names are deleted; whoever has mapped them keeps them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pointer = folder / "current.json"
        self._report = folder / "keeper.json"
        self._columns: dict[str, tuple[str, np.ndarray]] = {}
        self._previous_files: set[str] = set()
        self._opened: dict[str, np.ndarray] = {}
        self._opened_pointer: bytes | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Makes a snapshot the current one.

        Raises:
            OSError: the disk is full or read-only; the current one stays.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        columns = {name: self._written(name, np.asarray(array)) for name, array in _columns(snapshot).items()}
        files = {name: file for name, (file, _) in columns.items()}
        self._replace(self._pointer, {"header": _header(snapshot), "files": files})
        self._columns = columns
        self._delete_all_but(set(files.values()) | self._previous_files)
        self._previous_files = set(files.values())

    def _written(self, name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        known = self._columns.get(name)
        if known is not None and known[1] is array:
            return known
        file = f"{uuid.uuid4().hex}.npy"
        np.save(self._folder / file, array, allow_pickle=False)
        return file, array

    def _delete_all_but(self, files: set[str]) -> None:
        for path in self._folder.glob("*.npy"):
            if path.name not in files:
                path.unlink(missing_ok=True)

    def open(self, half_lives_s: tuple[float, ...]) -> Snapshot | None:
        """The current snapshot; None if there is none, or it was made with other half-lives.

        Called again, it answers with the same object until another one was published.
        """
        try:
            pointer = self._pointer.read_bytes()
            if pointer != self._opened_pointer:
                self._snapshot = self._read(json.loads(pointer), half_lives_s)
                self._opened_pointer = pointer
            return self._snapshot
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("the saved snapshot cannot be read and is ignored: %s", error)
            return None

    def _read(self, pointer: Mapping[str, Any], half_lives_s: tuple[float, ...]) -> Snapshot | None:
        header = pointer["header"]
        if tuple(header["half_lives_s"]) != half_lives_s:
            return None
        opened = {
            file: self._opened[file] if file in self._opened else _map(self._folder / file)
            for file in pointer["files"].values()
        }
        self._opened = opened
        return _snapshot({name: opened[file] for name, file in pointer["files"].items()}, header)

    def report(self, report: KeeperReport) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._replace(self._report, asdict(report))

    def last_report(self) -> KeeperReport | None:
        try:
            return KeeperReport(**json.loads(self._report.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def _replace(self, path: Path, content: Mapping[str, Any]) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(content))
        draft.replace(path)


def _map(path: Path) -> np.ndarray:
    # As plain arrays: every slice of a numpy.memmap costs microseconds more.
    if path.stat().st_size < 65_536:
        return np.load(path, allow_pickle=False)
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _columns(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Every array of a snapshot by name."""
    catalog, contexts, lists = snapshot.catalog, snapshot.contexts, snapshot.lists
    columns = {f"catalog.{name}": getattr(catalog, name) for name in ARRAY_COLUMNS}
    ragged_columns: dict[str, RaggedColumn] = {name: getattr(catalog, name) for name in RAGGED_COLUMNS}
    for name, ragged in {**ragged_columns, _TRAITS: snapshot.trait_codes}.items():
        columns |= {f"{name}.starts": ragged.starts, f"{name}.lengths": ragged.lengths}
        columns |= {f"{name}.block.{number}": block for number, block in enumerate(ragged.blocks)}
    for name, column in snapshot.attributes.items():
        columns[f"attribute.{name}"] = column.codes if isinstance(column, TextColumn) else column
    for name in ("by_category", "trending"):
        grouped: GroupedList = getattr(lists, name)
        columns |= {f"{name}.starts": grouped.starts, f"{name}.positions": grouped.positions}
    return columns | {
        "performance.counts": snapshot.performance.counts,
        "performance.as_of_s": snapshot.performance.as_of_s,
        "contexts.keys": contexts.keys,
        "contexts.counts": contexts.counters.counts,
        "contexts.as_of_s": contexts.counters.as_of_s,
        "neighbours.anchors": snapshot.neighbours.anchors,
        "neighbours.positions": snapshot.neighbours.positions,
        "popular": lists.popular,
        "new": lists.new,
        "categories": lists.categories,
    }


def _header(snapshot: Snapshot) -> dict[str, Any]:
    """Everything of a snapshot that is not an array."""
    return {
        "version": [
            snapshot.version.generation,
            _iso(snapshot.version.catalog_at),
            _iso(snapshot.version.counters_at),
        ],
        "progress": snapshot.version.progress,
        "half_lives_s": snapshot.half_lives_s,
        "click_prior": asdict(snapshot.click_prior),
        "contexts": snapshot.contexts.contexts,
        "category_names": snapshot.catalog.category_names,
        "tag_names": snapshot.catalog.tag_names,
        "trait_names": snapshot.trait_names,
        "texts": {
            name: column.names.tolist()
            for name, column in snapshot.attributes.items()
            if isinstance(column, TextColumn)
        },
    }


def _snapshot(columns: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> Snapshot:
    generation, *times = header["version"]
    texts = header["texts"]
    return Snapshot(
        version=SnapshotVersion(
            generation, *(time and datetime.fromisoformat(time) for time in times), header.get("progress")
        ),
        half_lives_s=tuple(header["half_lives_s"]),
        catalog=Catalog(
            **{name: columns[f"catalog.{name}"] for name in ARRAY_COLUMNS},
            **{name: _ragged(columns, name) for name in RAGGED_COLUMNS},
            category_names=tuple(header["category_names"]),
            tag_names=tuple(header["tag_names"]),
        ),
        attributes={
            name: TextColumn(np.array(texts[name]), column) if name in texts else column
            for name, column in _under("attribute.", columns)
        },
        trait_codes=_ragged(columns, _TRAITS),
        trait_names=tuple(header["trait_names"]),
        performance=CounterColumn(columns["performance.counts"], columns["performance.as_of_s"]),
        contexts=ContextCounters(
            tuple(header["contexts"]),
            columns["contexts.keys"],
            CounterColumn(columns["contexts.counts"], columns["contexts.as_of_s"]),
        ),
        neighbours=Neighbours(columns["neighbours.anchors"], columns["neighbours.positions"]),
        click_prior=ClickPrior(**header["click_prior"]),
        lists=CandidateLists(
            popular=columns["popular"],
            new=columns["new"],
            by_category=GroupedList(columns["by_category.starts"], columns["by_category.positions"]),
            trending=GroupedList(columns["trending.starts"], columns["trending.positions"]),
            categories=columns["categories"],
        ),
    )


def _ragged(columns: Mapping[str, np.ndarray], name: str) -> RaggedColumn:
    blocks: Sequence[np.ndarray] = [block for _, block in _under(f"{name}.block.", columns)]
    return RaggedColumn(tuple(blocks), columns[f"{name}.starts"], columns[f"{name}.lengths"])


def _under(prefix: str, columns: Mapping[str, np.ndarray]) -> Iterable[tuple[str, np.ndarray]]:
    return ((name.removeprefix(prefix), c) for name, c in columns.items() if name.startswith(prefix))


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
