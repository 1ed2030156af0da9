"""The documentation says what is so: commands, routes, settings, metrics, examples."""

import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, timedelta
from pathlib import Path

import pytest
import typer.main
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from app import cli
from app.domain.context import complete_context
from app.events.message import SCHEMA_HEADER, SCHEMA_VERSION, decode, encode
from app.imports import native
from app.imports.records import ImportRules, Reject
from app.settings import Settings, load_settings
from app.settings.loading import show_value
from tests.builders import NOON

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def commands() -> dict:
    cli.add_plugin_commands()
    return typer.main.get_command(cli.app).commands


def test_every_command_is_documented_and_every_documented_one_exists(commands):
    documented = set(re.findall(r"^\| `propositions ([a-z-]+)`", README, re.MULTILINE))

    assert documented == set(commands)


def test_commands_in_examples_exist_with_their_options(commands):
    for block in blocks("console"):
        for line in block.splitlines():
            for call in re.findall(r"propositions ([a-z][^#&|]*)", line):
                name, *arguments = shlex.split(call)
                command = commands[name]
                if hasattr(command, "commands"):
                    command = command.commands[arguments[0]]
                known = {option for p in command.params for option in p.opts}
                if name != "feast":
                    assert {a for a in arguments if a.startswith("--")} <= known


def test_make_targets_in_examples_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)) <= targets


def test_every_route_is_documented_and_every_documented_one_exists(settings):
    from app.api.factory import create_app
    from app.bootstrap.web import build_api

    services, _, registry = build_api(settings)
    app = create_app(settings, services, registry)
    documented = set(re.findall(r"^\| `(GET|POST|PUT|DELETE) (/[a-z_/.{}]*)`", README, re.MULTILINE))
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith("/docs/")
    }

    assert documented == served


def test_the_example_environment_lists_every_setting_with_its_default():
    text = (ROOT / ".env.example").read_text()

    listed = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert listed == {name.upper(): show_value(f.default) for name, f in Settings.model_fields.items()}
    flat = " ".join(text.replace("\n# ", " ").split())
    for name, field in Settings.model_fields.items():
        assert " ".join(field.description.split()) in flat, f"the help of {name.upper()} differs"


def test_settings_that_the_readme_names_exist():
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", README))

    assert named <= {name.upper() for name in Settings.model_fields}


Metric = tuple[str, str, frozenset[str]]


def documented_metrics(title: str) -> set[Metric]:
    """Name, type and labels of what a chapter of docs/metrics.md lists."""
    text = (ROOT / "docs/metrics.md").read_text()
    (chapter,) = re.findall(rf"^## {title}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([\w, ]*)\| .+ \|$", chapter, re.MULTILINE)
    assert len(rows) == chapter.count("\n| `")
    return {(name, kind, frozenset(labels.replace(",", " ").split())) for name, kind, labels in rows}


def registered_metrics(registry: CollectorRegistry) -> set[Metric]:
    return {
        (
            metric._name + ("_total" if metric._type == "counter" else ""),
            metric._type,
            frozenset(metric._labelnames),
        )
        for metric in registry._collector_to_names
        if isinstance(metric, MetricWrapperBase)
    }


@pytest.fixture
def with_kafka(settings, monkeypatch) -> Settings:
    """Nobody listens there, and what has metrics is made all the same."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    return load_settings()


def test_all_metrics_of_web_workers_are_documented_as_they_are(with_kafka):
    from app.api.factory import create_app
    from app.bootstrap.web import build_api

    services, _, registry = build_api(with_kafka)
    create_app(with_kafka, services, registry)

    assert documented_metrics("Web workers") == registered_metrics(registry)


def test_all_metrics_of_projectors_are_documented_as_they_are(with_kafka):
    from app.bootstrap.projector import build_intake, count_outcomes
    from app.events.metrics import ProjectorMetrics

    registry = CollectorRegistry()
    ProjectorMetrics(registry)
    count_outcomes(with_kafka, registry)
    build_intake(with_kafka, registry).close()

    assert documented_metrics("Projectors") == registered_metrics(registry)


def test_all_metrics_of_jobs_are_documented_as_they_are():
    from training.skew import ColumnSkew, SkewReport

    text = SkewReport(1, {}, (ColumnSkew("hour", 1, 0, 0, ()),)).to_metrics()

    assert documented_metrics("Jobs") == {
        (family.name, family.type, frozenset(sample.labels))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_examples_of_the_native_format_can_be_imported(tmp_path):
    rules = ImportRules(NOON + timedelta(days=365), timedelta(minutes=5), UTC)
    examples = [("jsonl", block) for block in blocks("json")] + [("csv", block) for block in blocks("csv")]
    assert len(examples) == 6
    for number, (ending, block) in enumerate(examples):
        kind = next(kind for kind in ("events", "propositions", "users") if _KEYS[kind] in block)
        path = tmp_path / f"{kind}-{number}.{ending}"
        path.write_text(block)

        records = list(native.parse([path], rules))

        assert records and not any(isinstance(record, Reject) for record in records), records


def test_the_message_in_the_documents_is_one_that_is_understood():
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/events.md").read_text(), re.DOTALL)

    message = decode(block.encode(), {SCHEMA_HEADER: SCHEMA_VERSION})

    assert json.loads(encode(message)) == json.loads(block)


_KEYS = {"events": "event_id", "propositions": "title", "users": "age_years"}


def test_the_parquet_example_runs_and_can_be_imported(tmp_path):
    (program,) = blocks("python")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    rules = ImportRules(NOON + timedelta(days=365), timedelta(minutes=5), UTC)

    ((_, event),) = native.parse([tmp_path / "events.parquet"], rules)

    assert event.context == complete_context({"page": "home"}, event.occurred_at, UTC)


def test_the_request_in_the_readme_is_one_that_the_schema_takes():
    from app.api.schemas import SuggestIn

    for body in re.findall(r"-d '(\{.*?\})'", README):
        SuggestIn.model_validate(json.loads(body))


def test_files_that_the_documents_point_to_exist():
    for document in (
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "README.md",
        "SECURITY.md",
        "docs/access.md",
        "docs/architecture.md",
        "docs/deployment.md",
        "docs/events.md",
        "docs/gameday.md",
        "docs/logs.md",
        "docs/metrics.md",
        "docs/observability.md",
        "docs/resilience.md",
        "docs/runbooks.md",
        "docs/scaling.md",
        "docs/tracing.md",
    ):
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert ((ROOT / document).parent / target).exists(), target
        for target in re.findall(r"`((?:app|migrations|feature_repo|docs)/[\w/.]*)`", text):
            assert (ROOT / target).exists(), target


def test_procfile_processes_are_commands(commands):
    for line in (ROOT / "Procfile").read_text().splitlines():
        _, _, command = line.partition(": ")
        for call in command.split(" && "):
            program, name, *_ = shlex.split(call)
            assert program == "propositions"
            assert name in commands
