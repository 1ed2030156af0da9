"""The scenarios of a game day by name, and what is left of them for people and programs."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.gameday import alerts, events, serving, soak
from app.gameday.serving_report import plot, serving_table_rows

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """How a scenario is to be played. `say` tells people how far it is."""

    is_short: bool
    seed: int
    with_kafka: bool
    say: Say


@dataclass(frozen=True, slots=True)
class Result:
    """`draw` makes a plot, where there is something to be seen."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    passed: bool
    content: Mapping[str, Any]
    draw: Callable[[Path], None] | None = None


def run_scenario(name: str, order: Order, folder: Path | None = None) -> Result:
    """Plays a scenario in a folder of its own within this one; None: in one that is gone afterwards.

    Raises:
        GamedayFailed: a stack did not come up.
    """
    if folder is not None:
        shutil.rmtree(folder / name, ignore_errors=True)
        return SCENARIOS[name](order, folder / name)
    with TemporaryDirectory(prefix="gameday-") as temporary:
        return SCENARIOS[name](order, Path(temporary))


def write_results(results: Mapping[str, Result], path: Path) -> None:
    """The content of the one scenario, or of several by name; plots lie beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: result.content for name, result in results.items()}
    if len(results) == 1:
        (content,) = content.values()
    else:
        content["passed"] = all(result.passed for result in results.values())
    path.write_text(json.dumps(content, indent=2))
    for result in results.values():
        if result.draw is not None:
            result.draw(path.with_suffix(".png"))


def _events(order: Order, folder: Path) -> Result:
    plan = replace(events.SHORT if order.is_short else events.FULL, seed=order.seed)
    report = events.run_events_gameday(plan, folder, order.with_kafka, order.say)
    header, *rows = events.table_rows(report)
    title = f"events: {plan.rate:g} a second, seed {order.seed}"
    return Result(title, header, rows, report.passed, report.to_json())


def _serving(order: Order, folder: Path) -> Result:
    plan = replace(serving.SHORT if order.is_short else serving.FULL, seed=order.seed)
    report = serving.run_serving_gameday(plan, folder, order.with_kafka, order.say)
    header, *rows = serving_table_rows(report)
    title = f"serving: {report.rate:.0f} of {report.capacity_rps:.0f} slates a second, seed {order.seed}"
    return Result(title, header, rows, report.passed, report.to_json(), lambda path: plot(report, path))


def _soak(order: Order, folder: Path) -> Result:
    plan = replace(soak.SHORT if order.is_short else soak.FULL, seed=order.seed)
    report = soak.run_soak(plan, folder, order.say)
    header, *rows = soak.soak_table_rows(report)
    title = f"soak: {report.rate:.0f} of {report.capacity_rps:.0f} slates a second for {report.seconds:.0f} s"
    return Result(title, header, rows, report.passed, report.to_json())


def _alerts(order: Order, folder: Path) -> Result:
    plan = replace(alerts.SHORT if order.is_short else alerts.FULL, seed=order.seed)
    report = alerts.run_alerts_gameday(plan, folder, order.with_kafka and not order.is_short, order.say)
    header, *rows = alerts.alerts_table_rows(report)
    title = f"alerts: a minute of the rules takes {60 * report.pace:g} s, seed {order.seed}"
    return Result(title, header, rows, report.passed, report.to_json())


# The soak is no game day of its own, and alerts need Prometheus: these are asked for by their names.
ALL = ("events", "serving")
SCENARIOS: Mapping[str, Callable[[Order, Path], Result]] = {
    "alerts": _alerts,
    "events": _events,
    "serving": _serving,
    "soak": _soak,
}
