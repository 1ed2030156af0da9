"""The project's own format: users, propositions and events as JSON Lines, CSV or Parquet.

A file's name begins with what it holds: `users`, `propositions` or `events`.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.domain.errors import ImportRefused
from app.imports.records import BadLine, ImportRules, Line, Parsed, Record, parse_lines, to_record

KINDS = ("users", "propositions", "events")
_PARQUET_BATCH_ROWS = 10_000

# How the texts of a CSV file become the types of the schemas; other columns stay texts.
_CSV_READERS = {
    "age_years": float,
    "value": float,
    "position": int,
    "is_active": lambda text: {"true": True, "false": False}[text.lower()],
    "tags": lambda text: text.split("|"),
    "context": json.loads,
    "attributes": json.loads,
}


def parse(paths: Iterable[Path], rules: ImportRules) -> Parsed:
    for path in sorted(paths, key=lambda p: KINDS.index(_kind(p))):
        kind = _kind(path)

        def to_records(line: Line, kind: str = kind) -> list[Record]:
            if isinstance(line.content, BadLine):
                raise line.content
            return [to_record(kind, line.content, rules)]

        yield from parse_lines(_lines(path), to_records)


def _kind(path: Path) -> str:
    for kind in KINDS:
        if path.name.startswith(kind):
            return kind
    raise ImportRefused(f"{path}: the name must begin with users, propositions or events")


def _lines(path: Path) -> Iterator[Line]:
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv_lines, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise ImportRefused(f"{path}: give a .jsonl, .csv or .parquet file")
    try:
        yield from readers[path.suffix](path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ImportRefused(f"{path} cannot be read: {error}") from error


def _json_lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield Line(path, number, _json(raw))


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return BadLine(f"not JSON: {error}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _csv_lines(path: Path) -> Iterator[Line]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file, restkey="")
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Line(path, rows.line_num, BadLine(f"not CSV: {error}"))
                continue
            yield Line(path, rows.line_num, _csv_record(row))


def _csv_record(row: dict[str, Any]) -> Any:
    if "" in row:
        return BadLine("more cells than columns")
    record = {}
    for name, cell in row.items():
        if cell is None or cell == "":
            continue
        try:
            record[name] = _CSV_READERS.get(name, str)(cell)
        except (ValueError, KeyError, RecursionError) as error:
            return BadLine(f"{name}: {cell[:80]!r} cannot be read: {error}")
    return record


def _parquet_rows(path: Path) -> Iterator[Line]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Line(path, number, {k: _plain(v) for k, v in row.items() if v is not None})


def _plain(value: Any) -> Any:
    """Maps arrive as lists of pairs, structs with their empty fields."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return dict(value)
    if isinstance(value, dict):
        return {key: inner for key, inner in value.items() if inner is not None}
    return value
