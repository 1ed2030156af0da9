"""The alerts as they are shipped, and where they are documented."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.observability.scraping import FILES, RULES

ALERTMANAGER = FILES / "alertmanager/alertmanager.yml"
RUNBOOKS = Path(__file__).parents[2] / "docs/runbooks.md"
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
