"""The dashboards as they are on disk, with their variables filled in: for tests, and for pictures."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helm.dashboards.all import FOLDER

# As when everything is chosen, a machine is scraped each second, and the last minutes are shown.
VARIABLES: Mapping[str, str] = {
    "job": ".+",
    "instance": ".+",
    "projector_job": ".+",
    "projector": ".+",
    "objective_window": "1d",
    "__rate_interval": "15s",
    "__range": "5m",
}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Target:
    """A query of a panel, with its variables filled in."""

    expression: str
    legend: str
    is_instant: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """`content` is what Grafana reads."""

    dashboard: str
    title: str
    kind: str
    content: Mapping[str, Any]
    targets: Sequence[Target]


def contents() -> Mapping[str, Mapping[str, Any]]:
    """What Grafana reads, by the name of the file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(content: Mapping[str, Any], variables: Mapping[str, str] = VARIABLES) -> Iterator[Panel]:
    """From left to right and down, without rows' titles."""
    for panel in content["panels"]:
        if panel["type"] != "row":
            targets = [
                Target(
                    filled_in(target["expr"], variables),
                    target.get("legendFormat", ""),
                    target.get("instant", False),
                )
                for target in panel["targets"]
            ]
            yield Panel(content["title"], panel["title"], panel["type"], panel, targets)


def filled_in(expression: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """Raises KeyError: it has a variable that is not known."""
    return _VARIABLE.sub(lambda match: variables[match[1] or match[2]], expression)
