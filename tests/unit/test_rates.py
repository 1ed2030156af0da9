import numpy as np
import pytest

from app.features.rates import MAX_STRENGTH, learn_prior_strength, pooled_rate, smoothed_rate


def test_without_trials_a_rate_is_its_prior():
    assert smoothed_rate(np.zeros(1), np.zeros(1), 0.25, 10.0)[0] == 0.25


def test_many_trials_outweigh_the_prior():
    assert smoothed_rate(np.array([900.0]), np.array([1000.0]), 0.1, 10.0)[0] == pytest.approx(
        0.892, abs=1e-3
    )


def test_the_pooled_rate_weighs_trials_not_entities():
    assert pooled_rate(np.array([1.0, 9.0]), np.array([1.0, 99.0])) == pytest.approx(0.1)


def test_without_any_trials_the_pooled_rate_is_the_default():
    assert pooled_rate(np.zeros(3), np.zeros(3), default=0.07) == 0.07


@pytest.mark.parametrize("strength", [4.0, 20.0, 100.0])
def test_the_learned_strength_is_near_the_one_that_the_data_were_drawn_with(strength):
    rng = np.random.default_rng(3)
    trials = rng.integers(20, 200, 5_000).astype(float)
    rates = rng.beta(0.3 * strength, 0.7 * strength, 5_000)

    learned = learn_prior_strength(rng.binomial(trials.astype(int), rates).astype(float), trials)

    assert learned == pytest.approx(strength, rel=0.15)


def test_entities_that_do_not_differ_get_the_strongest_prior():
    trials = np.full(500, 100.0)

    assert learn_prior_strength(trials * 0.3, trials) == MAX_STRENGTH
