"""The commands of `propositions` that make and measure models."""

import json
import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.settings import load_settings

console = Console(highlight=False, soft_wrap=True)

Seed = Annotated[
    int, typer.Option(help="Two runs on the same data with one seed give one model and one report.")
]
Trials = Annotated[int, typer.Option(min=0, help="Sets of parameters to try; 0 takes the defaults.")]
Minutes = Annotated[
    float,
    typer.Option(min=0.0, help="The search ends after so long; what it finds then depends on the machine."),
]
Engine = Annotated[str, typer.Option(help="local, or dask: on many machines.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="Of a Dask scheduler, as in tcp://scheduler:8786; without it a cluster on this machine."
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="A data set of `propositions dataset build` instead of the database.",
    ),
]
Embargo = Annotated[
    float, typer.Option(min=0.0, help="Seconds between the parts of the data, for labels that come late.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write all figures there.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write a report with plots there.")]

GATE_REFUSED = 2


def train(
    seed: Seed = 7,
    trials: Trials = 0,
    minutes: Minutes = math.inf,
    engine: Engine = "local",
    address: Address = None,
    dataset: Folder = None,
    embargo_s: Embargo = 0.0,
    json_: Json = None,
    html: Html = None,
) -> None:
    """Train a ranker on the recorded slates, report how it does on later ones, and let the gate judge it."""
    trained = _train(seed, trials, minutes, engine, address, dataset, embargo_s)
    _write(trained, json_, html)
    version = trained.version
    console.print(
        f"model {version} is in {load_settings().model_dir}; "
        f"serve it with `propositions models promote {version}`"
    )


def retrain(
    seed: Seed = 7,
    trials: Trials = 20,
    minutes: Minutes = 10.0,
    engine: Engine = "local",
    address: Address = None,
    embargo_s: Embargo = 0.0,
    json_: Json = None,
    html: Html = None,
) -> None:
    """Build, tune, train, evaluate, and promote what passes the gate: one command for a schedule.

    Exits with 0 if the new model serves, with 2 if the gate kept the present one, with 1 if anything failed.
    """
    from training.registry import open_promotions

    trained = _train(seed, trials, minutes, engine, address, None, embargo_s)
    _write(trained, json_, html)
    if not trained.verdict.is_passed:
        console.print(f"the gate refuses model {trained.version}: the present one goes on serving")
        sys.exit(GATE_REFUSED)
    open_promotions(load_settings()).promote(trained.version, actor="retrain")
    console.print(f"model {trained.version} serves")


def evaluate(
    version: Annotated[
        str, typer.Argument(help="A version of `propositions models list`; `serving` is the one that serves.")
    ] = "serving",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="Of a foreign file to evaluate on instead: metarank, native or movielens."
        ),
    ] = None,
    events: Annotated[Path | None, typer.Option(exists=True, help="The foreign file.")] = None,
    split_at: Annotated[
        float | None,
        typer.Option(
            help="Train on slates before this moment, test on the others: milliseconds since the epoch."
        ),
    ] = None,
    seed: Seed = 7,
    trials: Trials = 0,
    minutes: Minutes = math.inf,
    json_: Json = None,
    html: Html = None,
) -> None:
    """Measure a model on slates later than it was trained on; or train and measure one on a foreign file.

    For a foreign file everything happens in a scratch database, from import to report, and nothing of it is left.
    """
    from training import assessment

    if (format_ is None) != (events is None):
        raise typer.BadParameter("--format and --events belong together")
    if events is None:
        measured = assessment.of_version(load_settings(), version, seed)
    else:
        measured = assessment.of_file(
            events,
            format_,
            None if split_at is None else split_at / 1_000.0,
            _choices(seed, trials, minutes, "local", None),
            _say,
        )
    _write(measured, json_, html)


def _train(
    seed: int,
    trials: int,
    minutes: float,
    engine: str,
    address: str | None,
    dataset: Path | None,
    embargo_s: float,
):
    from training.run import TrainingData, build, open_folder, time_split, train_model

    settings, choices = load_settings(), _choices(seed, trials, minutes, engine, address)
    if dataset is None:
        _say("joining point-in-time features")
        schema, slates = build(settings)
        data = TrainingData.of(time_split(slates, embargo_s))
    else:
        schema, data = open_folder(settings, dataset, embargo_s)
    return train_model(settings, schema, data, datetime.now(UTC), choices, _say)


def _choices(seed: int, trials: int, minutes: float, engine: str, address: str | None):
    from training.run import Choices
    from training.tune import Limits

    if engine not in ("local", "dask"):
        raise typer.BadParameter("must be local or dask", param_hint="--engine")
    return Choices(
        seed=seed,
        limits=Limits(trials, 60.0 * minutes) if trials else None,
        engine=engine,
        address=address,
    )


def _say(step: str) -> None:
    console.print(f"{step} ...")


def _write(measured: Any, json_path: Path | None, html_path: Path | None) -> None:
    """Prints what was measured, and writes it where that is asked for."""
    from training.report import print_report, render_html

    print_report(measured.report, console)
    if measured.facts.checks:
        _print_checks(measured.facts.checks)
    contents: list[tuple[Path | None, Callable[[], str]]] = [
        (json_path, lambda: json.dumps(measured.report.to_json(), indent=2, sort_keys=True) + "\n"),
        (html_path, lambda: render_html(measured.report, measured.facts)),
    ]
    for path, content in contents:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content())
            console.print(f"wrote {path}")


def _print_checks(checks) -> None:
    table = Table("check", "outcome", "measured", "required", title="Gate")
    for check in checks:
        table.add_row(check.name, check.outcome, check.measured, check.required)
    console.print(table)
    for check in checks:
        if check.outcome != "passed":
            console.print(f"{check.name}: {check.reason}")
