"""Java programs out of Maven's repository, without a project of their own."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from app.domain.errors import ConfigurationError

RESOLVER = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:build-classpath"
RESOLVE_TIMEOUT_S = 300.0

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>propositions</groupId><artifactId>{name}</artifactId><version>1</version>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def classpath(name: str, artifacts: Iterable[str]) -> str:
    """The jars of these artifacts (`group:artifact:version`) and of all that they need, in the local repository.

    Maven fetches them the first time; `name` tells one such set from others, with its versions.

    Raises:
        ConfigurationError: Java or Maven is missing, or Maven does not get the jars.
    """
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise ConfigurationError(f"`{program}` is not installed")
    folder = Path.home() / ".m2" / f"propositions-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "classpath"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not known.exists() or not all(os.path.exists(jar) for jar in known.read_text().split(":")):
            pom, found = folder / "pom.xml", folder / "found"
            dependencies = "\n".join(_DEPENDENCY.format(*artifact.split(":")) for artifact in artifacts)
            pom.write_text(_POM.format(name=name, dependencies=dependencies))
            run(["mvn", "-q", "-B", "-f", str(pom), RESOLVER, f"-Dmdep.outputFile={found}"])
            found.rename(known)
    return known.read_text()


def run(command: Sequence[str]) -> None:
    """Raises ConfigurationError: the program failed, or took too long; the text ends with what it said."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise ConfigurationError(f"`{command[0]}` failed: {(error.stdout + error.stderr)[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"`{command[0]}` took longer than {RESOLVE_TIMEOUT_S:g} s") from error
