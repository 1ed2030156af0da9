"""Events, decisions and features as Parquet files, one per table and UTC day, which others read in place.

A file says in its own metadata what it holds: the number of rows and a fingerprint of them. So an export
that was stopped goes on where it was, and a day is written again when its rows are others by now: today's,
one into which history was imported, one from which a person was removed.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Connection, text

from app.adapters.database import Database
from app.adapters.forgotten_users import ForgottenUsers
from app.domain.context import KEY_SEPARATOR
from app.domain.errors import ConfigurationError, StoreUnavailable
from app.features.fold import BEGINNING, COUNTER_VIEWS, KEY_COLUMNS
from app.features.history import HISTORY_FIELDS, HISTORY_VIEW
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName

# Rows in memory at a time, and in a row group.
_BATCH_ROWS = 50_000
_METADATA = b"propositions"
_FILE = "part-0.parquet"

_TIME = pa.timestamp("us", tz="UTC")
_TEXTS, _NUMBERS = pa.list_(pa.string()), pa.list_(pa.float64())
_JSON = pa.field("json", pa.string(), metadata={"kind": "json"})


@dataclass(frozen=True, slots=True)
class ExportTable:
    """A table to export by the days of `time_column`. `identity` tells rows apart; `log` says how long they are kept.

    `user_column` holds a user's id, alone or before the first separator of keys.
    """

    name: str
    time_column: str
    identity: tuple[str, ...]
    log: str
    schema: pa.Schema
    user_column: str | None


def _schema(**types: pa.DataType | pa.Field) -> pa.Schema:
    return pa.schema(
        [kind.with_name(name) if isinstance(kind, pa.Field) else (name, kind) for name, kind in types.items()]
    )


def _features(name: str, key: str, **types: pa.DataType) -> ExportTable:
    return ExportTable(
        name=name,
        time_column="event_timestamp",
        identity=(key, "event_timestamp", "created_timestamp"),
        log="features",
        schema=_schema(**{key: pa.string()}, **types, event_timestamp=_TIME, created_timestamp=_TIME),
        user_column=key if key.startswith("user_") else None,
    )


_COUNTERS = {**dict.fromkeys(COUNTER_FIELDS, _NUMBERS), AS_OF_FIELD: pa.float64()}

TABLES = (
    ExportTable(
        name="events",
        time_column="received_at",
        identity=("seq",),
        log="events",
        schema=_schema(
            seq=pa.int64(),
            event_id=pa.string(),
            event_type=pa.string(),
            user_id=pa.string(),
            proposition_id=pa.string(),
            category=pa.string(),
            context=_JSON,
            context_key=pa.string(),
            request_id=pa.string(),
            position=pa.int32(),
            value=pa.float64(),
            occurred_at=_TIME,
            received_at=_TIME,
        ),
        user_column="user_id",
    ),
    ExportTable(
        name="decisions",
        time_column="decided_at",
        identity=("decided_at", "request_id"),
        log="decisions",
        schema=_schema(
            request_id=pa.string(),
            decided_at=_TIME,
            user_id=pa.string(),
            context=_JSON,
            context_key=pa.string(),
            strategy=pa.string(),
            model_version=pa.string(),
            degradation_level=pa.int16(),
            feature_states=_JSON,
            candidate_count=pa.int32(),
            slate=_JSON,
            is_cached=pa.bool_(),
            features=_JSON,
        ),
        user_column="user_id",
    ),
    _features("user_profile", "user_id", age_years=pa.float64(), gender=pa.string(), segment=pa.string()),
    _features(
        "proposition_catalog",
        "proposition_id",
        category=pa.string(),
        value=pa.float64(),
        created_at_s=pa.float64(),
        traits=_TEXTS,
        number_names=_TEXTS,
        number_values=_NUMBERS,
    ),
    _features(
        HISTORY_VIEW,
        KEY_COLUMNS[EntityName.USER],
        **dict(zip(HISTORY_FIELDS, (_TEXTS, _NUMBERS, _NUMBERS), strict=True)),
    ),
    _features(
        "user_recent",
        KEY_COLUMNS[EntityName.USER],
        propositions=_TEXTS,
        counted_at_s=_NUMBERS,
    ),
    *(_features(view, KEY_COLUMNS[entity], **_COUNTERS) for entity, view in COUNTER_VIEWS.items()),
)


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: how many rows, and a number that other rows would hardly give."""

    rows: int
    fingerprint: int


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did with a table, in days; `rows` are those that were written."""

    table: str
    written: int
    unchanged: int
    removed: int
    rows: int


class ParquetExport:
    """Writes `<folder>/<table>/date=YYYY-MM-DD/part-0.parquet`, each file complete or not at all."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._forgotten = ForgottenUsers()

    def run(self, first: date, last: date, now: datetime) -> Iterator[Exported]:
        """Brings the files of the days from `first` to `last` up to date, table by table.

        Raises:
            ConfigurationError: another export writes to the folder.
            StoreUnavailable: PostgreSQL does not answer, or the disk takes no files. Run it again then.
        """
        try:
            with self._exclusive():
                for table in TABLES:
                    yield self._export(table, first, last, now)
        except OSError as error:
            raise StoreUnavailable(f"the export cannot be written: {error}") from error

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationError(f"another export writes to {self._folder}: let it end") from error
            yield

    def _export(self, table: ExportTable, first: date, last: date, now: datetime) -> Exported:
        with self._database.snapshot() as connection:
            stored = _contents_by_day(connection, table, first, last)
            kept_since = _kept_since(connection, table)
        exported = {day: path for day, path in self._files(table) if first <= day <= last}
        # What PostgreSQL keeps no longer is kept by the files alone.
        archived = {day for day in exported if _begin(day) < kept_since}
        written = unchanged = rows = 0
        for day in sorted(stored.keys() - archived):
            if day in exported and _content_of(exported[day], table) == stored[day]:
                unchanged += 1
            else:
                rows += self._write_day(table, day, now)
                written += 1
        for day in sorted(archived):
            if self._forget_in(table, exported[day], now):
                written += 1
            else:
                unchanged += 1
        gone = exported.keys() - stored.keys() - archived
        for day in gone:
            _remove(exported[day])
        return Exported(table.name, written, unchanged, len(gone), rows)

    def _files(self, table: ExportTable) -> Iterator[tuple[date, Path]]:
        """The finished files of a table; drafts of an export that was killed are removed."""
        for folder in (self._folder / table.name).glob("date=????-??-??"):
            for draft in folder.glob(f".{_FILE}.*"):
                draft.unlink(missing_ok=True)
            if (folder / _FILE).exists():
                yield date.fromisoformat(folder.name.removeprefix("date=")), folder / _FILE

    def _write_day(self, table: ExportTable, day: date, now: datetime) -> int:
        path = self._folder / table.name / f"date={day.isoformat()}" / _FILE
        with self._database.snapshot() as connection:
            content = _contents_by_day(connection, table, day, day).get(day, Content(0, 0))
            return _write(path, table.schema, _batches(connection, table, day), content.fingerprint, now)

    def _forget_in(self, table: ExportTable, path: Path, now: datetime) -> bool:
        """Takes people out of a file who were forgotten since it was written; returns whether there were any."""
        if table.user_column is None:
            return False
        with pq.ParquetFile(path) as file:
            written_at = datetime.fromisoformat(_metadata(file)["written_at"])
            users = {
                user for batch in file.iter_batches(columns=[table.user_column]) for user in _users(batch)
            }
            with self._database.transaction() as connection:
                forgotten = self._forgotten.since(connection, users)
            gone = pa.array([user for user, at in forgotten.items() if at > written_at], pa.string())
            if not len(gone):
                return False
            kept = (
                batch.filter(pc.invert(pc.is_in(_user_column(batch, table), gone)))
                for batch in file.iter_batches(_BATCH_ROWS)
            )
            _write(path, table.schema, kept, 0, now)
        return True


def _contents_by_day(
    connection: Connection, table: ExportTable, first: date, last: date
) -> dict[date, Content]:
    identity = f"concat_ws(chr(31), {', '.join(table.identity)})"
    rows = connection.execute(
        text(f"""
            SELECT ({table.time_column} AT TIME ZONE 'UTC')::date, count(*),
                   bit_xor(hashtextextended({identity}, 0))
            FROM {table.name} WHERE {table.time_column} >= :begin AND {table.time_column} < :end
            GROUP BY 1"""),
        {"begin": _begin(first), "end": _begin(last + timedelta(days=1))},
    )
    return {day: Content(count, fingerprint) for day, count, fingerprint in rows}


def _batches(connection: Connection, table: ExportTable, day: date) -> Iterator[pa.RecordBatch]:
    columns = ", ".join(f"{f.name}::text" if _is_json(f) else f.name for f in table.schema)
    result = connection.execution_options(yield_per=_BATCH_ROWS).execute(
        text(f"""
            SELECT {columns} FROM {table.name}
            WHERE {table.time_column} >= :begin AND {table.time_column} < :end
            ORDER BY {table.time_column}, {table.identity[0]}"""),
        {"begin": _begin(day), "end": _begin(day + timedelta(days=1))},
    )
    for rows in result.partitions(_BATCH_ROWS):
        columns_of_rows: list[Sequence[Any]] = list(zip(*rows, strict=True))
        arrays = [pa.array(column, f.type) for column, f in zip(columns_of_rows, table.schema, strict=True)]
        yield pa.record_batch(arrays, schema=table.schema)


def _write(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], fingerprint: int, now: datetime
) -> int:
    """Replaces a file in one step; returns how many rows it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, rows = path.with_name(f".{path.name}.{os.getpid()}"), 0
    with draft.open("wb") as sink:
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_table(pa.Table.from_batches([batch]))
                rows += batch.num_rows
            about = {**asdict(Content(rows, fingerprint)), "written_at": now.isoformat()}
            writer.add_key_value_metadata({_METADATA.decode(): json.dumps(about)})
        os.fsync(sink.fileno())
    draft.replace(path)
    return rows


def _remove(path: Path) -> None:
    path.unlink()
    with suppress(OSError):  # somebody else keeps a file there
        path.parent.rmdir()


def _content_of(path: Path, table: ExportTable) -> Content | None:
    """What a file says it holds; None if it is not one of this table as it is now."""
    try:
        with pq.ParquetFile(path) as file:
            about = _metadata(file)
            is_current = file.schema_arrow.equals(table.schema)
            return Content(about["rows"], about["fingerprint"]) if is_current else None
    except (pa.ArrowInvalid, KeyError, ValueError):
        return None


def _metadata(file: pq.ParquetFile) -> dict[str, Any]:
    return json.loads(file.metadata.metadata[_METADATA])


def _kept_since(connection: Connection, table: ExportTable) -> datetime:
    return (
        connection.execute(
            text("SELECT nullif(kept_since, '-infinity') FROM log_heads WHERE name = :log"),
            {"log": table.log},
        ).scalar_one()
        or BEGINNING
    )


def _user_column(batch: pa.RecordBatch, table: ExportTable) -> pa.Array:
    return pc.list_element(pc.split_pattern(batch[table.user_column], KEY_SEPARATOR), 0)


def _users(batch: pa.RecordBatch) -> set[str]:
    return {key.partition(KEY_SEPARATOR)[0] for key in batch.column(0).to_pylist() if key is not None}


def _is_json(field: pa.Field) -> bool:
    return field.metadata == _JSON.metadata


def _begin(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
