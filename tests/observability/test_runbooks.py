"""The runbooks have what an alert needs, and what they tell people to run exists."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping

import pytest
import typer
import yaml

from app import cli
from app.gameday.scraping import FILES
from app.settings import Settings
from tests.observability.alerting import ROOT, RUNBOOKS, alerts, runbooks, succeeds

MAPPINGS = FILES / "elastic/mappings.json"


def test_each_alert_has_a_section_and_each_section_an_alert():
    assert sorted(runbooks()) == sorted(alerts())


@pytest.mark.parametrize("name", sorted(runbooks()))
def test_a_section_says_who_is_hurt_what_to_check_how_to_fix_it_and_when_to_call_others(name):
    section = runbooks()[name]

    severity = alerts()[name].labels["severity"]
    assert section.strip().startswith(f"{severity.capitalize()}. ")
    for part in ("Hurt: ", "- Check: ", "- Fix: ", "- Escalate: "):
        assert part in re.sub(r"\s+", " ", section), part


def test_severities_in_the_table_are_those_of_the_alerts():
    named = set(re.findall(r"^\| `(\w+)` \|", RUNBOOKS.read_text(), re.MULTILINE))

    assert named == {alert.labels["severity"] for alert in alerts().values()}


def test_links_between_sections_lead_somewhere():
    targets = set(re.findall(r"\]\(#(\w+)\)", RUNBOOKS.read_text()))

    assert targets <= {name.lower() for name in runbooks()}


def test_queries_are_ones_that_prometheus_understands(monitoring, tmp_path):
    queries = re.findall(r"PromQL\s+`([^`]+)`", RUNBOOKS.read_text())
    assert len(queries) > 50
    path = tmp_path / "queries.yml"
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "runbooks", "rules": rules}]}))

    succeeds(monitoring.find_program("promtool"), "check", "rules", path)


def test_searches_in_logs_are_for_fields_and_loggers_that_exist():
    mapped = set(_fields(json.loads(MAPPINGS.read_text())["template"]["mappings"]["properties"]))
    searches = re.findall(r"KQL\s+`([^`]+)`", RUNBOOKS.read_text())
    assert len(searches) > 20
    for search in searches:
        fields = re.findall(r"([a-z_]+(?:\.[a-z_]+)*) ?(?::|>=|<)", re.sub(r'"[^"]*"', "", search))
        assert fields and set(fields) <= mapped, search
        for logger in re.findall(r'"(app\.[a-z_.]+)"', search):
            assert (ROOT / logger.replace(".", "/")).with_suffix(".py").exists(), logger


def _fields(properties: Mapping, prefix: str = "") -> Iterator[str]:
    for name, field in properties.items():
        if "properties" in field:
            yield from _fields(field["properties"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_commands_and_settings_exist():
    cli.add_plugin_commands()
    commands = typer.main.get_command(cli.app).commands
    text = RUNBOOKS.read_text()
    calls = re.findall(r"`propositions ([a-z][^`]*)`", text)
    assert len(calls) > 20
    for call in calls:
        name, *arguments = shlex.split(call)
        command = commands[name]
        if hasattr(command, "commands"):
            command = command.commands[arguments[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        if name != "feast":
            assert {argument for argument in arguments if argument.startswith("--")} <= known, call

    names = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text))
    assert names <= {name.upper() for name in Settings.model_fields}
