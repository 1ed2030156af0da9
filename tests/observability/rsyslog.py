"""A real log shipper: rsyslog with its output for Elasticsearch, unpacked from Debian's packages, not installed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from app.adapters.child_process import end_with_parent
from app.domain.errors import ConfigurationError

PACKAGES = ("rsyslog", "rsyslog-elasticsearch", "libestr0", "libfastjson4")
UNPACKED = Path(sys.prefix) / "rsyslog"
APT = ("apt-get", "--quiet", "--option", "APT::Sandbox::User=root")
STOP_TIMEOUT_S = 10.0

_CONFIGURATION = """global(workDirectory="{folder}" maxMessageSize="256k" parser.permitSlashInProgramname="on")
module(load="imfile")
module(load="omelasticsearch")
template(name="line" type="string" string="%msg%")
# Of a line: sent again after a lost answer, it is refused, for it is there already.
template(name="place" type="string" string="%$!metadata!filename%:%$!metadata!fileoffset%")
ruleset(name="ship") {{
  action(type="omelasticsearch" server="127.0.0.1" serverport="{port}" template="line" bulkmode="on"
         searchIndex="{index}" searchType="" writeoperation="create" dynbulkid="on" bulkid="place"
         errorFile="{folder}/refused")
}}
"""
_INPUT = 'input(type="imfile" file="{path}" tag="propositions" addMetadata="on" ruleset="ship")\n'


def find_rsyslog() -> Path:
    """The program; what is missing is unpacked beside the virtual environment's own.

    Raises:
        ConfigurationError: it is not to be had.
    """
    program = UNPACKED / "usr/sbin/rsyslogd"
    if not program.exists():
        try:
            _unpack()
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigurationError(f"rsyslog cannot be had here: {error}") from error
    return program


@contextmanager
def shipping(files: Sequence[Path], folder: Path, port: int, index: str) -> Iterator[Path]:
    """Every line of the files goes to the search server as a document of the index, also those that come later.

    Yields the file with what the server has refused, which is not there if it is nothing.
    """
    program, (modules,) = find_rsyslog(), UNPACKED.glob("usr/lib/*/rsyslog")
    folder.mkdir()
    configuration = folder / "rsyslog.conf"
    inputs = "".join(_INPUT.format(path=path) for path in files)
    configuration.write_text(_CONFIGURATION.format(folder=folder, port=port, index=index) + inputs)
    with (folder / "rsyslog.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-n", "-f", configuration, "-i", folder / "pid", "-M", modules],
            env={**os.environ, "LD_LIBRARY_PATH": str(modules.parent)},
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,
        )
    try:
        yield folder / "refused"
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _unpack() -> None:
    with TemporaryDirectory(dir=UNPACKED.parent) as folder:
        try:
            subprocess.run([*APT, "download", *PACKAGES], cwd=folder, check=True, capture_output=True)
        except subprocess.CalledProcessError:
            subprocess.run([*APT, "update"], check=True, capture_output=True)
            subprocess.run([*APT, "download", *PACKAGES], cwd=folder, check=True, capture_output=True)
        draft = Path(folder) / "draft"
        for archive in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, draft], check=True, capture_output=True)
        shutil.rmtree(UNPACKED, ignore_errors=True)
        draft.rename(UNPACKED)
