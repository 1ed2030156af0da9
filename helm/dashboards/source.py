"""What a Prometheus answers to the queries of panels."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from helm.dashboards.reading import Target

TIMEOUT_S = 60
POINTS = 240
_LABEL = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Series:
    """Values may be NaN or infinite."""

    name: str
    labels: Mapping[str, str]
    times_s: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Source:
    """A Prometheus, and the time that is shown."""

    url: str
    from_s: float
    to_s: float

    def courses(self, targets: Sequence[Target]) -> Sequence[Series]:
        """Over the time that is shown."""
        step_s = max((self.to_s - self.from_s) / POINTS, 1.0)
        window = {"start": self.from_s, "end": self.to_s, "step": step_s}
        return [
            _series(one["metric"], one["values"], target)
            for target in targets
            for one in self._ask("query_range", target, window)
        ]

    def latest(self, target: Target) -> Sequence[Series]:
        """At its end: one value each."""
        found = self._ask("query", target, {"time": self.to_s})
        return [_series(one["metric"], [one["value"]], target) for one in found]

    def _ask(self, kind: str, target: Target, when: Mapping[str, float]) -> Sequence[Mapping[str, Any]]:
        query = urlencode({"query": target.expression, **when})
        with urlopen(f"{self.url}/api/v1/{kind}?{query}", timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read())["data"]["result"]


def _series(labels: Mapping[str, str], points: Sequence[tuple[float, str]], target: Target) -> Series:
    name = _LABEL.sub(lambda match: labels.get(match[1], ""), target.legend).strip()
    return Series(
        name or "value", labels, [time_s for time_s, _ in points], [float(value) for _, value in points]
    )
