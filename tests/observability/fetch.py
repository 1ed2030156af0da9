"""`python -m tests.observability.fetch`: unpacks what is missing of Prometheus, Alertmanager and rsyslog out of Debian's packages.

Nothing is installed and no service is started. Where it cannot be done, it says why, and tests skip what they cannot run.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from app.domain.errors import ConfigurationError
from app.gameday.monitoring import UNPACKED, find_program

PACKAGES = {"prometheus": ("prometheus", "promtool"), "prometheus-alertmanager": ("alertmanager", "amtool")}
# The shipper with its output for Elasticsearch, and the libraries that nothing else has brought.
RSYSLOG = ("rsyslog", "rsyslog-elasticsearch", "libestr0", "libfastjson4")
RSYSLOGD = UNPACKED.parent / "sbin/rsyslogd"
# Compiled into Debian's Alertmanager; of the same length, and relative to the folder that it is started in.
TEMPLATES, RELOCATED = b"/usr/share/prometheus/alertmanager", b"usr//share/prometheus/alertmanager"
APT = ("apt-get", "--quiet", "--option", "APT::Sandbox::User=root")


def main() -> None:
    missing = [package for package, programs in PACKAGES.items() if not _are_there(programs)]
    if not RSYSLOGD.exists():
        missing += RSYSLOG
    if missing:
        try:
            unpack(missing)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{' and '.join(missing)} cannot be had here: {error}", file=sys.stderr)


def unpack(packages: Sequence[str]) -> None:
    """Raises OSError or CalledProcessError: there is no apt-get, or it does not find them."""
    with TemporaryDirectory() as folder:
        try:
            subprocess.run([*APT, "download", *packages], cwd=folder, check=True)
        except subprocess.CalledProcessError:
            if os.geteuid() != 0:
                raise
            subprocess.run([*APT, "update"], check=True)
            subprocess.run([*APT, "download", *packages], cwd=folder, check=True)
        for archive in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, UNPACKED.parents[1]], check=True)
    alertmanager = UNPACKED / "prometheus-alertmanager"
    if alertmanager.exists():
        alertmanager.write_bytes(alertmanager.read_bytes().replace(TEMPLATES, RELOCATED))


def _are_there(programs: Iterable[str]) -> bool:
    try:
        return all(find_program(program) for program in programs)
    except ConfigurationError:
        return False


if __name__ == "__main__":
    main()
