"""Metarank's event format: JSON Lines of `item`, `user`, `ranking` and `interaction` events.

An item of a ranking is an impression at its position; the ranking's id names the slate.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from app.domain.context import is_valid_id
from app.domain.errors import ImportRefused
from app.events.intake import MAX_TAGS
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

_MILLISECOND = 0.001
# What an interaction of some type means here; other types are refused by name.
INTERACTIONS = {
    "click": "click",
    "view": "click",
    "conversion": "conversion",
    "purchase": "conversion",
    "buy": "conversion",
    "order": "conversion",
    "like": "click",
    "dismiss": "dismiss",
    "dislike": "dismiss",
    "skip": "dismiss",
}


def parse(paths: Iterable[Path], rules: ImportRules) -> Parsed:
    readers = {"item": _item, "user": _user, "ranking": _ranking, "interaction": _interaction}

    def to_records(line: Line) -> list[Record]:
        try:
            event = json.loads(line.content)
        except (ValueError, RecursionError) as error:
            raise BadLine(f"not JSON: {error}") from error
        kind = event.get("event") if isinstance(event, dict) else None
        if not isinstance(kind, str) or kind not in readers:
            raise BadLine("event: must be item, user, ranking or interaction")
        try:
            return [to_record(name, data, rules) for name, data in readers[kind](event)]
        except KeyError as error:
            raise BadLine(f"{error.args[0]}: is missing") from error
        except (TypeError, AttributeError) as error:
            raise BadLine(f"not of the shape of a {kind} event: {error}") from error

    for path in paths:
        yield from parse_lines(_lines(path), to_records)


def _lines(path: Path) -> Iterator[Line]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield Line(path, number, raw)
    except (OSError, EOFError) as error:
        raise ImportRefused(f"{path} cannot be read: {error}") from error


_Datum = tuple[str, dict[str, Any]]


def _item(event: Mapping[str, Any]) -> Iterator[_Datum]:
    fields = _fields(event)
    genres, tags = fields.pop("genres", None) or [], fields.pop("tags", None) or []
    proposition_id = str(event["item"])
    yield (
        "propositions",
        {
            "proposition_id": proposition_id,
            "title": str(fields.pop("title", proposition_id)),
            "category": genres[0] if genres else None,
            "tags": _clean_tags([*genres, *tags]),
            "value": fields.pop("value", None),
            "attributes": fields,
            "created_at": _timestamp(event),
        },
    )


def _clean_tags(texts: Iterable[Any]) -> list[str]:
    """Tags as people typed them: trimmed, each once, without those that cannot be an id."""
    trimmed = (str(text).strip() for text in texts)
    return [tag for tag in dict.fromkeys(trimmed) if is_valid_id(tag)][:MAX_TAGS]


def _user(event: Mapping[str, Any]) -> Iterator[_Datum]:
    fields = _fields(event)
    yield (
        "users",
        {
            "user_id": str(event["user"]),
            "age_years": fields.pop("age", None),
            "gender": fields.pop("gender", None),
            "segment": fields.pop("segment", None),
            "attributes": fields,
            "created_at": _timestamp(event),
        },
    )


def _ranking(event: Mapping[str, Any]) -> Iterator[_Datum]:
    ranking_id = str(event["id"])
    for position, item in enumerate(event["items"], start=1):
        yield (
            "events",
            {
                "event_id": f"{ranking_id}:{position}",
                "event_type": "impression",
                "proposition_id": str(item["id"]),
                "request_id": ranking_id,
                "position": position,
                **_who_and_when(event),
            },
        )


def _interaction(event: Mapping[str, Any]) -> Iterator[_Datum]:
    if event.get("type") not in INTERACTIONS:
        raise BadLine(f"type: {event.get('type')!r} is none of {', '.join(INTERACTIONS)}")
    yield (
        "events",
        {
            "event_id": str(event["id"]),
            "event_type": INTERACTIONS[event["type"]],
            "proposition_id": str(event["item"]),
            "request_id": event.get("ranking"),
            **_who_and_when(event),
        },
    )


def _who_and_when(event: Mapping[str, Any]) -> dict[str, Any]:
    user = event.get("user")
    context = {name: value for name, value in _fields(event).items() if isinstance(value, str)}
    return {
        "user_id": None if user is None else str(user),
        "timestamp": _timestamp(event),
        "context": context,
    }


def _timestamp(event: Mapping[str, Any]):
    return from_epoch(event["timestamp"], _MILLISECOND)


def _fields(event: Mapping[str, Any]) -> dict[str, Any]:
    return {field["name"]: field["value"] for field in event.get("fields") or []}
