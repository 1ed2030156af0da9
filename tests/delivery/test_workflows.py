"""GitHub's workflows: valid for actionlint, pinned, with few rights, and the same targets as .ci/run."""

import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

# Its wheels download a program from GitHub when they are installed; Go builds it from its module in some seconds.
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
PROGRAM = Path(sys.prefix) / "delivery" / "actionlint"
ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in PATHS}
# Whoever may not write by default and still does, and what.
WRITERS = {
    ("release", "image"): {"packages", "id-token", "attestations"},
    ("release", "chart"): {"packages"},
    ("release", "release"): {"contents"},
}


@pytest.fixture(scope="module")
def actionlint() -> Path:
    if not PROGRAM.exists():
        go = shutil.which("go")
        if go is None:
            if "CI" in os.environ:
                pytest.fail("actionlint is built with Go: put `go` on the path")
            pytest.skip("actionlint is built with Go, which is not on the path")
        environment = {**os.environ, "GOBIN": str(PROGRAM.parent), "CGO_ENABLED": "0"}
        subprocess.run([go, "install", "-trimpath", ACTIONLINT], env=environment, check=True)
    return PROGRAM


def test_actionlint_finds_nothing(actionlint):
    done = subprocess.run([actionlint, "-shellcheck=", "-pyflakes=", *PATHS], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_what_is_wrong(actionlint, tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(PATHS[0].read_text().replace("matrix.python", "matrix.pythons"))

    done = subprocess.run([actionlint, "-shellcheck=", wrong], capture_output=True, text=True)

    assert done.returncode == 1 and "pythons" in done.stdout


def make_targets(text: str) -> set[str]:
    return set(re.findall(r"\bmake ([a-z][a-z-]*)", text))


def commands(workflow: str) -> str:
    return "\n".join(step.get("run", "") for _, step in steps(workflow))


def steps(workflow: str) -> list[tuple[str, dict]]:
    jobs = WORKFLOWS[workflow]["jobs"]
    return [(name, step) for name, job in jobs.items() for step in job.get("steps", ())]


def test_targets_of_make_exist():
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    for workflow in WORKFLOWS:
        assert make_targets(commands(workflow)) <= known


def test_ci_runs_at_least_what_runs_without_github():
    locally = make_targets((ROOT / ".ci/run").read_text())

    assert locally and locally <= make_targets(commands("ci"))


def test_tests_run_on_every_python_that_is_supported():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    classifiers = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])

    assert WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"] == classifiers
    assert setup["options"]["python_requires"] == f">={classifiers[0]}"


def test_actions_and_machines_are_pinned():
    for workflow, content in WORKFLOWS.items():
        for name, job in content["jobs"].items():
            assert "latest" not in job.get("runs-on", ""), (workflow, name)
        for _, step in steps(workflow):
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})", step["uses"])


def test_every_workflow_reads_only_unless_a_job_must_write():
    for workflow, content in WORKFLOWS.items():
        assert content["permissions"] == {"contents": "read"}
        for name, job in content["jobs"].items():
            writes = {right for right, level in job.get("permissions", {}).items() if level == "write"}
            assert writes == WRITERS.get((workflow, name), set())


def test_no_job_runs_for_ever_or_beside_itself():
    for content in WORKFLOWS.values():
        assert content["concurrency"]["group"]
        for job in content["jobs"].values():
            assert "uses" in job or job["timeout-minutes"] <= 40


def test_what_others_write_is_no_part_of_a_script():
    for workflow in WORKFLOWS:
        assert "${{" not in commands(workflow)


def test_nothing_is_deployed_without_its_environment():
    (job,) = WORKFLOWS["deploy"]["jobs"].values()

    assert job["environment"] == "${{ inputs.environment }}"
    assert "--rollback-on-failure" in commands("deploy") and "helm rollback" in commands("deploy")
