"""Runs an import: parser to loader, rejects to their file, counts to the caller."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.domain.errors import ImportRefused
from app.domain.ports import Loaded
from app.domain.types import Event, Proposition, User
from app.imports import metarank, movielens, native
from app.imports.records import ImportRules, Parsed, Record, Reject

FORMATS: dict[str, Callable[[Iterable[Path], ImportRules], Parsed]] = {
    "native": native.parse,
    "metarank": metarank.parse,
    "movielens": movielens.parse,
}


class Loader(Protocol):
    """Takes records into the stores; see `app.adapters.import_loader`."""

    def add(self, record: Record) -> None: ...
    def finish(self, shift_to_now: bool) -> Loaded: ...


@dataclass(slots=True)
class ImportReport:
    read: Counter = field(default_factory=Counter)
    rejected: int = 0
    loaded: Loaded | None = None


def run_import(
    source: Parsed,
    loader: Loader,
    rejects_path: Path,
    *,
    shift_to_now: bool = False,
    strict: bool = False,
    on_progress: Callable[[int], None] = lambda count: None,
) -> ImportReport:
    """Imports all good lines and writes the others, with number and reason, to `rejects_path`.

    Raises:
        ImportRefused: with `strict`, at the first bad line; nothing is imported.
    """
    report = ImportReport()
    rejects = None
    try:
        for count, parsed in enumerate(source, start=1):
            if isinstance(parsed, Reject):
                if strict:
                    raise ImportRefused(f"{parsed.line.path}, line {parsed.line.number}: {parsed.reason}")
                rejects = rejects or rejects_path.open("w", encoding="utf-8")
                rejects.write(json.dumps(_reject_record(parsed), ensure_ascii=False) + "\n")
                report.rejected += 1
            else:
                loader.add(parsed[1])
                report.read[_NAMES[type(parsed[1])]] += 1
            on_progress(count)
    finally:
        if rejects is not None:
            rejects.close()
    report.loaded = loader.finish(shift_to_now)
    return report


_NAMES = {User: "users", Proposition: "propositions", Event: "events"}


def _reject_record(reject: Reject) -> dict:
    content = reject.line.content
    shown = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
    return {
        "file": str(reject.line.path),
        "line": reject.line.number,
        "reason": reject.reason,
        "content": shown[:2_000].encode(errors="replace").decode(),
    }
