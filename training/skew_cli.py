"""`propositions skew`: whether serving reads what training reads."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.settings import load_settings

console = Console(highlight=False, soft_wrap=True)


def skew(
    sample: Annotated[int, typer.Option(min=1, help="Decisions to compare, drawn at random.")] = 200,
    hours: Annotated[float, typer.Option(min=0.0, help="How far back they may lie.")] = 24.0,
    seed: Annotated[int, typer.Option(help="One seed draws one sample.")] = 0,
    max_mismatch: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest share of wrong values that a column may have.")
    ] = 0.01,
    lag_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds for which events may be on their way to the online store.")
    ] = 5.0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the whole report there.")] = None,
    metrics_file: Annotated[
        Path | None,
        typer.Option(help="Write the shares there for the textfile collector of Prometheus' node exporter."),
    ] = None,
) -> None:
    """Compare the features that logged decisions were made with to those that training would have read.

    Exits with 1 if a column has more mismatches than allowed.
    """
    from app.adapters.database import batch_database
    from app.adapters.feature_store import load_schema, open_feature_store
    from app.adapters.model_store import ModelStore
    from training.skew import SkewOptions, audit, write_metrics

    settings = load_settings()
    store = open_feature_store(settings)
    options = SkewOptions(
        since=datetime.now(UTC) - timedelta(hours=hours),
        sample=sample,
        seed=seed,
        lag_s=lag_s,
        # A change is in the snapshot within three of its refreshes.
        candidate_lag_s=lag_s + 3 * settings.snapshot_refresh_s,
    )
    models = ModelStore(settings.model_dir, settings.half_lives_s)
    report = audit(
        store, load_schema(store), batch_database(settings), models, settings.half_lives_s, options
    )
    _print(report)
    if json_path is not None:
        json_path.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    if metrics_file is not None:
        write_metrics(report, metrics_file)
    if report.decision_count == 0:
        console.print("no decision could be compared")
        raise typer.Exit(1)
    if report.worst_share > max_mismatch:
        console.print(f"a column has {report.worst_share:.2%} mismatches, allowed are {max_mismatch:.2%}")
        raise typer.Exit(1)


def _print(report) -> None:
    table = Table(title=f"{report.decision_count} decisions")
    for name in ("feature", "values", "mismatches", "lagging", "worst: served", "recomputed", "of"):
        table.add_column(name)
    shown = [c for c in report.columns if c.mismatch_share or c.lagging_share]
    for column in shown:
        worst = column.examples[0] if column.examples else None
        table.add_row(
            escape(column.name),
            f"{column.compared_count:,}",
            f"{column.mismatch_share:.2%}",
            f"{column.lagging_share:.2%}",
            "" if worst is None else _number(worst.served),
            "" if worst is None else _number(worst.recomputed),
            "" if worst is None else escape(f"{worst.proposition_id} in {worst.request_id}"),
        )
    if shown:
        console.print(table)
    equal = len(report.columns) - len(shown)
    console.print(
        f"{report.decision_count} decisions; {equal} of {len(report.columns)} columns agree in every value"
    )
    for reason, count in report.skipped.items():
        console.print(f"{count} decisions were skipped: {reason}")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
