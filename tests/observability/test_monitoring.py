"""The servers that the other tests here need, and the configuration that they start with."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.domain.errors import ConfigurationError, StoreUnavailable
from app.gameday.scraping import PROMETHEUS, scrape_configuration
from app.gameday.stack import wait_until

OBSERVABILITY = Path(__file__).parents[2] / "docs/observability.md"
ALERTMANAGER = {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}


def check(monitoring, path) -> None:
    promtool = monitoring.find_program("promtool")
    done = subprocess.run([promtool, "check", "config", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shipped_configuration_is_one_that_prometheus_takes(monitoring):
    check(monitoring, PROMETHEUS / "prometheus.yml")


def test_so_it_is_with_the_key_that_the_public_port_asks_for(monitoring, tmp_path):
    folder = shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    (folder / "metrics-key").write_text("prometheus.secret")
    job = "  - job_name: propositions-web\n"
    (with_key,) = re.findall(r"```yaml\n(    authorization: .*\n)```", OBSERVABILITY.read_text())
    path = folder / "prometheus.yml"
    assert job in path.read_text()

    path.write_text(path.read_text().replace(job, job + with_key))

    check(monitoring, path)
    (folder / "metrics-key").unlink()
    with pytest.raises(AssertionError, match="metrics-key"):
        check(monitoring, path)


def test_prometheus_scrapes_an_alertmanager_as_the_shipped_configuration_says(monitoring, tmp_path):
    with monitoring.alertmanager(tmp_path / "alertmanager", ALERTMANAGER) as alertmanager:
        targets = {"alertmanager": [alertmanager.address]}
        configuration = scrape_configuration(targets, alertmanagers=[alertmanager.address])
        with monitoring.prometheus(tmp_path / "prometheus", configuration) as prometheus:
            wait_until(lambda: prometheus.query("up == 1"), 30, "nothing was scraped")

            (up,) = prometheus.query("up")
            assert up["metric"] == {
                "__name__": "up",
                "job": "alertmanager",
                "instance": alertmanager.address,
            }
            (known,) = prometheus.ask("/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
            assert known["url"].startswith(alertmanager.url)
    assert not prometheus.is_running() and not alertmanager.is_running()


def test_a_configuration_that_prometheus_refuses_is_told_with_its_reason(monitoring, tmp_path):
    with (
        pytest.raises(StoreUnavailable, match="field scrape not found"),
        monitoring.prometheus(tmp_path, {"scrape": []}),
    ):
        pass


def test_a_program_that_is_not_there_is_told_with_the_way_to_get_it(monitoring):
    with pytest.raises(ConfigurationError, match="make monitoring"):
        monitoring.find_program("prometheus-of-nobody")
