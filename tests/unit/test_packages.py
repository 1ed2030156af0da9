"""What an installation that is no checkout consists of."""

from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_installed():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.packages.find"]["include"].split()

    packages = [
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("app", "feature_repo", "migrations", "training")
        for path in (ROOT / top).rglob("__init__.py")
    ]

    assert "training.lint" in packages
    assert [p for p in packages if not any(fnmatch(p, pattern) for pattern in patterns)] == []
