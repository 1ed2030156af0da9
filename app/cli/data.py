"""Commands for data: what comes in, what goes out, what is kept and what is forgotten."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import console, errors
from app.domain.errors import StoreUnavailable
from app.settings import load_settings

EXIT_REJECTS = 3
_DAY = ["%Y-%m-%d"]

commands = typer.Typer()


@commands.command("import")
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


@commands.command()
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


@commands.command()
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


@commands.command("forget-user")
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


@contextmanager
def progress(noun: str) -> Iterator:
    """A line that counts; call the yielded function with the count so far."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(f"0 {noun}")
        every = 1_000

        def advance(count: int) -> None:
            if count % every == 0:
                bar.update(task, description=f"{count:,} {noun}")

        yield advance
