"""The `propositions` command. Training adds its commands through the entry points it declares."""

import sys
from importlib.metadata import entry_points

import typer

from app.api.logs import configure_logging
from app.cli import capacity, data, kafka, keys, logs, processes, servers, trials
from app.cli.console import errors
from app.domain.errors import PropositionsError

# What is not installed with the service alone, by the name under which it is imported.
EXTRA_OF = {
    **dict.fromkeys(("duckdb", "jinja2", "matplotlib", "optuna", "scipy", "sklearn"), "training"),
    **dict.fromkeys(("dask", "distributed"), "distributed"),
}

app = typer.Typer(
    name="propositions",
    help="Which propositions should this user see here and now?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (servers, data, processes, trials, capacity):
    app.registered_commands += module.commands.registered_commands
for group in (kafka, keys, logs):
    app.add_typer(group.commands)


def add_plugin_commands() -> None:
    """Adds the commands that other packages declare as entry points."""
    for command in entry_points(group="propositions.commands"):
        loaded = command.load()
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=command.name)
        else:
            app.command(command.name)(loaded)


def main() -> None:
    if not sys.stderr.isatty():
        # stdout is for what a command prints; where nobody looks on, its warnings are lines like those of the service.
        configure_logging("WARNING", stream=sys.stderr)
    add_plugin_commands()
    try:
        app()
    except PropositionsError as error:
        errors.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        errors.print(
            f"error: {error.name} is not installed: pip install 'predictive-propositions[{extra}]'",
            style="red",
            markup=False,
        )
        sys.exit(1)
