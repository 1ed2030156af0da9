"""Commands for settings, embedded servers and the database's tables."""

from typing import Annotated

import typer

from app.cli.console import console
from app.settings import Settings, load_settings
from app.settings.loading import describe_settings

commands = typer.Typer()


@commands.command()
def settings() -> None:
    """Show every setting with its value; passwords are masked."""
    for name, value, help_text in describe_settings(load_settings()):
        console.print(f"[bold]{name}[/]={value}")
        console.print(f"    {help_text}", style="dim", soft_wrap=True, markup=False)


@commands.command()
def up() -> None:
    """Start the embedded PostgreSQL and Redis-protocol server, unless DATABASE_URL and REDIS_URL are set."""
    config = load_settings()
    if is_external(config):
        console.print("DATABASE_URL and REDIS_URL are set: nothing to start")
        return
    from app.bootstrap.stores import embedded_servers

    embedded_servers(config).up()
    status()


@commands.command()
def down() -> None:
    """Stop the embedded servers. Their data stay."""
    from app.bootstrap.stores import embedded_servers

    embedded_servers(load_settings()).down()
    status()


@commands.command()
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


@commands.command()
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
