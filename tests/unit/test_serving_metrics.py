"""What is counted of the rows that a request reads."""

import numpy as np
from prometheus_client import CollectorRegistry

from app.api.metrics import ServingMetrics
from app.domain.types import FeatureState
from app.features.ports import OnlineRows
from app.features.rows import Rows


def online_rows(*states: FeatureState, age_s: float | None = None) -> OnlineRows:
    return OnlineRows(Rows(None, None, {"age": np.zeros(len(states))}), list(states), age_s)


def test_rows_are_counted_by_view_and_state():
    registry = CollectorRegistry()
    metrics = ServingMetrics(registry)
    fresh, stale, missing = FeatureState.FRESH, FeatureState.STALE, FeatureState.MISSING

    metrics.features_read(
        {"likes": online_rows(fresh, missing, fresh, age_s=7.0), "profile": online_rows(stale)}
    )
    metrics.features_read({"likes": online_rows(missing)})
    metrics.flush()

    def count(view: str, state: FeatureState) -> float | None:
        return registry.get_sample_value("propositions_feature_rows_total", {"view": view, "state": state})

    assert [count("likes", state) for state in (fresh, stale, missing)] == [2.0, 0.0, 2.0]
    assert [count("profile", state) for state in (fresh, stale, missing)] == [0.0, 1.0, 0.0]
    assert registry.get_sample_value("propositions_feature_age_seconds_count", {"view": "likes"}) == 1.0
