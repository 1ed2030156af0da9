"""`propositions dataset`: the data set of training as files, and what is wrong with it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.settings import Settings, load_settings

console = Console(highlight=False, soft_wrap=True)

dataset = typer.Typer(help="Build the data set of training, and check it.", no_args_is_help=True)


class Engine(StrEnum):
    POSTGRES = "postgres"
    DUCKDB = "duckdb"


class SplitBy(StrEnum):
    NONE = "none"
    TIME = "time"
    USER = "user"


LabelName = Annotated[str, typer.Option("--label", help="click, engagement or retention.")]
Window = Annotated[float, typer.Option(help="Seconds after an impression in which outcomes are its own.")]
Session = Annotated[float, typer.Option(help="Seconds that a session lasts, for the label engagement.")]
ReturnDays = Annotated[float, typer.Option(help="Days in which a user comes back, for the label retention.")]
Negatives = Annotated[
    int, typer.Option(min=0, help="Propositions to draw per positive, where only outcomes were logged.")
]
Seed = Annotated[int, typer.Option(help="Of all draws.")]


@dataset.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to write; a data set that is there is replaced.")],
    engine: Annotated[
        Engine, typer.Option(help="What joins features: the database, or DuckDB on an export.")
    ] = (Engine.POSTGRES),
    parquet: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder of `propositions export`, for duckdb."),
    ] = None,
    label: LabelName = "click",
    attribution_window_s: Window = 86_400.0,
    session_s: Session = 1_800.0,
    return_days: ReturnDays = 7.0,
    sampled_negatives: Negatives = 0,
    split: Annotated[
        SplitBy, typer.Option(help="Write train, validation and test as folders of their own, cut by this.")
    ] = SplitBy.NONE,
    embargo_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds between the parts that are cut by time.")
    ] = 0.0,
    seed: Seed = 0,
) -> None:
    """Write labelled slates with their point-in-time features to a folder."""
    from training.labels import LabelOptions

    if (engine is Engine.DUCKDB) != (parquet is not None):
        raise typer.BadParameter("--engine duckdb and --parquet belong together")
    options = LabelOptions(label, attribution_window_s, session_s, return_days, sampled_negatives, seed)
    settings = load_settings()
    schema, parts = _parts(settings, options, parquet)
    if split is SplitBy.NONE:
        _write(out, parts, schema, options)
    else:
        (whole,) = _parts(settings, options, parquet, in_parts=False)[1]
        for name, part in _split(whole, split, embargo_s, seed).items():
            _write(out / name, [part], schema, options)


def _parts(settings: Settings, options, parquet: Path | None, in_parts: bool = True) -> tuple[Any, Iterable]:
    """The schema, and the data set in parts that fit into memory, or in one."""
    from app.adapters.database import batch_database
    from app.adapters.feature_store import load_schema, open_feature_store
    from training.joins import build_dataset

    store = open_feature_store(settings)
    schema, half_life_count = load_schema(store), len(settings.half_lives_s)
    if parquet is None:

        def joined() -> Iterator:
            yield build_dataset(store, schema, half_life_count, options, batch_database(settings))

        return schema, joined()
    from training.duckdb_join import build_dataset_from_parquet, parts_from_parquet

    if in_parts:
        return schema, parts_from_parquet(parquet, schema, half_life_count, options)
    return schema, [build_dataset_from_parquet(parquet, schema, half_life_count, options)]


def _split(whole, split: SplitBy, embargo_s: float, seed: int) -> dict[str, Any]:
    from training.splits import split_by_time, split_by_user

    cut = (
        split_by_time(whole, embargo_s=embargo_s)
        if split is SplitBy.TIME
        else split_by_user(whole, seed=seed)
    )
    return {"train": cut.train, "validation": cut.validation, "test": cut.test}


def _write(folder: Path, parts: Iterable, schema, options) -> None:
    from training.dataset_folder import DatasetFolder

    written = DatasetFolder.write(folder, parts, schema, options).manifest
    console.print(f"{written.slates:,} slates with {written.impressions:,} impressions are in {folder}")


@dataset.command()
def lint(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dataset", exists=True, file_okay=False, help="A data set of `build`; else from the database."
        ),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all findings there.")] = None,
) -> None:
    """Look for what is wrong with the event log and with the data set made of it.

    Of a data set in parts the newest is looked at. Exits with 1 if there are errors; warnings do not count.
    """
    from training.lint.findings import Severity

    findings = sorted(
        _findings(load_settings(), folder), key=lambda finding: finding.severity is Severity.WARNING
    )
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    if not findings:
        console.print("nothing is wrong")
        return
    table = Table()
    for name in ("severity", "finding", "count", "share", "what it means", "for example"):
        table.add_column(name)
    for finding in findings:
        table.add_row(
            finding.severity,
            finding.name,
            f"{finding.count:,}",
            f"{finding.share:.2%}",
            escape(finding.message),
            escape(", ".join(finding.examples[:3])),
        )
    console.print(table)
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)


def _findings(settings: Settings, folder: Path | None) -> list:
    from app.adapters.database import batch_database
    from app.features.assembly import learn_spec
    from training.labels import LabelOptions
    from training.lint.dataset import lint_dataset
    from training.lint.events import lint_events
    from training.matrix import matrix

    if folder is None:
        schema, parts = _parts(settings, LabelOptions(), None)
    else:
        schema, parts = _read(settings, folder)
    *_, newest = parts
    spec = learn_spec(schema, settings.half_lives_s, newest.rows)
    scores = _serving_scores(settings, schema, newest)
    return [
        *lint_events(batch_database(settings)),
        *lint_dataset(newest, matrix(spec, newest), spec.columns, model_scores=scores),
    ]


def _read(settings: Settings, folder: Path) -> tuple[Any, Iterable]:
    from app.adapters.feature_store import load_schema, open_feature_store
    from app.domain.errors import ConfigurationError
    from training.dataset_folder import DatasetFolder

    schema, opened = load_schema(open_feature_store(settings)), DatasetFolder(folder)
    if opened.manifest.schema_hash != schema.hash():
        raise ConfigurationError(f"{folder} has other features than the feature repo declares: make it again")
    return schema, opened.parts()


def _serving_scores(settings: Settings, schema, slates):
    """Those of the model that serves; None if there is none that fits."""
    from app.adapters.model_store import ModelStore
    from app.domain.errors import ModelRefused
    from training.matrix import matrix

    store = ModelStore(settings.model_dir, settings.half_lives_s)
    try:
        active = store.active()
        if active is None:
            return None
        model = store.load(active.version, schema)
    except ModelRefused as error:
        console.print(f"not compared with the model that serves: {error}")
        return None
    return model.score(matrix(model.spec, slates))
