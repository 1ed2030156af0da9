"""What the game day of alerts is played on: a stack under load, watched by a real Prometheus and Alertmanager."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from app.adapters.free_ports import free_port
from app.domain.errors import ConfigurationError
from app.gameday.broker import Broker
from app.gameday.monitoring import Alertmanager, Prometheus, alertmanager, find_program, prometheus
from app.gameday.rule_scaling import scale_rules
from app.gameday.scraping import FILES, RULES, scrape_configuration
from app.gameday.senders import Senders, made_up_events
from app.gameday.serving_data import PROPOSITIONS, USERS
from app.gameday.serving_world import World, serving_world

ALERTMANAGER = FILES / "alertmanager/alertmanager.yml"
SCRAPE_INTERVAL_S, RESEND_S = 15.0, 60.0
# Small, to be full within minutes.
SPOOL_BYTES = 2_000_000
# Web workers and a projector.
TARGETS = 2
FIRING = 'max by (alertname) (ALERTS{alertstate="firing"})'


@dataclass
class AlertsWorld:
    """`pace` is how long a minute of the rules lasts, in minutes."""

    serving: World
    broker: Broker | None
    prometheus: Prometheus
    alertmanager: Alertmanager
    pace: float

    def is_watched(self) -> bool:
        """Whether Prometheus has got the metrics of all processes."""
        return len(self.prometheus.query("up == 1")) == TARGETS

    def firing(self) -> set[str]:
        return self.prometheus.firing()

    def receivers(self, alert: str) -> set[str]:
        """Whom Alertmanager routes it to, or the alerts for which it is left out; nobody before it has heard of it."""
        known = {one["fingerprint"]: one for one in self.alertmanager.alerts()}
        told = [one for one in known.values() if one["labels"]["alertname"] == alert]
        told += [known[cause] for one in told for cause in one["status"]["inhibitedBy"] if cause in known]
        return {
            receiver["name"]
            for one in told
            if one["status"]["state"] == "active"
            for receiver in one["receivers"]
        }

    def is_well(self) -> bool:
        """Whether the service said at its last probe that all of its dependencies are up."""
        probes = reversed(self.serving.watch.probes)
        last = next((probe for probe in probes if probe.route == "/health"), None)
        return last is not None and last.status == 200 and not last.down

    def firing_times(self, since_s: float) -> Mapping[str, list[tuple[float, float]]]:
        """When each alert fired since then, as (begin, end) in seconds of the epoch, as exactly as rules are evaluated."""
        step_s = SCRAPE_INTERVAL_S * self.pace
        series = self.prometheus.query_range(FIRING, since_s, time.time(), step_s)
        return {one["metric"]["alertname"]: list(_intervals(one["values"], step_s)) for one in series}


def _intervals(values: list[tuple[float, str]], step_s: float) -> Iterator[tuple[float, float]]:
    begin_s = end_s = None
    for at_s, _ in values:
        if end_s is not None and at_s - end_s > 1.5 * step_s:
            yield begin_s, end_s
            begin_s = None
        begin_s = at_s if begin_s is None else begin_s
        end_s = at_s
    if begin_s is not None:
        yield begin_s, end_s


def require_monitoring() -> None:
    """Raises ConfigurationError: Prometheus, Alertmanager or their configuration is not there."""
    for program in ("prometheus", "alertmanager"):
        find_program(program)
    if not RULES.is_dir():
        raise ConfigurationError(f"there are no rules in {RULES}: run this from the project's source tree")


@contextmanager
def alerts_world(
    folder: Path, seed: int, pace: float, events_per_s: float, broker: Broker | None
) -> Iterator[AlertsWorld]:
    """A service that is ready and has a model; events come in. Scrapes, rules and Alertmanager are as shipped, at this pace.

    Raises:
        GamedayFailed: it did not come up.
    """
    projector_port = free_port()
    environment = {"PROJECT_METRICS_PORT": str(projector_port), "SPOOL_MAX_BYTES": str(SPOOL_BYTES)}
    with serving_world(folder, seed, broker, environment) as serving:
        targets = {
            "propositions-web": [f"127.0.0.1:{serving.stack.port}"],
            "propositions-projector": [f"127.0.0.1:{projector_port}"],
        }
        senders = Senders(
            serving.stack.port, made_up_events(seed, "alerts", USERS, PROPOSITIONS), events_per_s
        )
        with (
            alertmanager(folder / "alertmanager", _alertmanager_configuration()) as told,
            prometheus(
                folder / "prometheus",
                _prometheus_configuration(folder, targets, told, pace),
                f"--rules.alert.resend-delay={_paced(RESEND_S, pace)}",
            ) as watcher,
        ):
            senders.start()
            try:
                yield AlertsWorld(serving, broker, watcher, told, pace)
            finally:
                senders.abandon()


def _prometheus_configuration(
    folder: Path, targets: Mapping[str, list[str]], told: Alertmanager, pace: float
) -> Mapping[str, Any]:
    rules = folder / "rules"
    rules.mkdir()
    for path in RULES.glob("*.yml"):
        content = yaml.safe_load(path.read_text())
        scaled = content if pace == 1.0 else scale_rules(content, pace)
        (rules / path.name).write_text(json.dumps(scaled))  # which is YAML, too
    return scrape_configuration(
        targets, _paced(SCRAPE_INTERVAL_S, pace), sorted(rules.iterdir()), [told.address]
    )


def _alertmanager_configuration() -> Mapping[str, Any]:
    """As shipped, but nothing is sent anywhere."""
    configuration = yaml.safe_load(ALERTMANAGER.read_text())
    configuration["receivers"] = [{"name": one["name"]} for one in configuration["receivers"]]
    return configuration


def _paced(seconds: float, pace: float) -> str:
    return f"{round(1e3 * seconds * pace)}ms"
