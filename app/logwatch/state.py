"""What a watch remembers, as JSON, to be kept between runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.domain.errors import ConfigurationError
from app.logwatch.counts import Dispersion, Traffic, Trouble
from app.logwatch.latency import Cusum, LatencyChart
from app.logwatch.watch import Anomaly, Kind, Plan, Route, Signature, Span, Watch

VERSION = 1


def save(watch: Watch, path: Path) -> None:
    """Replaces the file as a whole."""
    content = {
        "version": VERSION,
        "plan": asdict(watch.plan),
        "began_s": watch.began_s,
        "now_s": watch.now_s,
        "window_end_s": watch.window_end_s,
        "windows": watch.windows,
        "signatures": {name: asdict(known) for name, known in watch.signatures.items()},
        "routes": {name: asdict(route) for name, route in watch.routes.items()},
        "open": [asdict(anomaly) for anomaly in watch.open.values()],
    }
    draft = path.with_name(f"{path.name}.draft")
    draft.write_bytes(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
    draft.replace(path)


def load(path: Path, plan: Plan) -> Watch:
    """Where the run before has left off; a new one if there was none.

    Raises:
        ConfigurationError: the file is no such state, or of another plan.
    """
    if not path.exists():
        return Watch(plan)
    try:
        content = orjson.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise ConfigurationError(f"{path} is of another version of this program: delete it")
        if content["plan"] != asdict(plan):
            raise ConfigurationError(
                f"{path} was made with other options: use the same ones, or another file"
            )
        return _watch(content, plan)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is no state of `propositions logs anomalies`: {error}") from error


def _watch(content: dict[str, Any], plan: Plan) -> Watch:
    watch = Watch(plan)
    watch.began_s, watch.now_s = content["began_s"], content["now_s"]
    watch.window_end_s, watch.windows = content["window_end_s"], content["windows"]
    watch.signatures = {name: _signature(known) for name, known in content["signatures"].items()}
    watch.routes = {name: _route(route) for name, route in content["routes"].items()}
    anomalies = [Anomaly(**{**anomaly, "kind": Kind(anomaly["kind"])}) for anomaly in content["open"]]
    watch.open = {(anomaly.kind, anomaly.subject): anomaly for anomaly in anomalies}
    return watch


def _signature(content: dict[str, Any]) -> Signature:
    return Signature(content["last_s"], [_span(span, Trouble) for span in content["spans"]])


def _route(content: dict[str, Any]) -> Route:
    chart = content["latency"]
    usual, now = np.array(chart["usual"]), np.array(chart["now"])
    latency = LatencyChart(usual, now, _cusum(chart["typical"]), _cusum(chart["tail"]))
    return Route([_span(span, Traffic) for span in content["spans"]], latency)


def _span(content: dict[str, Any], kind: type[Trouble | Traffic]) -> Span:
    usual = {**content["usual"], "dispersion": Dispersion(**content["usual"]["dispersion"])}
    # JSON has no infinity.
    threshold = float("inf") if content["threshold"] is None else content["threshold"]
    return Span(**{**content, "usual": kind(**usual), "threshold": threshold})


def _cusum(content: dict[str, Any]) -> Cusum:
    return Cusum(
        **{**content, "covariances": tuple(content["covariances"]), "before": tuple(content["before"])}
    )
