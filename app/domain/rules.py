"""The rules that rank when no model can: what is clicked often, lately, and in this context."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RulesWeights:
    frequency: float
    recency: float
    context: float
    recency_half_life_s: float


def score_by_rules(
    click_rate: np.ndarray,
    context_click_rate: np.ndarray,
    last_event_age_s: np.ndarray,
    weights: RulesWeights,
) -> np.ndarray:
    """Weighted sum of three terms in [0, 1], float64, one per candidate.

    `click_rate` is the smoothed click rate of a candidate everywhere, `context_click_rate` the one
    in the context of the request (shrunk towards the first where there is little data), and
    `last_event_age_s` the seconds since anything happened to the candidate (NaN: never), which
    decays as 2 ** (-age / half-life).
    """
    recency = np.exp2(-np.maximum(last_event_age_s, 0.0) / weights.recency_half_life_s)
    return (
        weights.frequency * click_rate
        + weights.context * context_click_rate
        + weights.recency * np.nan_to_num(recency, nan=0.0)
    )
