import sys
from dataclasses import replace

import numpy as np
import pytest
from distributed import LocalCluster

from tests.training_data import synthetic_dataset, synthetic_spec, without_clicks
from training.dataset import NothingToTrainOn
from training.distributed import ClusterUnavailable, fit_ranker_distributed
from training.matrix import matrix
from training.metrics import ndcg
from training.models import LOGISTIC, NDCG, ModelParameters, fit_ranker

# With all rows and columns in every tree there is no chance in it.
PARAMETERS = ModelParameters(
    max_trees=30, learning_rate=0.1, max_depth=3, subsample=1.0, colsample_bytree=1.0
)
LOOPBACK = "127.0.0.1:0"


@pytest.fixture(scope="module")
def parts():
    _, dataset = synthetic_dataset(seed=1, slates=500)
    return dataset.slice(0, 350), dataset.slice(350, 400), dataset.slice(400, 500)


@pytest.fixture(scope="module")
def spec(parts):
    return synthetic_spec(parts[0])


@pytest.fixture(scope="module")
def address():
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address=LOOPBACK,
        worker_dashboard_address=LOOPBACK,
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("objective", [LOGISTIC, NDCG])
def test_two_workers_fit_the_ranker_of_one_machine(spec, parts, address, objective):
    train, validation, test = parts
    parameters = replace(PARAMETERS, objective=objective)

    def train_parts():
        return [train.slice(0, 101), train.slice(101, 350)]

    together = fit_ranker_distributed(spec, train_parts, validation, parameters, 3, address)

    alone = fit_ranker(spec, train_parts, validation, parameters, 3)
    rows = matrix(spec, test)
    scores = [booster.inplace_predict(rows) for booster in (alone, together)]
    quality = [
        np.nanmean(ndcg(of, test.relevance, test.slates.starts, 10, np.random.default_rng(1)))
        for of in scores
    ]
    assert np.corrcoef(scores)[0, 1] > 0.95
    assert quality[1] == pytest.approx(quality[0], abs=0.01)
    assert together.feature_names == list(spec.columns)


def test_more_workers_than_slates_do_no_harm(spec, parts, address):
    train, validation, _ = parts

    booster = fit_ranker_distributed(spec, lambda: [train], validation.slice(0, 1), PARAMETERS, 3, address)

    assert booster.num_boosted_rounds() >= 1


def test_without_an_address_this_machine_does_it(spec, parts):
    train, validation, _ = parts

    booster = fit_ranker_distributed(spec, lambda: [train], validation, replace(PARAMETERS, max_trees=3), 3)

    assert booster.num_boosted_rounds() == 3


def test_without_clicks_there_is_nothing_to_train_on(spec, parts, address):
    train, validation, _ = parts

    with pytest.raises(NothingToTrainOn, match="clicked"):
        fit_ranker_distributed(spec, lambda: [without_clicks(train)], validation, PARAMETERS, 3, address)
    with pytest.raises(NothingToTrainOn, match="validate"):
        fit_ranker_distributed(spec, lambda: [train], validation.slice(0, 0), PARAMETERS, 3, address)


def test_a_missing_library_is_named_with_its_command(spec, parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(ClusterUnavailable, match=r"predictive-propositions\[distributed\]"):
        fit_ranker_distributed(spec, lambda: [parts[0]], parts[1], PARAMETERS, 3)


def test_a_scheduler_that_does_not_answer_is_named(spec, parts, monkeypatch):
    monkeypatch.setattr("training.distributed.CONNECT_TIMEOUT_S", 0.2)

    with pytest.raises(ClusterUnavailable, match=r"127\.0\.0\.1:9"):
        fit_ranker_distributed(spec, lambda: [parts[0]], parts[1], PARAMETERS, 3, "tcp://127.0.0.1:9")
