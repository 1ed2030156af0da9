"""Every alert fires when it should, stays silent when it should, and tells whoever it wakes what to do."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml

from app.gameday.rule_scaling import duration_s
from app.gameday.scraping import FILES
from tests.observability.alerting import ALERTMANAGER, ROOT, RULE_FILES, RULE_TESTS, alerts, rules, succeeds

DASHBOARDS = {json.loads(path.read_text())["uid"] for path in (FILES / "grafana/dashboards").glob("*.json")}
ALWAYS_FIRES = {"PropositionsDeadMansSwitch"}
# What is no fault of a moment.
MAY_TAKE_HOURS = {
    "PropositionsAvailabilityBurnsSlowly",
    "PropositionsLatencyBurnsSlowly",
    "PropositionsModelOld",
    "PropositionsModelVersionsDiffer",
}
DETECTED_WITHIN_S = 300


def test_prometheus_takes_every_file_of_rules(monitoring):
    succeeds(monitoring.find_program("promtool"), "check", "rules", *RULE_FILES)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(monitoring, path):
    succeeds(monitoring.find_program("promtool"), "test", "rules", path)


def test_each_alert_is_tested_firing_and_not_firing():
    checks = [check for group in _groups() for check in group["alert_rule_test"]]

    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == set(alerts())
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == set(
        alerts()
    ) - ALWAYS_FIRES


def test_alerts_fire_within_five_minutes_of_when_all_was_well():
    quick = set()
    for group in _groups():
        for fires in (check for check in group["alert_rule_test"] if check.get("exp_alerts")):
            silent_s = [
                duration_s(check["eval_time"])
                for check in group["alert_rule_test"]
                if check["alertname"] == fires["alertname"] and not check.get("exp_alerts")
            ]
            fires_s = duration_s(fires["eval_time"])
            if any(0 < fires_s - at_s <= DETECTED_WITHIN_S for at_s in silent_s):
                quick.add(fires["alertname"])

    assert quick == set(alerts()) - ALWAYS_FIRES - MAY_TAKE_HOURS


def _groups() -> Iterator[dict]:
    for path in RULE_TESTS:
        yield from yaml.safe_load(path.read_text())["tests"]


@pytest.mark.parametrize("name", sorted(alerts()))
def test_an_alert_says_how_bad_it_is_and_where_to_look(name):
    alert = alerts()[name]

    assert alert.labels["severity"] in {"page", "ticket", "info"}
    assert set(alert.annotations) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert re.search(r"\{\{.*(\$value|\| value).*\}\}", alert.annotations["description"])
    assert alert.annotations["runbook_url"] == "{{ $externalLabels.runbooks }}#" + name.lower()
    dashboard = alert.annotations["dashboard_url"].removeprefix("{{ $externalLabels.grafana }}/d/")
    assert dashboard in DASHBOARDS


def test_rules_use_documented_metrics_only():
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    used = set()
    for rule in rules():
        used |= set(re.findall(r"(?<![:\w])(?:propositions|flask)_\w+(?![:\w])", rule["expr"]))

    assert used
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} <= documented


def test_recorded_series_that_rules_use_are_recorded():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = set()
    for rule in rules():
        text = rule["expr"] + str(rule.get("annotations", ""))
        used |= set(re.findall(r"propositions:\w+:\w+", text))

    assert used == recorded


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        ("alertname=PropositionsProjectorGone severity=page", "pager,chat"),
        ("alertname=PropositionsBreakerOpen severity=ticket instance=a", "chat"),
        ("alertname=PropositionsDeadMansSwitch severity=info", "heartbeat"),
        ("alertname=PropositionsOther severity=info", "nobody"),
        ("alertname=SomebodyElses", "chat"),
    ],
)
def test_alerts_go_where_they_should(monitoring, labels, receivers):
    options = (f"--config.file={ALERTMANAGER}", f"--verify.receivers={receivers}")

    succeeds(monitoring.find_program("amtool"), "config", "routes", "test", *options, *labels.split())


def test_alertmanager_takes_the_shipped_configuration(monitoring):
    succeeds(monitoring.find_program("amtool"), "check-config", ALERTMANAGER)


def test_no_secret_stands_in_the_configuration():
    settings = dict(_settings(yaml.safe_load(ALERTMANAGER.read_text())["receivers"]))

    secret = {name for name in settings if re.search("key|token|password|credentials|api_url", name)}
    assert secret
    assert all(name.endswith("_file") for name in secret)


def _settings(part: object) -> Iterator[tuple[str, object]]:
    if isinstance(part, dict):
        yield from part.items()
        for value in part.values():
            yield from _settings(value)
    elif isinstance(part, list):
        for value in part:
            yield from _settings(value)


def test_inhibitions_name_alerts_that_exist():
    for rule in yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            label, operator, text = re.fullmatch(r'(\w+) (=~|!=|=) "?([^"]+)"?', matcher).groups()
            if label != "alertname":
                continue
            alternatives = re.fullmatch(r"(\w+)(?:\((.+)\))?", text)
            for end in (alternatives[2] or "").split("|"):
                pattern = alternatives[1] + end
                assert any(re.fullmatch(pattern, name) for name in alerts()), (operator, pattern)
