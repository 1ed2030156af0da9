"""A real Alertmanager with the shipped routes and inhibitions: what follows from another alert is not told."""

import json
from collections.abc import Iterator, Mapping
from urllib.request import Request, urlopen

import pytest
import yaml

from app.gameday.monitoring import Alertmanager
from app.gameday.stack import wait_until
from tests.observability.alerting import ALERTMANAGER, alerts


@pytest.fixture(scope="module")
def alertmanager(monitoring, tmp_path_factory) -> Iterator[Alertmanager]:
    """Its receivers send nothing."""
    configuration = yaml.safe_load(ALERTMANAGER.read_text())
    configuration["receivers"] = [{"name": receiver["name"]} for receiver in configuration["receivers"]]
    with monitoring.alertmanager(tmp_path_factory.mktemp("alertmanager"), configuration) as server:
        yield server


def labels(name: str, **more: str) -> Mapping[str, str]:
    return {"alertname": name, **alerts()[name].labels, **more}


@pytest.mark.parametrize(
    ("cause", "told", "not_told"),
    [
        (
            labels("PropositionsServiceGone"),
            [labels("PropositionsProjectorGone"), labels("PropositionsSpoolDamaged", instance="a")],
            [labels("PropositionsTrafficUnusual"), labels("PropositionsTargetDown", instance="a")],
        ),
        (
            labels("PropositionsTargetDown", instance="b"),
            [
                labels("PropositionsBreakerOpen", instance="c"),
                labels("PropositionsSpoolDamaged", instance="b"),
            ],
            [labels("PropositionsBreakerOpen", instance="b")],
        ),
        (
            labels("PropositionsLatencyBurnsFast"),
            [labels("PropositionsAvailabilityBurnsSlowly")],
            [labels("PropositionsLatencyBurnsSlowly")],
        ),
        (
            labels("PropositionsSlatesWithoutModel"),
            [labels("PropositionsBreakerOpen", instance="d", dependency="redis")],
            [labels("PropositionsSlatesDegraded")],
        ),
        (
            labels("PropositionsProjectorGone"),
            [labels("PropositionsSpoolInUse", instance="e")],
            [
                labels("PropositionsKafkaLag"),
                labels("PropositionsFeatureViewNotRefreshed", view="user_activity"),
            ],
        ),
    ],
    ids=lambda value: value["alertname"] if isinstance(value, dict) else "",
)
def test_what_follows_from_a_cause_is_not_told(alertmanager, cause, told, not_told):
    fire(alertmanager, cause, *told, *not_told)
    try:
        for one in not_told:
            wait_until(lambda one=one: is_inhibited(alertmanager, one), 10, f"{one} is told")
        for one in (cause, *told):
            assert not is_inhibited(alertmanager, one), one
    finally:
        fire(alertmanager, cause, *told, *not_told, ends_at="2020-01-01T00:00:00Z")


def fire(alertmanager: Alertmanager, *many: Mapping[str, str], ends_at: str | None = None) -> None:
    started = {"startsAt": "2019-01-01T00:00:00Z", **({"endsAt": ends_at} if ends_at else {})}
    body = json.dumps([{"labels": one, **started} for one in many]).encode()
    request = Request(f"{alertmanager.url}/api/v2/alerts", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=10):
        pass


def is_inhibited(alertmanager: Alertmanager, one: Mapping[str, str]) -> bool:
    known = [alert for alert in alertmanager.alerts() if alert["labels"] == one]
    return bool(known) and known[0]["status"]["state"] == "suppressed"
