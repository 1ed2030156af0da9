from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from tests.training_data import HALF_LIVES_S, TRAINING_SCHEMA, synthetic_dataset, without_clicks
from training.dataset import NothingToTrainOn
from training.models import ModelParameters
from training.tune import Limits, time_folds, tune

QUICK = ModelParameters(max_trees=6)


@pytest.fixture(scope="module")
def train():
    return synthetic_dataset(seed=2, slates=150, slate_sizes=(6, 6))[1]


def search(train, folder, trials, seed=1, **options):
    limits = options.pop("limits", Limits(trials=trials))
    return tune(TRAINING_SCHEMA, HALF_LIVES_S, train, seed, folder, limits, QUICK, **options)


@pytest.fixture(scope="module")
def tuning(train, tmp_path_factory):
    return search(train, tmp_path_factory.mktemp("uninterrupted"), trials=11)


def outcomes(tuning):
    return [(trial.parameters, trial.ndcg, trial.is_pruned) for trial in tuning.trials]


def test_folds_fit_on_earlier_stop_at_later_and_score_the_latest_slates(train):
    folds = list(time_folds(train))

    for windows in folds:
        times = [part.slates.decided_at_s for part in windows]
        assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()
        assert times[0].min() == train.slates.decided_at_s.min()
    fitted = [len(windows[0]) for windows in folds]
    assert fitted == sorted(fitted) and len(set(fitted)) == len(folds)
    assert folds[-1][2].slates.ids[-1] == train.slates.ids[-1]


def test_the_defaults_are_tried_first_and_the_best_is_no_worse(tuning):
    first = tuning.trials[0]

    assert replace(first.parameters, patience_trees=QUICK.patience_trees) == QUICK
    assert tuning.ndcg == max(trial.ndcg for trial in tuning.trials if not trial.is_pruned) >= first.ndcg
    assert tuning.best in [trial.parameters for trial in tuning.trials if trial.ndcg == tuning.ndcg]


def test_bad_trials_end_early(tuning):
    assert [trial.is_pruned for trial in tuning.trials].count(True) > 0


def test_a_search_that_was_cut_short_goes_on_and_finds_the_same(train, tuning, tmp_path):
    seen = []
    search(train, tmp_path, trials=9)

    resumed = search(train, tmp_path, trials=11, on_trial=lambda *progress: seen.append(progress))

    assert outcomes(resumed) == outcomes(tuning)
    assert [(number, total) for number, total, _ in seen] == [(10, 11), (11, 11)]
    assert seen[-1][2] == tuning.ndcg


def test_changed_slates_or_another_seed_begin_anew(train, tuning, tmp_path):
    search(train, tmp_path, trials=1)
    numbers = []

    def note(number, total, best):
        numbers.append(number)

    changed = replace(train, relevance=np.roll(train.relevance, 1))
    search(changed, tmp_path, trials=1, on_trial=note)
    search(train, tmp_path, trials=1, seed=2, on_trial=note)
    search(train, tmp_path, trials=1, on_trial=note)

    assert numbers == [1, 1]


def test_time_ends_a_search_but_not_before_its_first_trial(train, tmp_path):
    clock = count(0.0, 10.0)

    tuning = search(train, tmp_path, 0, limits=Limits(trials=50, seconds=15.0), now_s=lambda: next(clock))

    assert len(tuning.trials) == 2


def test_too_few_slates_or_none_clicked_are_nothing_to_tune_with(train, tmp_path):
    with pytest.raises(NothingToTrainOn, match="slates"):
        search(train.slice(0, 20), tmp_path, trials=1)
    with pytest.raises(NothingToTrainOn, match="clicked"):
        search(without_clicks(train), tmp_path, trials=1)
