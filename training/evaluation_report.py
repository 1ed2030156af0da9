"""All figures of one evaluation, and how they are kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from training.metrics import Interval

MODEL, LOGISTIC = "xgboost", "logistic"
MODELS = (MODEL, LOGISTIC)
POPULARITY, SHOWN_ORDER, RANDOM = "popularity", "shown_order", "random"
# Whose history can be hidden.
USERS, PROPOSITIONS = "users", "propositions"
HEADLINE = "ndcg@10"
TOP = 3
TARGET_PRECISION = 0.7
SHARES = (0.05, *(tenths / 10 for tenths in range(1, 11)))
DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of one evaluation, NaN where there is nothing to measure.

    `slate_count` of all slates, `slates` by segment. `rankers[name][all|warm|cold][metric]` and `intervals` likewise;
    `paired["xgboost-popularity"][metric]` are gains per slate. `segments` has means by ranker for groups of slates. The rest
    is told where it is computed, in `evaluation`.
    """

    slate_count: int
    slates: Mapping[str, Any]
    rankers: Mapping[str, Mapping[str, Mapping[str, float]]]
    intervals: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    paired: Mapping[str, Mapping[str, Interval]]
    segments: Mapping[str, Any]
    retained_lift: Mapping[str, float]
    selective: Mapping[str, Mapping[str, float]]
    coverage: Mapping[str, float]
    diversity: Mapping[str, Mapping[str, float]]
    calibration: Mapping[str, Any]
    ceiling: Mapping[str, float]
    importance: Mapping[str, float]
    shap: Mapping[str, float]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values with sorted keys; null where there is nothing to measure."""
        return _plain(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Report":
        return cls(**{each.name: _restored(data[each.name]) for each in fields(cls)})


def _plain(value: Any) -> Any:
    """As JSON has it: sorted, rounded, null for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return round(value, DECIMALS) if math.isfinite(value) else None
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = {key: _restored(each) for key, each in value.items()}
        return Interval(**items) if items.keys() == {"mean", "low", "high"} else items
    if isinstance(value, list):
        return [_restored(each) for each in value]
    return math.nan if value is None else value
