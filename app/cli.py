"""The `propositions` command. Training adds its commands through the entry points it declares."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.adapters.signals import set_when_told_to_end
from app.api.logs import configure_logging
from app.capacity_command import capacity
from app.domain.errors import ConfigurationError, PropositionsError, StoreUnavailable
from app.features.slots import ALL_SLOTS
from app.kafka_commands import kafka
from app.key_commands import keys
from app.log_commands import logs
from app.settings import Settings, load_settings
from app.settings.loading import describe_settings

EXIT_REJECTS = 3
STANDBY_S = 1.0
# Columns of a table that goes to a file.
PAGE_WIDTH = 160
# What is not installed with the service alone, by the name under which it is imported.
EXTRA_OF = {
    **dict.fromkeys(("duckdb", "jinja2", "matplotlib", "optuna", "scipy", "sklearn"), "training"),
    **dict.fromkeys(("dask", "distributed"), "distributed"),
}

log = logging.getLogger(__name__)

app = typer.Typer(
    name="propositions",
    help="Which propositions should this user see here and now?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(kafka)
app.add_typer(keys)
app.add_typer(logs)
app.command()(capacity)
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


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


@app.command()
def settings() -> None:
    """Show every setting with its value; passwords are masked."""
    for name, value, help_text in describe_settings(load_settings()):
        console.print(f"[bold]{name}[/]={value}")
        console.print(f"    {help_text}", style="dim", soft_wrap=True, markup=False)


@app.command()
def up() -> None:
    """Start the embedded PostgreSQL and Redis-protocol server, unless DATABASE_URL and REDIS_URL are set."""
    config = load_settings()
    if is_external(config):
        console.print("DATABASE_URL and REDIS_URL are set: nothing to start")
        return
    from app.bootstrap.stores import embedded_servers

    embedded_servers(config).up()
    status()


@app.command()
def down() -> None:
    """Stop the embedded servers. Their data stay."""
    from app.bootstrap.stores import embedded_servers

    embedded_servers(load_settings()).down()
    status()


@app.command()
def status() -> None:
    """Show whether the embedded servers run."""
    config = load_settings()
    if is_external(config):
        console.print("DATABASE_URL and REDIS_URL are set: no embedded servers are used")
        return
    from app.bootstrap.stores import embedded_servers

    for server in embedded_servers(config).status():
        state = f"running, pid {server.pid}, port {server.port}" if server.is_running else "stopped"
        console.print(f"{server.name}: {state}")


def is_external(config: Settings) -> bool:
    """True if both addresses were given, and not found in the files of the embedded servers."""
    environment = Settings()
    return environment.database_url is not None and environment.redis_url is not None


@app.command()
def migrate(
    to: Annotated[str, typer.Option(help="Revision to go up to.")] = "head",
    down_to: Annotated[
        str | None, typer.Option(help="Revision to go back to instead; `base` is the empty database.")
    ] = None,
) -> None:
    """Bring the tables to a revision, under lock and statement timeouts."""
    from app.bootstrap.stores import migrate_database

    revision = migrate_database(load_settings(), up_to=to, down_to=down_to)
    console.print(f"the database is at revision {revision or 'base'}")


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Files, or what the format is made of.")],
    format_: Annotated[str, typer.Option("--format", help="native, metarank or movielens.")] = "native",
    shift_to_now: Annotated[
        bool, typer.Option("--shift-to-now", help="Move all times so that the last event is now.")
    ] = False,
    strict: Annotated[bool, typer.Option(help="Stop at the first bad line and import nothing.")] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="File for bad lines. Default: beside the data, named by the time.")
    ] = None,
) -> None:
    """Import users, propositions and events. Ends with status 3 if lines were rejected."""
    from app.bootstrap.stores import open_import
    from app.imports.records import ImportRules
    from app.imports.run import FORMATS, run_import

    if format_ not in FORMATS:
        raise typer.BadParameter(f"--format must be one of {', '.join(FORMATS)}")
    config = load_settings()
    now = datetime.now(UTC)
    rejects = rejects or config.data_dir / f"import-{now:%Y%m%dT%H%M%S}.rejects.jsonl"
    rejects.parent.mkdir(parents=True, exist_ok=True)
    rules = ImportRules(now, config.max_future, config.zone)
    with open_import(config) as loader, progress("records") as advance:
        report = run_import(
            FORMATS[format_](paths, rules),
            loader,
            rejects,
            shift_to_now=shift_to_now,
            strict=strict,
            on_progress=advance,
        )
    loaded = report.loaded
    console.print(
        f"read: {', '.join(f'{count:,} {name}' for name, count in report.read.items()) or 'nothing'}"
    )
    console.print(
        f"new or changed: {loaded.users:,} users, {loaded.propositions:,} propositions, "
        f"{loaded.events:,} events; {loaded.duplicate_events:,} events were known, or are not kept"
    )
    if report.rejected:
        errors.print(f"rejected: {report.rejected:,} lines, see {rejects}")
        raise typer.Exit(EXIT_REJECTS)


@app.command("try-model")
def try_model(
    version: Annotated[str, typer.Argument(help="Name of a folder in the models' folder.")],
) -> None:
    """See whether a model is fast enough for this machine and its catalog; web workers do so with large ones."""
    from app.bootstrap.ranking import try_model as try_on_this_machine

    try_on_this_machine(load_settings(), version)
    console.print(f"model {version} is fast enough")


@app.command()
def snapshot(
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep looking for changes, until stopped.")
    ] = False,
) -> None:
    """Bring what web workers know of the catalog up to date. They start this themselves, with --follow."""
    from app.bootstrap.keeper import follow_news, take_snapshot

    config = load_settings()
    if not follow:
        console.print(f"{take_snapshot(config):,} propositions")
        return
    configure_logging(config.log_level, "keeper")
    with end_logged():
        follow_news(config, set_when_told_to_end())


@app.command()
def project(
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Keep folding what comes, until stopped; others that do so share the work."
        ),
    ] = False,
) -> None:
    """Fold new events into the features in Postgres and Redis."""
    from app.bootstrap.projector import prepare_projector_process

    prepare_projector_process()
    config = load_settings()
    configure_logging(config.log_level, "projector")
    if not follow:
        with only_projector(config) as projector:
            console.print(f"folded {projector.run():,} events")
        return
    from app.bootstrap.projector import count_outcomes, follow_events, intake_beside, serve_metrics
    from app.bootstrap.tracing import build_tracer
    from app.events.metrics import ProjectorMetrics

    stop = set_when_told_to_end()
    registry = serve_metrics(config)
    metrics = ProjectorMetrics(registry)
    on_folded = count_outcomes(config, registry)
    tracer = build_tracer(config, "projector")
    with end_logged(), intake_beside(config, stop, registry, tracer):
        while not stop.is_set():
            try:
                follow_events(config, metrics, on_folded, stop, tracer)
            except StoreUnavailable as error:
                log.warning("projection waits: %s", error)
            stop.wait(STANDBY_S)


@contextmanager
def end_logged() -> Iterator[None]:
    """A process that nobody looks on tells in its log why it ends."""
    try:
        yield
    except PropositionsError as error:
        log.error("%s", error)
        raise typer.Exit(1) from error


@app.command("rebuild-features")
def rebuild_features() -> None:
    """Replay all events from scratch into new feature tables, then swap them in."""
    from app.bootstrap.projector import build_projector, prepare_projector_process

    prepare_projector_process()
    config = load_settings()
    configure_logging(config.log_level)
    projector, tables = build_projector(config)
    with tables.exclusive() as is_only:
        console.print(f"replayed {projector.rebuild():,} events")
        if is_only:  # else those that run write the online store anew, each its share
            projector.bring_online(ALL_SLOTS)


@contextmanager
def only_projector(config: Settings) -> Iterator:
    from app.bootstrap.projector import build_projector

    projector, tables = build_projector(config)
    with tables.exclusive() as is_only:
        if not is_only:
            raise ConfigurationError(
                "another projector runs on this database: stop it, or let it do the work"
            )
        yield projector


@app.command()
def maintain() -> None:
    """Make room for what comes and drop what is past its retention. Run it daily; twice at once does no harm."""
    from app.bootstrap.life import build_maintenance

    tables, work = build_maintenance(load_settings())
    with tables.exclusive() as is_only:
        if not is_only:
            console.print("another process maintains this database: nothing to do")
            return
        for done in work(datetime.now(UTC)):
            console.print(f"{done.what}: {done.count:,}")


_DAY = ["%Y-%m-%d"]


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="Where the files go.")],
    first: Annotated[datetime, typer.Option("--from", formats=_DAY, help="First day (UTC).")] = datetime(
        1900, 1, 1
    ),
    last: Annotated[
        datetime | None, typer.Option("--to", formats=_DAY, help="Last day (UTC). Default: today.")
    ] = None,
) -> None:
    """Write events, decisions and features to Parquet files by day. Days that did not change are left alone."""
    from app.bootstrap.stores import build_export

    now = datetime.now(UTC)
    until = (last or now).date()
    for exported in build_export(load_settings(), folder).run(first.date(), until, now):
        console.print(
            f"{exported.table}: {exported.written:,} days written ({exported.rows:,} rows), "
            f"{exported.unchanged:,} unchanged, {exported.removed:,} removed"
        )


@app.command("forget-user")
def forget_user(user_id: Annotated[str, typer.Argument(help="Whom to forget.")]) -> None:
    """Remove a person from all stores. What is counted over many people stays."""
    from app.bootstrap.life import build_forget_user
    from app.domain.context import is_valid_id

    if not is_valid_id(user_id):
        raise typer.BadParameter("this is no id: give 1 to 200 bytes of printable text")
    forgotten = build_forget_user(load_settings())(user_id)
    for place, count in forgotten.counts.items():
        console.print(f"{place}: {count:,} removed")
    if not forgotten.is_complete:
        raise StoreUnavailable(
            "Redis did not answer: what it holds is removed by the service, or by `maintain`"
        )


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def feast(context: typer.Context) -> None:
    """Run the stock `feast` command in the feature repo, for example `propositions feast apply`."""
    config = load_settings()
    os.environ["DATABASE_URL"] = config.postgres_url
    os.environ["REDIS_URL"] = config.redis_address
    os.chdir(config.feature_repo)
    command = Path(sys.executable).with_name("feast")
    os.execv(command, [str(command), *context.args])


@app.command()
def serve() -> None:
    """Serve HTTP under gunicorn."""
    command = Path(sys.executable).with_name("gunicorn")
    os.execv(command, [str(command), "--config", "python:app.api.gunicorn_conf", "app.bootstrap.web:web()"])


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop after the second slate.")] = False,
) -> None:
    """Run the whole way on MovieLens 100k: import, features, training, service, slates."""
    from app.demo import run_demo

    run_demo(once)


@app.command()
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
        (console if console.is_terminal else Console(width=PAGE_WIDTH)).print(table)
    if json_path is not None:
        write_results(results, json_path)
    if not all(result.passed for result in results.values()):
        raise typer.Exit(1)


@contextmanager
def progress(noun: str) -> Iterator:
    """A line that counts; call the yielded function with the count so far."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(f"0 {noun}")
        every = 1_000

        def advance(count: int) -> None:
            if count % every == 0:
                bar.update(task, description=f"{count:,} {noun}")

        yield advance
