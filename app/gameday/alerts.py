"""The game day of alerts: a real Prometheus tells of real faults within minutes, and of nothing else."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.domain.errors import ConfigurationError
from app.gameday.alerts_faults import AlertFault, alert_faults
from app.gameday.alerts_world import AlertsWorld, alerts_world, require_monitoring
from app.gameday.broker import Broker, find_broker
from app.gameday.judging import Moments
from app.gameday.stack import GamedayFailed, wait_until

ALWAYS_FIRES, HEARTBEAT = "PropositionsDeadMansSwitch", "heartbeat"
LOAD_SHARE = 0.25
# From when an alert fires until Alertmanager has heard of it.
TELLING_S = 10.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class AlertsPlan:
    """`pace` is how long a minute of the rules lasts, in minutes; alerts fire within `detect_s`, and are silent
    `resolve_s` after the last fault. `faults`: names of those that are tried; None: all. `rate`: slates per second; None:
    a share of the capacity, which is measured.
    """

    seed: int
    pace: float
    quiet_s: float
    detect_s: float
    resolve_s: float
    events_per_s: float
    rate: float | None = None
    faults: tuple[str, ...] | None = None
    broker_kind: str | None = None


# Half an hour is the longer window of a page; what it saw has to be over.
FULL = AlertsPlan(
    seed=7, pace=1.0, quiet_s=300.0, detect_s=300.0, resolve_s=2_400.0, events_per_s=60.0, broker_kind=None
)
SHORT = AlertsPlan(
    seed=7,
    pace=1 / 60,
    quiet_s=3.0,
    detect_s=30.0,
    resolve_s=30.0,
    events_per_s=30.0,
    rate=20.0,
    faults=("projector killed", "postgres killed"),
)


@dataclass
class Detection:
    """Seconds from the fault's begin until the alert fired, and from its end until it was silent; None: it was not."""

    alert: str
    detected_s: float | None = None
    resolved_s: float | None = None
    receivers: list[str] = field(default_factory=list)


@dataclass
class AlertTrial:
    """`began_s` and `over_s` in seconds of the epoch; `others` are alerts that fired as well."""

    name: str
    fault: str
    began_s: float
    over_s: float
    detections: list[Detection]
    others: list[str]
    broken: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.broken


@dataclass
class AlertsReport:
    seed: int
    pace: float
    broker: str | None
    trials: list[AlertTrial] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.trials) and all(trial.passed for trial in self.trials)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "seed": self.seed,
            "pace": self.pace,
            "broker": self.broker,
            "trials": [{**asdict(trial), "passed": trial.passed} for trial in self.trials],
        }


def run_alerts_gameday(
    plan: AlertsPlan, folder: Path, with_kafka: bool, say: Callable[[str], None]
) -> AlertsReport:
    """Every fault of the plan on one stack under `folder`.

    Raises:
        ConfigurationError: there is no Prometheus or no Alertmanager.
        GamedayFailed: the stack did not come up.
    """
    require_monitoring()
    say("A stack is made, with a catalog, events, a model, Prometheus and Alertmanager.")
    broker = _broker(folder / "kafka", plan.broker_kind, say) if with_kafka else None
    report = AlertsReport(plan.seed, plan.pace, None if broker is None else broker.name)
    with alerts_world(folder, plan.seed, plan.pace, plan.events_per_s, broker) as world:
        _start_load(plan, world)
        faults = [fault for fault in alert_faults(broker) if plan.faults is None or fault.name in plan.faults]
        report.trials.append(_quiet(plan, world, {alert for fault in faults for alert in fault.alerts}, say))
        for fault in faults:
            report.trials.append(_try(plan, world, fault, say))
        _judge_resolution(plan, world, report.trials, say)
    return report


def _start_load(plan: AlertsPlan, world: AlertsWorld) -> None:
    serving = world.serving
    if plan.rate is None:
        serving.measure(6.0, LOAD_SHARE)
    else:
        serving.rate = plan.rate
    serving.start_load()


def _quiet(plan: AlertsPlan, world: AlertsWorld, alerts: set[str], say: Callable[[str], None]) -> AlertTrial:
    """Nothing is wrong: none of the alerts that the faults will fire does so now, and the dead man's switch arrives."""
    say(f"no fault: all is well for {plan.quiet_s:g} s")
    wait_until(world.is_watched, plan.detect_s, "Prometheus does not get the metrics of the stack")
    with suppress(GamedayFailed):
        wait_until(lambda: not world.firing() & alerts, plan.detect_s, "alerts fire from the start")
    began_s = time.time()
    time.sleep(plan.quiet_s)
    trial = AlertTrial("no fault", "nothing is wrong", began_s, time.time(), [], _others(world, ()))
    trial.broken += [f"{name} fires" for name in trial.others if name in alerts]
    if HEARTBEAT not in _told_to(world, ALWAYS_FIRES):
        trial.broken.append(f"{ALWAYS_FIRES} does not arrive")
    return trial


def _try(plan: AlertsPlan, world: AlertsWorld, fault: AlertFault, say: Callable[[str], None]) -> AlertTrial:
    say(f"{fault.name}: {fault.fault}")
    broken = _until_well(plan, world, fault.alerts)
    began_s = time.time()
    detections = [Detection(alert) for alert in fault.alerts]
    now_s = time.perf_counter()
    with fault.block(world.serving, Moments(before_s=now_s, began_s=now_s)):
        _wait_until_detected(plan, world, detections, began_s)
        others = _others(world, fault.alerts)
        over_s = time.time()
    broken += [f"{name} has ended" for name in world.serving.revive()]
    for detection in detections:
        if detection.detected_s is None:
            broken.append(f"{detection.alert} did not fire within {plan.detect_s:g} s")
        elif not detection.receivers:
            broken.append(f"nobody was told of {detection.alert}")
    say(", ".join(f"{one.alert} {_seconds(one.detected_s)}" for one in detections))
    return AlertTrial(fault.name, fault.fault, began_s, over_s, detections, others, broken)


def _until_well(plan: AlertsPlan, world: AlertsWorld, alerts: Sequence[str]) -> list[str]:
    """Waits until what a fault should bring about is not there still because of one before; what is wrong with that."""
    with suppress(GamedayFailed):
        wait_until(
            lambda: world.is_well() and not world.firing() & set(alerts), plan.resolve_s, "it is not well"
        )
        return []
    return ["the fault before it was not over"]


def _wait_until_detected(
    plan: AlertsPlan, world: AlertsWorld, detections: Sequence[Detection], began_s: float
) -> None:
    while (passed_s := time.time() - began_s) < plan.detect_s:
        firing = world.firing()
        for detection in detections:
            if detection.detected_s is None and detection.alert in firing:
                detection.detected_s = passed_s
        if all(detection.detected_s is not None for detection in detections):
            break
        time.sleep(POLL_S)
    for detection in detections:
        if detection.detected_s is not None:
            detection.receivers = sorted(_told_to(world, detection.alert))


def _told_to(world: AlertsWorld, alert: str) -> set[str]:
    """The receivers to which Alertmanager routes an alert, once it has heard of it; none if that is given up."""
    with suppress(GamedayFailed):
        wait_until(lambda: bool(world.receivers(alert)), TELLING_S, "nobody is told")
    return world.receivers(alert)


def _others(world: AlertsWorld, alerts: Sequence[str]) -> list[str]:
    return sorted(world.firing() - {ALWAYS_FIRES, *alerts})


def _judge_resolution(
    plan: AlertsPlan, world: AlertsWorld, trials: Sequence[AlertTrial], say: Callable[[str], None]
) -> None:
    """Waits until all that fired is silent, and notes when it was."""
    say("Waiting until all alerts are silent.")
    expected = {detection.alert for trial in trials for detection in trial.detections}
    with suppress(GamedayFailed):
        wait_until(lambda: not world.firing() & expected, plan.resolve_s, "alerts still fire")
    times = world.firing_times(trials[0].began_s)
    still_firing = world.firing()
    for trial in trials:
        for detection in trial.detections:
            end_s = _end_s(times.get(detection.alert, ()), trial)
            if end_s is None:
                continue
            is_last = end_s == times[detection.alert][-1][1]
            if is_last and detection.alert in still_firing:
                trial.broken.append(f"{detection.alert} still fires")
            else:
                detection.resolved_s = max(end_s - trial.over_s, 0.0)


def _end_s(intervals: Sequence[tuple[float, float]], trial: AlertTrial) -> float | None:
    """Of the first time after the fault's begin in which an alert fired."""
    return next((end_s for _, end_s in intervals if end_s >= trial.began_s), None)


def _broker(folder: Path, kind: str | None, say: Callable[[str], None]) -> Broker | None:
    folder.mkdir(parents=True)
    try:
        return find_broker(folder, kind)[0]
    except ConfigurationError as error:
        say(f"Nothing is tried with a Kafka broker: {error}")
        return None


def alerts_table_rows(report: AlertsReport) -> Iterator[Sequence[str]]:
    """Header and rows of the table that people read."""
    yield ("fault", "alert", "detected", "resolved", "told to", "fired as well", "passed")
    for trial in report.trials:
        passed = "yes" if trial.passed else f"NO {'; '.join(trial.broken)}"
        detections = trial.detections or [Detection("-")]
        for number, one in enumerate(detections):
            is_first = number == 0
            yield (
                trial.name if is_first else "",
                one.alert,
                _seconds(one.detected_s),
                _seconds(one.resolved_s),
                ", ".join(one.receivers) or "-",
                ", ".join(trial.others) if is_first else "",
                passed if is_first else "",
            )


def _seconds(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s:.0f} s"
