"""The game day of alerts in its short form, and what it says where it cannot be played."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from app import cli
from app.domain.errors import ConfigurationError
from app.gameday.rule_scaling import scale_rules
from tests.observability.alerting import RULE_FILES, succeeds


def test_faults_fire_their_alerts_in_time_and_nothing_fires_without(monitoring, tmp_path):
    path = tmp_path / "alerts.json"

    arguments = ["gameday", "--scenario", "alerts", "--short", "--json", str(path), "--keep", str(tmp_path)]
    done = CliRunner().invoke(cli.app, arguments)

    assert done.exit_code == 0, done.output
    report = json.loads(path.read_text())
    trials = {trial["name"]: trial for trial in report["trials"]}
    assert list(trials) == ["no fault", "projector killed", "postgres killed"]
    for detection in (one for trial in trials.values() for one in trial["detections"]):
        assert detection["detected_s"] is not None and detection["resolved_s"] is not None, detection
    (gone,) = trials["projector killed"]["detections"]
    assert gone["receivers"] == ["chat", "pager"]


def test_without_prometheus_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("app.gameday.monitoring.UNPACKED", tmp_path)

    done = CliRunner().invoke(cli.app, ["gameday", "--scenario", "alerts", "--short"])

    assert isinstance(done.exception, ConfigurationError)
    assert "`prometheus` is neither on the PATH" in str(done.exception)
    assert "make monitoring" in str(done.exception)


@pytest.mark.parametrize("pace", [1 / 60, 0.5])
def test_rules_on_another_clock_are_rules_still(monitoring, tmp_path, pace):
    for path in RULE_FILES:
        scaled = scale_rules(yaml.safe_load(path.read_text()), pace)
        (tmp_path / path.name).write_text(json.dumps(scaled))

    succeeds(monitoring.find_program("promtool"), "check", "rules", *tmp_path.glob("*.yml"))
