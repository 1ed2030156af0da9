"""Splits: no part knows what another one is asked for."""

import numpy as np
import pytest

from tests.training_data import SECONDS_BETWEEN_SLATES, synthetic_dataset
from training.dataset import Dataset, NothingToTrainOn
from training.splits import Shares, Split, split_at, split_by_time, split_by_user


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """A slate every five minutes, of ten users and nobody in particular."""
    return synthetic_dataset(seed=1, slates=200, users=10)[1]


def parts(split: Split) -> list[Dataset]:
    return [split.train, split.validation, split.test]


def slate_counts(split: Split) -> list[int]:
    return [part.slate_count for part in parts(split)]


def test_the_past_is_trained_on_and_the_future_tested_and_no_slate_is_cut(dataset):
    split = split_by_time(dataset, validation_share=0.1, test_share=0.2)

    assert slate_counts(split) == [140, 20, 40]
    assert np.concatenate([part.slates.ids for part in parts(split)]).tolist() == dataset.slates.ids.tolist()
    assert np.array_equal(np.concatenate([part.slate_sizes for part in parts(split)]), dataset.slate_sizes)
    assert split.train.slates.decided_at_s.max() <= split.validation.slates.decided_at_s.min()
    assert split.validation.slates.decided_at_s.max() <= split.test.slates.decided_at_s.min()


def test_slates_keep_their_rows_labels_and_histories(dataset):
    test = split_by_time(dataset).test

    first = dataset.slates.starts[160]
    assert np.array_equal(test.proposition_ids, dataset.proposition_ids[first:])
    assert np.array_equal(test.relevance, dataset.relevance[first:])
    assert np.array_equal(
        test.rows["proposition_performance"].counts, dataset.rows["proposition_performance"].counts[first:]
    )
    assert np.array_equal(test.rows["user_activity"].counts, dataset.rows["user_activity"].counts[160:])
    assert np.array_equal(test.histories[3].rows, dataset.histories[163].rows)


def test_slates_within_the_embargo_are_in_no_part(dataset):
    embargo_s = 2.5 * SECONDS_BETWEEN_SLATES

    split = split_by_time(dataset, embargo_s=embargo_s)

    assert slate_counts(split) == [140, 18, 38]
    assert split.validation.slates.ids[0] == dataset.slates.ids[142]
    assert split.test.slates.decided_at_s[0] - dataset.slates.decided_at_s[159] >= embargo_s


def test_a_moment_divides_what_is_tested_from_the_rest(dataset):
    moment_s = dataset.slates.decided_at_s[150]

    split = split_at(dataset, moment_s, validation_share=0.2)

    assert slate_counts(split) == [120, 30, 50]
    assert split.test.slates.decided_at_s[0] == moment_s


def test_a_user_is_in_one_part_only(dataset):
    split = split_by_user(dataset, Shares(validation=0.2, test=0.3), seed=1)

    users = [set(part.slates.user_ids.tolist()) - {""} for part in parts(split)]
    assert sum(map(len, users)) == len(set.union(*users)) == 10
    assert sum(slate_counts(split)) == 200
    assert all("" in part.slates.user_ids for part in parts(split))  # nobody in particular is no one user


def test_users_stay_where_they_are_when_others_come_and_another_seed_divides_them_anew(dataset):
    def tested(data: Dataset, seed: int) -> set[str]:
        return set(split_by_user(data, Shares(0.2, 0.3), seed).test.slates.user_ids.tolist()) - {""}

    fewer = dataset.select(np.flatnonzero(dataset.slates.user_ids != "u0"))

    assert tested(fewer, 1) == tested(dataset, 1) - {"u0"}
    assert tested(dataset, 1) != tested(dataset, 2)


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        (lambda data: split_by_time(data.slice(0, 3)), "validation"),
        (lambda data: split_by_time(data, embargo_s=1e9), "shorten the embargo"),
        (lambda data: split_at(data, 0.0), "train and validation"),
        (lambda data: split_by_user(data.select(np.flatnonzero(data.slates.user_ids == "u1"))), "more users"),
    ],
)
def test_a_part_without_slates_is_refused_and_told(dataset, split, reason):
    with pytest.raises(NothingToTrainOn, match=reason):
        split(dataset)
