"""Evaluation on a foreign file, from import to report, in a scratch database that is gone afterwards."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from app.adapters.embedded import EmbeddedServers
from app.domain.errors import PropositionsError
from app.settings import Settings, load_settings


class StepFailed(PropositionsError):
    """A command on the scratch database failed."""


@contextmanager
def imported(
    path: Path, format_: str, on_step: Callable[[str], None] = lambda step: None
) -> Iterator[Settings]:
    """The settings of a scratch database with everything in the file: events recorded, features folded and declared.

    The environment of this process names the scratch database until the block ends.

    Raises:
        ConfigurationError: the embedded servers are not installed.
        StepFailed: names the command.
    """
    with TemporaryDirectory(prefix="propositions-") as folder:
        servers = EmbeddedServers(Path(folder) / "embedded")
        with servers.running(), _environment({**_addresses(servers), "DATA_DIR": folder}):
            for command in (
                ("migrate",),
                ("import", "--format", format_, str(path.resolve())),
                ("project",),
                ("feast", "apply"),
            ):
                on_step(f"propositions {' '.join(command)}")
                _run(*command)
            yield load_settings()


def _addresses(servers: EmbeddedServers) -> dict[str, str]:
    return {name.upper(): address for name, address in servers.addresses().items()}


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "app", *arguments], capture_output=True, text=True)
    # A few bad lines are no reason to stop (status 3): they are named, and lie beside the file.
    if done.returncode not in (0, 3):
        raise StepFailed(f"`propositions {arguments[0]}` failed:\n{done.stdout}{done.stderr}")
