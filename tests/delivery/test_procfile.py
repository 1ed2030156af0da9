"""The Procfile, as honcho reads it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_honcho_finds_the_processes_that_the_document_names():
    honcho = Path(sys.executable).with_name("honcho")

    done = subprocess.run([honcho, "check"], cwd=ROOT, capture_output=True, text=True, check=True)

    (found,) = re.findall(r"\((.+)\)", done.stdout + done.stderr)
    assert set(found.split(", ")) == {"release", "web", "projector"}
    text = (ROOT / "docs/deployment.md").read_text()
    assert set(re.search(r"^honcho start (.+)$", text, re.MULTILINE)[1].split()) == {"web", "projector"}
