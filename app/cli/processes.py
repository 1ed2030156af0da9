"""Commands that run for as long as the service does, and what they do once when asked by hand."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from app.adapters.signals import set_when_told_to_end
from app.api.logs import configure_logging
from app.cli.console import console
from app.domain.errors import ConfigurationError, PropositionsError, StoreUnavailable
from app.settings import Settings, load_settings

STANDBY_S = 1.0

log = logging.getLogger(__name__)

commands = typer.Typer()


@commands.command()
def serve() -> None:
    """Serve HTTP under gunicorn."""
    command = Path(sys.executable).with_name("gunicorn")
    os.execv(command, [str(command), "--config", "python:app.api.gunicorn_conf", "app.bootstrap.web:web()"])


@commands.command()
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


@commands.command()
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


@commands.command("rebuild-features")
def rebuild_features() -> None:
    """Replay all events from scratch into new feature tables, then swap them in."""
    from app.bootstrap.projector import build_projector, prepare_projector_process
    from app.features.slots import ALL_SLOTS

    prepare_projector_process()
    config = load_settings()
    configure_logging(config.log_level)
    projector, tables = build_projector(config)
    with tables.exclusive() as is_only:
        console.print(f"replayed {projector.rebuild():,} events")
        if is_only:  # else those that run write the online store anew, each its share
            projector.bring_online(ALL_SLOTS)


@commands.command("try-model")
def try_model(
    version: Annotated[str, typer.Argument(help="Name of a folder in the models' folder.")],
) -> None:
    """See whether a model is fast enough for this machine and its catalog; web workers do so with large ones."""
    from app.bootstrap.ranking import try_model as try_on_this_machine

    try_on_this_machine(load_settings(), version)
    console.print(f"model {version} is fast enough")


@commands.command(
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


@contextmanager
def end_logged() -> Iterator[None]:
    """A process that nobody looks on tells in its log why it ends."""
    try:
        yield
    except PropositionsError as error:
        log.error("%s", error)
        raise typer.Exit(1) from error
