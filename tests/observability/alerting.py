"""The alerts as they are shipped, and where they are documented."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from app.gameday.scraping import FILES, RULES

ALERTMANAGER = FILES / "alertmanager/alertmanager.yml"
ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs/runbooks.md"
RULE_FILES = tuple(sorted(RULES.glob("*.yml")))
RULE_TESTS = tuple(sorted((Path(__file__).parent / "rules").glob("*.yml")))


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    expression: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def rules() -> Iterator[Mapping]:
    """Every rule of every file: those that record, and those that alert."""
    for path in RULE_FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


@cache
def alerts() -> dict[str, Alert]:
    return {
        rule["alert"]: Alert(rule["alert"], rule["expr"], rule["labels"], rule["annotations"])
        for rule in rules()
        if "alert" in rule
    }


def runbooks() -> dict[str, str]:
    """The sections by the name of their alert."""
    parts = re.split(r"^### (\w+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def succeeds(*command: object) -> None:
    """Runs one of the tools; its output is the failure's text."""
    # Alertmanager's looks for its templates from where it is started.
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
