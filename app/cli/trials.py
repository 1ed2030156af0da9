"""Commands that try the whole service, on stacks of their own."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from app.cli.console import errors, print_table

commands = typer.Typer()


@commands.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop after the second slate.")] = False,
) -> None:
    """Run the whole way on MovieLens 100k: import, features, training, service, slates."""
    from app.demo import run_demo

    run_demo(once)


@commands.command()
def gameday(
    scenario: Annotated[
        str, typer.Option(help="What is tried: events, serving, both (all), soak or alerts.")
    ] = "all",
    short: Annotated[
        bool, typer.Option("--short", help="A minute or two of each instead of a quarter of an hour.")
    ] = False,
    kafka: Annotated[
        bool,
        typer.Option(help="Try some of it again with a Kafka broker before PostgreSQL, if there is one."),
    ] = True,
    seed: Annotated[int, typer.Option(help="Decides what is killed when.")] = 7,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="File for the result. A plot of the slates lies beside it."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Folder for the stacks, with their logs. Default: one that is removed."
        ),
    ] = None,
) -> None:
    """Start a stack of its own, kill parts of it under load, and see whether its promises hold. Else end with status 1."""
    from app.gameday.run import ALL, SCENARIOS, Order, run_scenario, write_results

    names = list(ALL) if scenario == "all" else [scenario]
    if not set(names) <= set(SCENARIOS):
        raise typer.BadParameter(f"--scenario must be one of {', '.join(SCENARIOS)}, all")
    order = Order(short, seed, kafka, lambda text: errors.print(text))
    results = {}
    for name in names:
        result = results[name] = run_scenario(name, order, keep)
        table = Table(*result.header, title=result.title)
        for row in result.rows:
            table.add_row(*row)
        print_table(table)
    if json_path is not None:
        write_results(results, json_path)
    if not all(result.passed for result in results.values()):
        raise typer.Exit(1)
