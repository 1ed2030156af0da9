"""Whether a model may serve: measured figures against limits, each with its reason in words."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.features.assembly import REQUEST_ENTITIES
from app.features.ports import Model

POPULARITY, CURRENT = "popularity", "current"
METRIC = "ndcg@10"


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What a model must reach.

    `min_gain`: least mean gain of NDCG@10 over popularity and over the model that serves; beside it the whole 95 %
    interval must lie above 0. `max_calibration_error`: of the clicks expected at a score. `min_request_coverage` and
    `min_model_coverage`: shares of requests that get a slate, and get it from the model. `min_user_lift` and
    `min_proposition_lift`: shares of the lift over random that are left without the history of the user, or of the
    proposition. `max_latency_ms`: 99th percentile of scoring 200 candidates. `min_slates`: slates it was tested on.
    """

    min_gain: float = 0.0
    max_calibration_error: float = 0.05
    min_request_coverage: float = 1.0
    min_model_coverage: float = 0.95
    min_user_lift: float = 0.85
    min_proposition_lift: float = 0.90
    max_latency_ms: float = 20.0
    min_slates: int = 100


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean of paired differences over slates, and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class GateInput:
    """The figures of a candidate; None where nothing could be measured.

    `without_current`: why there is no gain over the model that serves. `user_lift` and `proposition_lift` are None where
    the test slates leave nothing to hide. `latency_ms` is the 99th percentile.
    """

    slate_count: int
    gain_over_popularity: Gain | None
    gain_over_current: Gain | None
    without_current: str | None
    calibration_error: float | None
    request_coverage: float | None
    model_coverage: float | None
    user_lift: float | None
    proposition_lift: float | None
    latency_ms: float | None
    schema_hash: str
    repo_schema_hash: str


@dataclass(frozen=True, slots=True)
class Check:
    """One figure against its limit, as text. A check that was skipped does not stand in the way."""

    name: str
    is_passed: bool
    measured: str
    required: str
    reason: str
    is_skipped: bool = False

    @property
    def outcome(self) -> str:
        return "skipped" if self.is_skipped else "passed" if self.is_passed else "failed"


@dataclass(frozen=True, slots=True)
class Verdict:
    is_passed: bool
    checks: tuple[Check, ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(check) for check in self.checks]


def judge(candidate: GateInput, limits: GateLimits) -> Verdict:
    """All checks, also after one failed: whoever has to improve a model wants to know everything at once."""
    c = candidate
    checks = (
        _at_least(
            "test slates",
            c.slate_count,
            limits.min_slates,
            "{measured:,.0f} slates were tested on, required are {limit:,.0f}",
        ),
        _gain("gain over popularity", "popularity", c.gain_over_popularity, limits.min_gain),
        _skipped("gain over the current model", _gain_text(limits.min_gain), c.without_current)
        if c.gain_over_current is None and c.without_current
        else _gain(
            "gain over the current model", "the model that serves", c.gain_over_current, limits.min_gain
        ),
        _at_most(
            "calibration",
            c.calibration_error,
            limits.max_calibration_error,
            "expected and counted clicks differ by {measured:.4f} on average, allowed is {limit:.4f}",
        ),
        _at_least(
            "coverage of requests",
            c.request_coverage,
            limits.min_request_coverage,
            "{measured:.2%} of the requests get a slate, required are {limit:.2%}",
        ),
        _at_least(
            "coverage by the model",
            c.model_coverage,
            limits.min_model_coverage,
            "{measured:.2%} of the requests are ranked by the model, required are {limit:.2%}",
        ),
        _lift("cold users", "users", c.user_lift, limits.min_user_lift),
        _lift("cold propositions", "propositions", c.proposition_lift, limits.min_proposition_lift),
        _at_most(
            "latency",
            c.latency_ms,
            limits.max_latency_ms,
            "scoring 200 candidates takes {measured:.2f} ms at the 99th percentile, allowed are {limit:g} ms",
        ),
        _same_schema(c.schema_hash, c.repo_schema_hash),
    )
    return Verdict(all(check.is_passed for check in checks), checks)


def read_report(
    report: Mapping[str, Any],
    ranker: str,
    without_current: str | None,
    latency_ms: float | None,
    schema_hash: str,
    repo_schema_hash: str,
) -> GateInput:
    """The input of the gate from an evaluation report as it is written in JSON.

    A figure that the report lacks counts as not measured. It may say `null` for a lift where nothing could be hidden.
    """
    lifts = report.get("retained_lift", {})
    coverage = report.get("coverage", {})
    return GateInput(
        slate_count=report.get("slate_count", 0),
        gain_over_popularity=gain_of(report, ranker, POPULARITY),
        gain_over_current=gain_of(report, ranker, CURRENT),
        without_current=without_current,
        calibration_error=report.get("rankers", {}).get(ranker, {}).get("all", {}).get("calibration_error"),
        request_coverage=coverage.get("requests"),
        model_coverage=coverage.get("model"),
        user_lift=lifts.get("users", math.nan),
        proposition_lift=lifts.get("propositions", math.nan),
        latency_ms=latency_ms,
        schema_hash=schema_hash,
        repo_schema_hash=repo_schema_hash,
    )


def gain_of(report: Mapping[str, Any], ranker: str, baseline: str) -> Gain | None:
    """What a ranker gains over another one in NDCG@10; None where the report does not say."""
    gain = report.get("paired", {}).get(f"{ranker}-{baseline}", {}).get(METRIC)
    if gain is None or None in gain.values():
        return None
    return Gain(gain["mean"], gain["low"], gain["high"])


def _gain(name: str, baseline: str, gain: Gain | None, min_gain: float) -> Check:
    if gain is None:
        return _unmeasured(name, _gain_text(min_gain))
    measured = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    is_certain, is_enough = gain.low > 0.0, gain.mean >= min_gain
    if is_certain and is_enough:
        reason = (
            f"NDCG@10 is {gain.mean:.4f} above that of {baseline}, at least {gain.low:.4f} of it for certain"
        )
    elif is_certain:
        reason = f"NDCG@10 is only {gain.mean:.4f} above that of {baseline}, required are {min_gain:.4f}"
    else:
        reason = f"the 95 % interval of the gain over {baseline}, {gain.low:+.4f} to {gain.high:+.4f}, does not lie above 0"
    return Check(name, is_certain and is_enough, measured, _gain_text(min_gain), reason)


def _gain_text(min_gain: float) -> str:
    return "> 0 for certain" + (f", mean >= {min_gain:g}" if min_gain > 0 else "")


def _lift(name: str, entities: str, lift: float | None, least: float) -> Check:
    if lift is None:
        return _skipped(name, f">= {least:g}", f"the test slates have no history of {entities} to hide")
    text = f"without the history of {entities} {{measured:.1%}} of the lift over random is left, required are {{limit:.1%}}"
    return _at_least(name, lift, least, text)


def _same_schema(ours: str, repo: str) -> Check:
    is_same = ours == repo
    reason = (
        f"the model and the feature repo have the schema {ours[:12]}"
        if is_same
        else f"the model reads the schema {ours[:12]}, the feature repo declares {repo[:12]}: train again"
    )
    return Check("feature schema", is_same, ours[:12], repo[:12], reason)


def _at_least(name: str, measured: float | None, limit: float, text: str) -> Check:
    return _compared(name, measured, limit, f">= {limit:g}", lambda figure: figure >= limit, text)


def _at_most(name: str, measured: float | None, limit: float, text: str) -> Check:
    return _compared(name, measured, limit, f"<= {limit:g}", lambda figure: figure <= limit, text)


def _compared(
    name: str,
    measured: float | None,
    limit: float,
    required: str,
    is_good: Callable[[float], bool],
    text: str,
) -> Check:
    if measured is None or math.isnan(measured):
        return _unmeasured(name, required)
    return Check(
        name, is_good(measured), f"{measured:.4g}", required, text.format(measured=measured, limit=limit)
    )


def _unmeasured(name: str, required: str) -> Check:
    return Check(name, False, "not measured", required, f"the report has no figure for the {name}")


def _skipped(name: str, required: str, reason: str) -> Check:
    return Check(name, True, "not measured", required, f"skipped: {reason}", is_skipped=True)


def measure_latency_ms(
    model: Model,
    matrix: np.ndarray,
    candidate_count: int = 200,
    repeats: int = 300,
    clock_s: Callable[[], float] = time.perf_counter,
) -> float:
    """The 99th percentile of scoring `candidate_count` candidates in ms, none of whose parts were kept before.

    `matrix`: float32 (n, columns of the model), rows as they occur; they are repeated where there are too few. A tree model
    is scored part by part as the service does, user and context once, the candidates' own columns for each of them.
    """
    score = scoring_as_served(model)
    rows = np.resize(np.arange(len(matrix)), (repeats, candidate_count))
    times_ms = []
    for chosen in rows:
        candidates = np.ascontiguousarray(matrix[chosen])
        began_s = clock_s()
        score(candidates)
        times_ms.append(1_000 * (clock_s() - began_s))
    return float(np.percentile(times_ms, 99))


def scoring_as_served(model: Model) -> Callable[[np.ndarray], np.ndarray]:
    """What turns rows of one user and context, float32 (n, columns), into scores (n,) as the service does."""
    if model.forest is None:
        return model.score
    spec, forest = model.spec, model.forest
    is_shared = np.zeros(len(spec.columns), dtype=bool)
    for view in spec.views:
        if view.entity in REQUEST_ENTITIES and not view.has_history:
            columns = spec.columns_of[view.name]
            is_shared[columns.start : columns.stop] = True
    shared_columns, own_columns = np.flatnonzero(is_shared), np.flatnonzero(~is_shared)
    shared, own = forest.part(shared_columns), forest.part(own_columns)

    def score(candidates: np.ndarray) -> np.ndarray:
        of_request = shared.masks(candidates[:1, shared_columns])[0]
        return forest.gathered_scores(
            of_request, [(own.masks(candidates[:, own_columns]), np.arange(len(candidates)))]
        )

    return score
