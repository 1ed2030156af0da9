"""The training commands of `propositions`."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.settings import load_settings

console = Console(highlight=False, soft_wrap=True)

models = typer.Typer(help="List, promote and roll back models.", no_args_is_help=True)


def train(
    seed: Annotated[int, typer.Option(help="Two runs on the same data with one seed give one model.")] = 7,
) -> None:
    """Train a ranker on the recorded slates and report how it does on later ones."""
    from app.adapters.database import service_database
    from training.registry import ModelTable
    from training.run import train_model

    settings = load_settings()
    trained = train_model(settings, datetime.now(UTC), seed, lambda step: console.print(f"{step} ..."))
    database = service_database(settings)
    ModelTable(database).add(trained.version, trained.manifest)
    _print_report(trained.report)
    console.print(
        f"model {trained.version} is in {settings.model_dir}; "
        f"serve it with `propositions models promote {trained.version}`"
    )


def _print_report(report) -> None:
    from training.evaluate import METRICS
    from training.run import MODEL

    table = Table(title=f"{report.slate_count:,} later slates, mean and 95 % interval")
    for column in ("ranker", *METRICS, f"{MODEL} gains, ndcg@10"):
        table.add_column(column)
    for name, metrics in report.rankers.items():
        gain = report.paired.get(name)
        table.add_row(
            name,
            *(f"{metrics[m].mean:.4f} [{metrics[m].low:.4f}, {metrics[m].high:.4f}]" for m in METRICS),
            "" if gain is None else "{0.mean:+.4f} [{0.low:+.4f}, {0.high:+.4f}]".format(gain["ndcg@10"]),
        )
    console.print(table)


@models.command("list")
def list_models() -> None:
    """Show the versions on this machine; the one that serves is marked."""
    from app.adapters.model_store import ModelStore

    settings = load_settings()
    store = ModelStore(settings.model_dir, settings.half_lives_s)
    active = store.active()
    for version in store.versions():
        ndcg = store.manifest(version)["metrics"]["rankers"]["xgboost"]["ndcg@10"]["mean"]
        mark = "  serves" if active and active.version == version else ""
        console.print(f"{version}  ndcg@10 {ndcg:.4f}{mark}")
    if not store.versions():
        console.print("no models yet: run `propositions train`")


@models.command()
def promote(
    version: Annotated[str, typer.Argument(help="A version of `propositions models list`, or `latest`.")],
) -> None:
    """Let a version serve. It is checked first: a damaged or unfitting model is refused."""
    from training.registry import open_promotions

    console.print(f"model {open_promotions(load_settings()).promote(version)} serves")


@models.command()
def rollback() -> None:
    """Let the version serve that served before the present one."""
    from training.registry import open_promotions

    console.print(f"model {open_promotions(load_settings()).roll_back()} serves again")
