"""`propositions keys`: who may use the HTTP interface, and for what."""

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from app.cli.console import console, errors
from app.domain.access import ApiKey, Scope, make_key, revoke, rotate
from app.settings import load_settings

commands = typer.Typer(
    name="keys", help="API keys: who may use the HTTP interface, and for what.", no_args_is_help=True
)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="As `propositions keys list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will use it; for people, need not be unique.")],
    scopes: Annotated[
        list[Scope], typer.Option("--scope", help="What it is good for; give several if needed.")
    ],
    expires_days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Days until it ends.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it: this once, for only a digest is kept. It works in all workers within seconds."""
    from app.bootstrap.stores import key_store

    now = datetime.now(UTC)
    expires_at = None if expires_days is None else now + timedelta(days=expires_days)
    key, presented = make_key(name, scopes, now, expires_at, secrets.token_bytes)
    key_store(load_settings()).add(key)
    _show(key, presented, as_json)


@commands.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show all keys there ever were, without their secrets."""
    from app.bootstrap.stores import key_store

    now = datetime.now(UTC)
    known = key_store(load_settings()).all()
    if as_json:
        console.print_json(json.dumps([_described(key, now) for key in known]))
        return
    for key in known:
        console.print(" ".join([key.key_id, ",".join(sorted(key.scopes)), *_fate(key, now)]), markup=False)
        console.print(f"    {key.name}, created {key.created_at:%Y-%m-%d %H:%M} UTC", markup=False)


@commands.command("rotate")
def rotate_(
    key_id: KeyId,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=8_760, help="Hours for which the present secret works as well.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret and print it, this once. The present one goes on for a while."""
    from app.bootstrap.stores import key_store

    now, presented = datetime.now(UTC), ""

    def with_new_secret(key: ApiKey) -> ApiKey:
        nonlocal presented
        key, presented = rotate(key, now, timedelta(hours=overlap_hours), secrets.token_bytes)
        return key

    _show(key_store(load_settings()).change(key_id, with_new_secret), presented, as_json)


@commands.command("revoke")
def revoke_(key_id: KeyId) -> None:
    """End a key for good, in all workers within seconds."""
    from app.bootstrap.stores import key_store

    now = datetime.now(UTC)
    key = key_store(load_settings()).change(key_id, lambda key: revoke(key, now))
    console.print(f"{key.key_id}: revoked, {key.name}", markup=False)


def _show(key: ApiKey, presented: str, as_json: bool) -> None:
    """The key alone on stdout, for `KEY=$(propositions keys create ...)`."""
    if as_json:
        console.print_json(json.dumps({"key": presented, **_described(key, datetime.now(UTC))}))
        return
    console.print(presented, markup=False)
    errors.print(
        f"This is key {key.key_id} for {key.name}, good for {', '.join(sorted(key.scopes))}. "
        "Keep it now: it cannot be shown again.",
        markup=False,
    )


def _described(key: ApiKey, now: datetime) -> dict[str, Any]:
    moments = ("created_at", "expires_at", "revoked_at", "previous_until")
    return {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "is_valid": key.is_valid_at(now),
        **{name: (moment := getattr(key, name)) and moment.isoformat() for name in moments},
    }


def _fate(key: ApiKey, now: datetime) -> Iterator[str]:
    if key.revoked_at is not None:
        yield f"revoked {key.revoked_at:%Y-%m-%d %H:%M} UTC"
        return
    if key.expires_at is not None:
        yield f"{'expires' if now < key.expires_at else 'expired'} {key.expires_at:%Y-%m-%d %H:%M} UTC"
    if key.is_previous_valid_at(now):
        yield f"rotated, the secret of before works until {key.previous_until:%Y-%m-%d %H:%M} UTC"
