"""`propositions models`: what was trained, what serves, and why."""

import getpass
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.settings import load_settings

console = Console(highlight=False, soft_wrap=True)

models = typer.Typer(help="List, compare, promote and roll back models.", no_args_is_help=True)

Version = Annotated[str, typer.Argument(help="A version of `propositions models list`, or `latest`.")]


@models.command("list")
def list_models() -> None:
    """Show the versions on this machine: which serves, what the gate said, and how good they are."""
    from app.domain.errors import StoreUnavailable
    from training.registry import open_promotions

    try:
        states = open_promotions(load_settings()).states()
    except StoreUnavailable as error:
        console.print(f"{error}; without the verdicts of the gate:")
        _list_folders()
        return
    table = Table()
    for column in ("version", "state", "gate", "ndcg@10", "gain over popularity", "promoted"):
        table.add_column(column)
    for state in states:
        gain = state.gain_over_popularity
        table.add_row(
            state.version,
            "serves" if state.is_serving else "previous" if state.is_previous else "",
            _gate(state.gate),
            "" if state.ndcg is None else f"{state.ndcg:.4f}",
            "" if gain is None else escape(f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"),
            "" if state.promoted_at is None else f"{state.promoted_at:%Y-%m-%d %H:%M}",
        )
    if states:
        console.print(table)
    else:
        console.print("no models yet: run `propositions train`")


def _list_folders() -> None:
    from app.adapters.model_store import ModelStore

    settings = load_settings()
    store = ModelStore(settings.model_dir, settings.half_lives_s)
    active = store.active()
    for version in store.versions():
        console.print(f"{version}{'  serves' if active and active.version == version else ''}")


def _gate(decision) -> str:
    return "not judged" if decision is None else "passed" if decision.is_passed else "failed"


@models.command()
def show(version: Version) -> None:
    """Show what a model was made of, every check of the gate with its reason, and when it was promoted by whom."""
    from training.registry import open_promotions

    details = open_promotions(load_settings()).describe(version)
    state, manifest = details.state, details.state.manifest
    console.print(f"model {state.version}: {_state(state)}; gate: {_gate(state.gate)}")
    for name in ("created_at", "code_version", "seed", "schema_hash"):
        if name in manifest:
            console.print(f"{name}: {manifest[name]}", markup=False)
    for name in ("parameters", "windows", "files_sha256"):
        _print_mapping(name, manifest.get(name, {}))
    console.print(f"columns: {len(manifest.get('columns', ()))}")
    if state.gate is not None:
        _print_checks(state.gate)
    for decision in details.decisions:
        if decision.promoted:
            by = f" by {decision.actor}" if decision.actor else ""
            why = f": {decision.reason}" if decision.reason else ""
            console.print(f"promoted {decision.decided_at:%Y-%m-%d %H:%M}{by}{why}", markup=False)


def _state(state) -> str:
    return "serves" if state.is_serving else "served before" if state.is_previous else "does not serve"


def _print_mapping(name: str, values: Mapping[str, Any]) -> None:
    if values:
        console.print(f"{name}:")
        for key, value in values.items():
            console.print(f"  {key}: {value}", markup=False)


def _print_checks(decision) -> None:
    compared = decision.compared_with or "no model"
    table = Table(title=f"gate, {decision.decided_at:%Y-%m-%d %H:%M}, while {compared} served")
    for column in ("check", "outcome", "measured", "required", "reason"):
        table.add_column(column)
    for check in decision.checks:
        table.add_row(check.name, check.outcome, escape(check.measured), check.required, escape(check.reason))
    console.print(table)


@models.command()
def diff(
    first: Annotated[str, typer.Argument(help="A version.")],
    second: Annotated[str, typer.Argument(help="The version to compare it with.")],
) -> None:
    """Show what differs between two models: parameters, columns, windows, constants, and every metric."""
    from training.registry import open_promotions

    differences = open_promotions(load_settings()).diff(first, second)
    for name in ("versions", "parameters", "windows", "constants"):
        _print_pairs(name, getattr(differences, name), first, second)
    for name in ("columns_added", "columns_removed"):
        columns = getattr(differences, name)
        if columns:
            console.print(f"{name.replace('_', ' ')}: {', '.join(columns)}", markup=False)
    table = Table(title="metrics")
    for column in ("metric", first, second, "difference"):
        table.add_column(column)
    for name, (ours, theirs) in differences.metrics.items():
        table.add_row(name, f"{ours:.4f}", f"{theirs:.4f}", f"{theirs - ours:+.4f}")
    console.print(table)


def _print_pairs(name: str, pairs: Mapping[str, tuple[Any, Any]], first: str, second: str) -> None:
    if not pairs:
        return
    table = Table(title=name)
    for column in ("name", first, second):
        table.add_column(column)
    for key, values in pairs.items():
        table.add_row(key, *(_text(value) for value in values))
    console.print(table)


def _text(value: Any) -> str:
    return "" if value is None else escape(str(value))


@models.command()
def promote(
    version: Version,
    force: Annotated[
        bool, typer.Option("--force", help="Also if the gate did not pass it; needs --reason.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the promotion.")] = None,
) -> None:
    """Let a version serve that the gate passed. A damaged, changed or unfitting model is refused, also with --force."""
    from training.registry import open_promotions

    promoted = open_promotions(load_settings()).promote(version, force, reason, _actor())
    console.print(f"model {promoted} serves")


@models.command()
def rollback() -> None:
    """Let the version serve that served before the present one."""
    from training.registry import open_promotions

    console.print(f"model {open_promotions(load_settings()).roll_back(_actor())} serves again")


def _actor() -> str:
    """Who runs the command; containers may run under a number that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
