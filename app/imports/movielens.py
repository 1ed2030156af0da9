"""MovieLens 100k as the PyPI wheel of RecBole ships it (files `ml-100k.user`, `.item`, `.inter`).

A rating is an impression; 4 and more is also a click, 5 also a conversion. The context is the daypart
and the weekday of the rating. Ratings of one user that follow each other within a minute, at most 20
of them, count as one slate.
"""

import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from app.domain.errors import ImportRefused
from app.imports.records import (
    BadLine,
    ImportRules,
    Line,
    Parsed,
    Record,
    from_epoch,
    parse_lines,
    to_record,
)

CLICK_RATING, CONVERSION_RATING = 4.0, 5.0
SLATE_GAP_S, SLATE_MAX = 60.0, 20
_FOLDER_IN_WHEEL = "recbole/dataset_example/ml-100k"


def parse(paths: Iterable[Path], rules: ImportRules) -> Parsed:
    for path in paths:
        yield from parse_lines(_table(path, "user"), lambda line: [_user(line, rules)])
        yield from parse_lines(_table(path, "item"), lambda line: [_proposition(line, rules)])
        # Slates need the ratings of a user in the order of time; the file has them in none.
        ratings = list(_table(path, "inter"))
        yield from parse_lines(_by_user_and_time(ratings), _Slates(rules))


def _user(line: Line, rules: ImportRules) -> Record:
    row = line.content
    data = {
        "user_id": _cell(row, "user_id"),
        "age_years": _number(row, "age"),
        "gender": row["gender"],
        "segment": row["occupation"],
        "attributes": {"zip_code": row["zip_code"]},
    }
    return to_record("users", data, rules)


def _proposition(line: Line, rules: ImportRules) -> Record:
    row = line.content
    genres = _cell(row, "class").split()
    year = row["release_year"]
    data = {
        "proposition_id": _cell(row, "item_id"),
        "title": f"{_cell(row, 'movie_title')} ({year})" if year else _cell(row, "movie_title"),
        "category": genres[0] if genres else None,
        "tags": genres,
        "attributes": {"release_year": int(year)} if year.isdigit() else {},
        "created_at": datetime(int(year), 1, 1, tzinfo=UTC) if year.isdigit() else None,
    }
    return to_record("propositions", data, rules)


class _Slates:
    """Turns ratings, ordered by user and time, into events, and names the slate of each."""

    def __init__(self, rules: ImportRules) -> None:
        self._rules = rules
        self._user_id: str | None = None
        self._last_s = 0.0
        self._size = 0
        self._request_id = ""

    def __call__(self, line: Line) -> list[Record]:
        row = line.content
        user_id, item_id = _cell(row, "user_id"), _cell(row, "item_id")
        rating, at = _number(row, "rating"), from_epoch(row["timestamp"], 1.0)
        self._advance(user_id, at)
        types = ["impression"]
        types += ["click"] if rating >= CLICK_RATING else []
        types += ["conversion"] if rating >= CONVERSION_RATING else []
        return [
            to_record(
                "events",
                {
                    "event_id": f"ml-100k:{user_id}:{item_id}:{event_type}",
                    "event_type": event_type,
                    "user_id": user_id,
                    "proposition_id": item_id,
                    "timestamp": at,
                    "request_id": self._request_id,
                },
                self._rules,
            )
            for event_type in types
        ]

    def _advance(self, user_id: str, at: datetime) -> None:
        at_s = at.timestamp()
        if user_id != self._user_id or at_s - self._last_s > SLATE_GAP_S or self._size == SLATE_MAX:
            self._size = 0
            self._request_id = (
                f"ml-100k:{user_id}:{at_s:.0f}:{0 if user_id != self._user_id else self._next()}"
            )
        self._user_id, self._last_s = user_id, at_s
        self._size += 1

    def _next(self) -> int:
        return int(self._request_id.rpartition(":")[2]) + 1


def _by_user_and_time(ratings: Sequence[Line]) -> Iterator[Line]:
    by_user: dict[str, list[tuple[float, Line]]] = defaultdict(list)
    for line in ratings:
        try:
            moment = float(line.content["timestamp"])
        except (TypeError, ValueError):
            moment = float("inf")  # refused below, with its line number
        by_user[line.content["user_id"]].append((moment, line))
    for _, lines in sorted(by_user.items()):
        yield from (line for _, line in sorted(lines, key=lambda pair: (pair[0], pair[1].number)))


def _table(path: Path, suffix: str) -> Iterator[Line]:
    """Rows of `ml-100k.<suffix>` as mappings without the types in the header ("age:token" -> "age")."""
    name = f"ml-100k.{suffix}"
    try:
        with _open(path, name) as file:
            columns = [column.partition(":")[0] for column in file.readline().rstrip("\n").split("\t")]
            for number, raw in enumerate(file, start=2):
                cells = raw.rstrip("\n").split("\t")
                # Short lines are filled up, so that the parser can name what is missing.
                cells += [""] * (len(columns) - len(cells))
                yield Line(path / name, number, dict(zip(columns, cells, strict=False)))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ImportRefused(f"{path} holds no {name}: give RecBole's wheel or its ml-100k folder") from error


def _open(path: Path, name: str) -> IO[str]:
    if path.is_dir():
        return (path / name).open(encoding="utf-8", errors="surrogateescape")
    return TextIOWrapper(
        zipfile.ZipFile(path).open(f"{_FOLDER_IN_WHEEL}/{name}"), "utf-8", errors="surrogateescape"
    )


def _cell(row: Mapping[str, str], name: str) -> str:
    if not row.get(name):
        raise BadLine(f"{name}: is missing")
    return row[name]


def _number(row: Mapping[str, str], name: str) -> float:
    try:
        return float(_cell(row, name))
    except ValueError as error:
        raise BadLine(f"{name}: {row.get(name)!r} is not a number") from error
