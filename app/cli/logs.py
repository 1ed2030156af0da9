"""`propositions logs`: what is unusual in the log of the service, without anything but the log."""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from app.cli.console import console, errors, print_table
from app.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from app.logwatch.lines import Reader
    from app.logwatch.search import Search
    from app.logwatch.watch import Anomaly

EXIT_ANOMALIES = 3

commands = typer.Typer(name="logs", help="What the log of the service tells.", no_args_is_help=True)


@commands.callback()
def of_several() -> None:
    """What the log of the service tells."""


@commands.command()
def anomalies(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", allow_dash=True, help="Logs, also .gz, in any order; - is the standard input."
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what one file or the input grows by, until stopped.")
    ] = False,
    state_path: Annotated[
        Path | None,
        typer.Option(
            "--state", dir_okay=False, help="File that keeps what was learned, and up to when, between runs."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON; with --follow one object a line.")
    ] = False,
    until: Annotated[
        datetime | None,
        typer.Option(help="The log goes up to this moment (UTC): what is missing at its end is missing."),
    ] = None,
    window_s: Annotated[
        float, typer.Option("--window", min=1, help="Seconds in which lines are counted.")
    ] = 60,
    baseline_s: Annotated[
        float, typer.Option("--baseline", min=0, help="Seconds from the first line on that only teach.")
    ] = 3_600,
    half_life_s: Annotated[
        float, typer.Option("--half-life", min=60, help="Seconds after which what was seen weighs half.")
    ] = 21_600,
    false_alarms_per_day: Annotated[
        float, typer.Option(min=1e-6, max=1_000, help="How many chance alone may raise.")
    ] = 0.3,
    least_ratio: Annotated[
        float, typer.Option(min=1, help="Latencies that grow by a smaller factor are of no interest.")
    ] = 1.2,
) -> None:
    """Look for bursts of errors, new kinds of them, slower answers and missing traffic. If there are any, end with status 3."""
    if follow and len(paths) > 1:
        raise typer.BadParameter("--follow takes one file")
    from app.logwatch.lines import Reader
    from app.logwatch.search import Search
    from app.logwatch.watch import Plan

    search = Search(Plan(window_s, baseline_s, half_life_s, false_alarms_per_day, least_ratio), state_path)
    reader, found = Reader(), []
    with _stopped_politely() if follow else nullcontext():
        for anomaly in search.through(reader.follow(paths[0]) if follow else reader.read(paths)):
            found.append(anomaly)
            if follow:
                _tell(anomaly, as_json)
    if until is not None:
        found += search.until(until.replace(tzinfo=until.tzinfo or UTC).timestamp())
    search.save()
    if search.line_count + search.known_count == 0:
        raise ConfigurationError("there is no line of the service in this log")
    if not follow:
        _report(found, search, reader, as_json)
    if found:
        raise typer.Exit(EXIT_ANOMALIES)


@contextmanager
def _stopped_politely() -> Iterator[None]:
    """Told to end, the block ends, and what comes after it is done."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with suppress(KeyboardInterrupt):
        yield


def _report(found: Sequence["Anomaly"], search: "Search", reader: "Reader", as_json: bool) -> None:
    if as_json:
        read = {"lines": search.line_count, "known": search.known_count, "unreadable": reader.unreadable}
        period = {"from": _time(search.first_s), "to": _time(search.watch.now_s or None)}
        told = [described(anomaly) for anomaly in found]
        console.print_json(json.dumps({**read, **period, "anomalies": told}))
        return
    if found:
        table = Table("noticed (UTC)", "what", "where", "seen", "usual", "until")
        for anomaly in found:
            table.add_row(*_cells(anomaly))
        print_table(table)
    errors.print(
        f"{search.line_count:,} lines, {len(found):,} anomalies"
        + (f"; {search.known_count:,} lines were known" if search.known_count else "")
        + (f"; {reader.unreadable:,} lines are none of the service" if reader.unreadable else "")
        + ("; all of it only taught" if search.line_count and search.watch.is_learning else "")
    )


def _tell(anomaly: "Anomaly", as_json: bool) -> None:
    print(json.dumps(described(anomaly)) if as_json else "  ".join(_cells(anomaly)[:-1]), flush=True)


def described(anomaly: "Anomaly") -> dict[str, Any]:
    return {
        "kind": str(anomaly.kind),
        "subject": anomaly.subject,
        "began_at": _time(anomaly.began_s),
        "detected_at": _time(anomaly.detected_s),
        "last_at": _time(anomaly.last_s),
        "is_over": anomaly.is_over,
        "seen": round(anomaly.seen, 3),
        "expected": round(anomaly.expected, 3),
        "unit": anomaly.unit,
    }


def _cells(anomaly: "Anomaly") -> list[str]:
    return [
        f"{datetime.fromtimestamp(anomaly.detected_s, UTC):%Y-%m-%d %H:%M:%S}",
        str(anomaly.kind),
        anomaly.subject,
        f"{anomaly.seen:,.4g} {anomaly.unit}",
        f"{anomaly.expected:,.4g} {anomaly.unit}",
        f"{datetime.fromtimestamp(anomaly.last_s, UTC):%H:%M:%S}" if anomaly.is_over else "goes on",
    ]


def _time(at_s: float | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat()
