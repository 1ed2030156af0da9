"""Which columns a model gets, on slates whose columns are made to agree."""

from dataclasses import replace

import numpy as np
import pytest

from app.domain.types import EventType
from app.features.fold import EVENT_ROW
from tests.training_data import HALF_LIVES_S, TRAINING_SCHEMA, synthetic_dataset, synthetic_spec
from training.columns import learn_columns, needless_columns
from training.dataset import Dataset
from training.matrix import matrix

PERFORMANCE, CONTEXT, IN_CONTEXT = (
    "proposition_performance",
    "context_activity",
    "context_proposition_performance",
)


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(seed=4, slates=250)[1]


def dropped(dataset: Dataset) -> set[str]:
    return set(needless_columns(synthetic_spec(dataset), dataset))


def with_counts(dataset: Dataset, view: str, counts: np.ndarray, **changes) -> Dataset:
    changed = replace(dataset.rows[view], counts=counts, **changes)
    return replace(dataset, rows={**dataset.rows, view: changed})


def test_of_two_half_lives_that_say_the_same_the_longer_stays_and_there_is_no_trend(dataset):
    counts = np.repeat(dataset.rows[PERFORMANCE].counts[:, :, -1:], 2, axis=2)
    # As of the slate itself, so that nothing decays.
    moments_s = dataset.slates.decided_at_s[dataset.slate_of_row]
    left_out = dropped(with_counts(dataset, PERFORMANCE, counts, as_of_s=moments_s))

    names = ("log_impressions_1d", "click_rate_1d", "click_rate_trend")
    assert {f"{PERFORMANCE}.{name}" for name in names} <= left_out
    assert f"{PERFORMANCE}.click_rate_30d" not in left_out


def test_half_lives_that_say_different_things_both_stay_and_so_does_the_trend(dataset):
    counts = dataset.rows[PERFORMANCE].counts.copy()
    counts[:, EVENT_ROW[EventType.CLICK], 0] = np.random.default_rng(1).random(len(counts))

    left_out = dropped(with_counts(dataset, PERFORMANCE, counts))

    names = ("click_rate_1d", "click_rate_30d", "click_rate_trend")
    assert not {f"{PERFORMANCE}.{name}" for name in names} & left_out


def test_rates_of_what_never_happened_are_left_out(dataset):
    assert EventType.DISMISS not in dataset.relevance  # the synthetic world has none
    left_out = dropped(dataset)

    assert {n for n in synthetic_spec(dataset).columns if ".dismiss_rate_" in n} <= left_out
    assert f"{PERFORMANCE}.conversion_rate_30d" not in left_out


def test_a_context_that_is_the_only_one_tells_nothing_of_its_propositions(dataset):
    only = {**dataset.rows, IN_CONTEXT: dataset.rows[PERFORMANCE]}

    left_out = dropped(replace(dataset, rows=only))

    assert {f"{IN_CONTEXT}.log_impressions_30d", f"{IN_CONTEXT}.idle"} <= left_out
    assert f"{PERFORMANCE}.log_impressions_30d" not in left_out


def test_what_only_ever_grows_is_a_clock_and_left_out(dataset):
    counts = dataset.rows[CONTEXT].counts.copy()
    counts[:, EVENT_ROW[EventType.IMPRESSION]] = 1.0 + np.arange(len(counts))[:, None]

    left_out = dropped(with_counts(dataset, CONTEXT, counts, as_of_s=dataset.slates.decided_at_s))

    assert {f"{CONTEXT}.log_impressions_1d", f"{CONTEXT}.log_impressions_30d"} <= left_out
    assert f"{CONTEXT}.log_impressions_30d" not in dropped(dataset)


def with_value(dataset: Dataset, values: np.ndarray) -> Dataset:
    catalog = dataset.rows["proposition_catalog"]
    changed = replace(catalog, values={**catalog.values, "value": values})
    return replace(dataset, rows={**dataset.rows, "proposition_catalog": changed})


def test_a_column_of_one_value_is_left_out_and_a_rare_one_is_kept(dataset):
    rare = np.full(len(dataset), np.nan)
    rare[5] = 1.0

    assert "proposition_catalog.value" in dropped(with_value(dataset, np.full(len(dataset), 2.0)))
    assert "proposition_catalog.value" not in dropped(with_value(dataset, rare))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_coarser_copy_of_a_column_is_left_out_whichever_way_it_is_ordered(dataset, sign):
    created_s = dataset.rows["proposition_catalog"].values["created_at_s"]
    length = dataset.rows["proposition_catalog"].values["numbers.length"]

    assert "proposition_catalog.created_at_days" in dropped(with_value(dataset, sign * created_s))
    assert "proposition_catalog.created_at_days" not in dropped(with_value(dataset, sign * length))


def test_what_compares_a_user_with_a_candidate_stays_whatever_it_says(dataset):
    numberless = replace(dataset, traits=replace(dataset.traits, numbers={}))

    assert not {name for name in dropped(numberless) if name.startswith("user_history.")}


def test_the_same_slates_give_the_same_columns_and_the_others_stay_as_they_are(dataset):
    spec, again = (learn_columns(TRAINING_SCHEMA, HALF_LIVES_S, dataset) for _ in range(2))

    everything = synthetic_spec(dataset)
    kept = [number for number, name in enumerate(everything.columns) if name in spec.columns]
    assert spec == again and 0 < len(spec.columns) < len(everything.columns)
    rows = matrix(everything, dataset)[:, kept]
    assert np.array_equal(matrix(spec, dataset), rows, equal_nan=True)
