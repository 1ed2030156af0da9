import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_imports_point_inward():
    lint = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_the_top_level_holds_what_was_agreed_and_no_more():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert {path.split("/")[0] for path in tracked.splitlines()} <= {
        ".ci",
        ".dockerignore",
        ".env.example",
        ".github",
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Dockerfile",
        "LICENSE",
        "Makefile",
        "Procfile",
        "README.md",
        "SECURITY.md",
        "app",
        "compose.yaml",
        "constraints.txt",
        "docs",
        "feature_repo",
        "helm",
        "migrations",
        "setup.cfg",
        "setup.py",
        "tests",
        "training",
    }


def test_importing_the_domain_needs_no_framework():
    program = (
        "import sys, app.features.catalog, app.features.assembly, app.features.snapshot;"
        "print({'flask', 'feast', 'redis', 'psycopg2', 'xgboost', 'pandas'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_promoting_a_model_needs_neither_feast_nor_xgboost():
    program = "import sys, training.registry; print({'feast', 'xgboost', 'pandas'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_command_starts_without_what_only_others_need():
    program = "import sys, app.cli; print({'app.features', 'flask', 'rich.progress', 'sqlalchemy'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_web_worker_starts_without_what_takes_seconds_to_import():
    program = (
        "import sys, app.bootstrap.web;"
        "print({'alembic', 'feast', 'matplotlib', 'pandas', 'pyarrow', 'sklearn', 'xgboost'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
