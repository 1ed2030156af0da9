"""Smoothed rates: successes per impression, shrunk towards a prior that is learned from the data."""

import numpy as np

MIN_STRENGTH, MAX_STRENGTH = 1.0, 1_000.0


def smoothed_rate(
    successes: np.ndarray, trials: np.ndarray, prior_rate: np.ndarray | float, prior_strength: float
) -> np.ndarray:
    """Posterior mean of a beta-binomial: (successes + m * p) / (trials + m).

    The prior counts as `prior_strength` m more trials at rate `prior_rate` p. Without any trials the
    rate is the prior's.

    >>> float(smoothed_rate(np.array([1.0]), np.array([1.0]), 0.1, 9.0)[0])
    0.19
    """
    return (successes + prior_strength * prior_rate) / (trials + prior_strength)


def pooled_rate(successes: np.ndarray, trials: np.ndarray, default: float = 0.1) -> float:
    """All successes per all trials; `default` where nothing was tried yet."""
    total = float(np.sum(trials))
    return float(np.clip(np.sum(successes) / total, 1e-6, 1.0)) if total > 0 else default


def learn_prior_strength(successes: np.ndarray, trials: np.ndarray, default: float = 20.0) -> float:
    """Strength m = a + b of the beta prior from which the entities' true rates seem to be drawn.

    Method of moments for the beta-binomial with unequal trials (Kleinman 1973, "Proportions with
    extraneous variance"), weights equal to trials. Entities that hardly differ give a strong prior.
    Clipped to [1, 1000]; `default` for fewer than two tried entities.
    """
    tried = trials > 0
    k, n = successes[tried], trials[tried]
    if len(n) < 2:
        return default
    total = n.sum()
    mean = k.sum() / total
    spread = mean * (1.0 - mean)
    if spread <= 0:
        return MAX_STRENGTH
    rates = k / n
    between = float((n * (rates - mean) ** 2).sum())
    within = spread * (len(n) - 1)
    weight = total - (n**2).sum() / total - (len(n) - 1)
    if weight <= 0:
        return default
    correlation = (between - within) / (spread * weight)
    if correlation <= 0:
        return MAX_STRENGTH
    return float(np.clip(1.0 / correlation - 1.0, MIN_STRENGTH, MAX_STRENGTH))
