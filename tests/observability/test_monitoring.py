"""The servers that the other tests here need, and the configuration that they start with."""

import subprocess

import pytest

from app.domain.errors import ConfigurationError, StoreUnavailable
from app.gameday.scraping import PROMETHEUS, scrape_configuration
from app.gameday.stack import wait_until

ALERTMANAGER = {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}


def test_the_shipped_configuration_is_one_that_prometheus_takes(monitoring):
    promtool = monitoring.find_program("promtool")

    done = subprocess.run(
        [promtool, "check", "config", PROMETHEUS / "prometheus.yml"], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


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
