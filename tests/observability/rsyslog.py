"""A real log shipper: rsyslog with its output for Elasticsearch, unpacked from Debian's packages, not installed."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.adapters.child_process import ending_with_parent
from app.domain.errors import ConfigurationError
from app.gameday.monitoring import UNPACKED
from tests.observability.fetch import RSYSLOGD

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
    """Raises ConfigurationError: it is not to be had."""
    if not RSYSLOGD.exists():
        raise ConfigurationError(
            f"there is no {RSYSLOGD}: run `make monitoring` where Debian's packages are to be had"
        )
    return RSYSLOGD


@contextmanager
def shipping(files: Sequence[Path], folder: Path, port: int, index: str) -> Iterator[Path]:
    """Every line of the files goes to the search server as a document of the index, also those that come later.

    Yields the file with what the server has refused, which is not there if it is nothing.
    """
    program, (modules,) = find_rsyslog(), UNPACKED.parent.glob("lib/*/rsyslog")
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
            preexec_fn=ending_with_parent(),
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
