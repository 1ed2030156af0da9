"""What a user liked before, compared with candidates: numbers that a reader can check by hand."""

from dataclasses import replace

import numpy as np
import pytest

from app.features.affinity import (
    NO_HISTORY,
    NOISE,
    NUMBER_WEIGHT,
    Affinity,
    Histories,
    History,
    Traits,
    learn_ranks,
)
from app.features.columns import RaggedColumn

# Row 0: {a, b}, row 1: {a}, row 2: {c}, row 3: nothing known.
TRAITS = Traits(
    codes=RaggedColumn.empty(np.int32).with_rows(np.arange(4), [[0, 1], [0], [2], []], 4),
    code_count=3,
    numbers={"price": np.array([1.0, 2.0, 3.0, np.nan])},
)
RANKS = {"price": (1.0, 2.0, 3.0)}


def affinities(history, base_rate, traits, rows, ranks):
    return Affinity(traits, base_rate, ranks).columns(history, rows)


def history(*shown_and_clicked):
    rows, impressions, clicks = np.array(shown_and_clicked).T
    return History(rows.astype(np.int64), impressions.astype(float), clicks.astype(float))


def test_a_trait_counts_as_much_as_it_was_clicked_more_often_than_the_user_clicks_at_all():
    taste = history((0, 1, 1), (2, 1, 0))

    columns = affinities(taste, 0.5, TRAITS, np.array([0, 1, 2, 3]), {})

    rate = (1 + 5 * 0.5) / (2 + 5)
    liked = np.log((1 + 2 * rate) / (3 * rate))
    disliked = np.log(2 * rate / (3 * rate))
    assert columns[:, 0] == pytest.approx([2 * liked, liked, disliked, 0.0], rel=1e-6)


def test_what_is_near_in_its_numbers_to_what_was_clicked_is_liked():
    no_traits = replace(TRAITS, codes=RaggedColumn.empty(np.int32).with_rows(np.arange(4), [[]] * 4, 4))
    taste = history((2, 1, 1), (0, 1, 0))

    columns = affinities(taste, 0.5, no_traits, np.array([0, 1, 2, 3]), RANKS)

    low, middle, high, unknown = columns[:, 1]
    assert low < 0.0 < high == pytest.approx(-low)
    assert middle == unknown == pytest.approx(0.0, abs=1e-7)


def test_likeness_is_the_kernel_regression_of_its_formula():
    taste = history((0, 1, 1), (1, 4, 1), (2, 2, 0))

    likeness = affinities(taste, 0.5, TRAITS, np.array([0, 1, 2, 3]), RANKS)[:, 1]

    rate = (2 + 5 * 0.5) / (7 + 5)
    in_common = np.array([[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 1], [0, 0, 0]])
    ranks = np.array([-(3**0.5), 0.0, 3**0.5, 0.0])
    kernel = in_common + NUMBER_WEIGHT * np.exp(-((ranks[:, None] - ranks[:3]) ** 2) / 2)
    surprise = (np.array([1, 1 / 4, 0]) - rate) / np.sqrt(rate * (1 - rate))
    weights = np.linalg.solve(kernel[:3] + np.diag(NOISE / np.array([1, 4, 2])), surprise)
    assert likeness == pytest.approx(kernel @ weights, rel=1e-4)


def test_what_two_shown_ones_have_in_common_counts_once():
    """Twice the same, clicked: naive Bayes believes twice as much in each of its traits, likeness less than twice."""
    once, twice = history((1, 1, 1), (2, 1, 0)), history((1, 2, 2), (2, 1, 0))

    likeness = [affinities(taste, 0.3, TRAITS, np.array([1]), {})[0, 1] for taste in (once, twice)]

    assert 0.0 < likeness[0] < likeness[1] < 1.5 * likeness[0]


def test_without_a_history_nothing_is_known_which_is_not_indifference():
    assert np.isnan(affinities(NO_HISTORY, 0.5, TRAITS, np.array([0, 1]), RANKS)).all()
    assert not np.isnan(affinities(history((1, 1, 0)), 0.5, TRAITS, np.array([2]), RANKS)).any()


def test_propositions_that_nobody_knows_any_more_are_left_out_of_a_history():
    known, with_a_deleted_one = history((0, 1, 1)), history((0, 1, 1), (-1, 0, 0))

    for candidates in (np.array([0, 1, -1]),):
        assert np.array_equal(
            affinities(known, 0.5, TRAITS, candidates, RANKS),
            affinities(with_a_deleted_one, 0.5, TRAITS, candidates, RANKS),
        )


def test_a_click_without_an_impression_was_shown_nevertheless():
    assert np.array_equal(
        affinities(history((0, 0, 2)), 0.5, TRAITS, np.array([0, 2]), RANKS),
        affinities(history((0, 2, 2)), 0.5, TRAITS, np.array([0, 2]), RANKS),
    )


def test_ranks_do_not_depend_on_the_scale_of_a_number():
    values = np.random.default_rng(1).lognormal(size=200)
    seen = history(*((row, 1, row % 2) for row in range(100)))
    rows = np.arange(100, 200)

    columns = [
        affinities(
            seen,
            0.3,
            Traits(RaggedColumn.empty(np.int32).with_rows(np.arange(200), [[]] * 200, 200), 0, {"x": x}),
            rows,
            {"x": learn_ranks(x)},
        )
        for x in (values, 1_000.0 * values)
    ]

    assert np.allclose(*columns, atol=1e-5)


def test_a_catalog_with_more_kinds_of_traits_gives_the_same_affinities():
    many = Traits(TRAITS.codes, 100_000, TRAITS.numbers)
    taste = history((0, 1, 1), (2, 3, 1))

    columns = [affinities(taste, 0.3, traits, np.arange(4), RANKS) for traits in (TRAITS, many)]

    assert np.array_equal(*columns)


def test_what_was_asked_before_does_not_change_what_is_answered():
    affinity = Affinity(TRAITS, 0.3, RANKS)
    taste = history((0, 1, 1))

    first = affinity.columns(taste, np.array([2, 1]))
    again = affinity.columns(taste, np.array([1, 3, 2]))

    assert np.array_equal(again[[2, 0]], first)


@pytest.mark.parametrize("values", [[np.nan, np.nan], [4.0, 4.0, np.nan]])
def test_a_number_that_tells_nothing_has_no_ranks(values):
    assert learn_ranks(np.array(values)) == ()


def test_histories_are_selected_in_the_asked_order():
    histories = Histories(
        np.array([0, 2, 2, 5]), np.arange(5), np.arange(5.0), np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    )

    chosen = histories.select(np.array([2, 0, 1]))

    assert [chosen[number].rows.tolist() for number in range(3)] == [[2, 3, 4], [0, 1], []]
    assert chosen[0].clicks.tolist() == [0.0, 1.0, 0.0] and len(chosen) == 3
