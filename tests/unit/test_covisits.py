import random
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.features.covisits import (
    KEPT_NEIGHBOURS,
    MAX_NEIGHBOURS,
    MAX_PARTNERS,
    CovisitRules,
    Neighbours,
    fold_positives,
    touched_neighbours,
)
from app.features.recent import recent_keys
from tests.builders import DAY_S, HOUR_S, NOON, recorded

HALF_LIFE_S = 30 * DAY_S
RULES = CovisitRules(window_s=DAY_S, half_life_s=HALF_LIFE_S)


def click(proposition_id, after_s=0.0, user_id="u1", received_after_s=None):
    return recorded("click", proposition_id, after_s, user_id, received_after_s=received_after_s)


def neighbours_after(events, rules=RULES) -> dict[str, Neighbours]:
    neighbours = {}
    fold_positives(events, {}, neighbours, rules)
    return neighbours


def weights_at(neighbours, proposition_id, after_s, half_life_s=HALF_LIFE_S) -> dict[str, float]:
    if proposition_id not in neighbours:
        return {}
    known = neighbours[proposition_id]
    decay = 2 ** (-(NOON.timestamp() + after_s - known.as_of_s) / half_life_s)
    return {other: weight * decay for other, weight in known.weights.items()}


def test_propositions_that_a_user_clicks_one_after_the_other_are_neighbours_of_each_other():
    neighbours = neighbours_after([click("a"), click("b"), click("c")])

    assert weights_at(neighbours, "a", 0) == pytest.approx({"b": 1, "c": 1})
    assert weights_at(neighbours, "b", 0) == pytest.approx({"a": 1, "c": 1})
    assert weights_at(neighbours, "c", 0) == pytest.approx({"a": 1, "b": 1})


def test_every_user_and_every_repetition_adds_to_the_weight():
    twice = [click("a"), click("b"), click("a")]
    another = [click("a", user_id="u2"), click("b", user_id="u2")]

    assert weights_at(neighbours_after(twice + another), "a", 0) == pytest.approx({"b": 3})


def test_clicks_of_different_users_are_no_pair():
    assert neighbours_after([click("a", user_id="u1"), click("b", user_id="u2")]) == {}


def test_impressions_and_anonymous_clicks_are_no_pair():
    assert neighbours_after([click("a"), recorded("impression", "b"), click("c", user_id=None)]) == {}


def test_clicks_further_apart_than_the_window_are_no_pair():
    neighbours = neighbours_after([click("a", 0), click("b", HOUR_S), click("c", DAY_S + 1)])

    assert set(neighbours["c"].weights) == {"b"}


def test_a_click_pairs_with_the_last_few_others_only():
    neighbours = neighbours_after([click(f"p{n}", n) for n in range(MAX_PARTNERS + 2)])

    assert set(neighbours[f"p{MAX_PARTNERS + 1}"].weights) == {f"p{n}" for n in range(1, MAX_PARTNERS + 1)}


def test_a_weight_halves_in_a_half_life():
    neighbours = neighbours_after(
        [click("a", 0), click("b", 0), click("a", HALF_LIFE_S), click("c", HALF_LIFE_S)]
    )

    assert weights_at(neighbours, "a", HALF_LIFE_S) == pytest.approx({"b": 0.5, "c": 1})
    assert weights_at(neighbours, "b", 2 * HALF_LIFE_S) == pytest.approx({"a": 0.25})


def test_a_late_click_pairs_with_what_came_before_and_after_it():
    neighbours = neighbours_after(
        [click("a", 0), click("c", HOUR_S), click("b", 60, received_after_s=2 * HOUR_S)]
    )

    in_order = neighbours_after([click("a", 0), click("b", 60), click("c", HOUR_S)])
    for proposition_id in "abc":
        assert weights_at(neighbours, proposition_id, 0) == pytest.approx(
            weights_at(in_order, proposition_id, 0)
        )


def test_a_crowd_of_neighbours_is_cut_back_to_the_strongest():
    neighbours = Neighbours({}, 0.0)
    for n in range(MAX_NEIGHBOURS):
        neighbours.add(f"p{n}", at_s=HOUR_S * n, half_life_s=HALF_LIFE_S)

    neighbours.add("one too many", at_s=HOUR_S * MAX_NEIGHBOURS, half_life_s=HALF_LIFE_S)

    newest = {f"p{n}" for n in range(MAX_NEIGHBOURS - KEPT_NEIGHBOURS + 1, MAX_NEIGHBOURS)}
    assert set(neighbours.weights) == {"one too many", *newest}


def test_neighbours_are_reported_strongest_first_with_the_receipt_of_what_changed_them():
    events = [
        click("a", 0, received_after_s=10),
        click("b", 1, received_after_s=20),
        click("c", 2, received_after_s=30),
        click("b", 3, received_after_s=40),
        click("lonely", 4, user_id="u2"),
    ]

    _, rows = fold_positives(events, {}, {}, RULES)

    by_id = {row.proposition_id: row for row in rows}
    assert set(by_id) == {"a", "b", "c"}
    assert by_id["a"].neighbour_ids == ("b", "c")
    assert by_id["a"].weights[0] > by_id["a"].weights[1]
    assert by_id["a"].updated_at == NOON + timedelta(seconds=40)


def test_equally_heavy_neighbours_are_reported_in_the_order_of_their_ids():
    _, rows = fold_positives([click("b"), click("c"), click("a")], {}, {}, RULES)

    assert {row.proposition_id: row.neighbour_ids for row in rows}["a"] == ("b", "c")


@st.composite
def click_logs(draw):
    """Positive events in the order of their receipt: some late, some in the same commit."""
    moments = sorted(draw(st.lists(st.integers(0, 90), min_size=1, max_size=60)))
    return [
        click(
            draw(st.sampled_from("abcdefghijklmnop")),
            after_s=moment * DAY_S / 4 - draw(st.sampled_from([0.0, 0.0, 10.0, 2 * DAY_S])),
            user_id=draw(st.sampled_from(["u1", "u2"])),
            received_after_s=moment * DAY_S / 4,
        )
        for moment in moments
    ]


def commits(events, rng):
    """The events in batches of any size that end between two commits."""
    rest = list(events)
    while rest:
        size = rng.randint(1, len(rest))
        while size < len(rest) and rest[size].received_at == rest[size - 1].received_at:
            size += 1
        yield rest[:size]
        rest = rest[size:]


@settings(max_examples=100, deadline=None)
@given(click_logs(), st.integers(0, 2**32 - 1), st.sampled_from([DAY_S / 3, DAY_S, 5 * DAY_S]))
def test_folding_in_batches_with_only_the_touched_states_equals_replaying_all_at_once(events, seed, window_s):
    rules = CovisitRules(window_s, half_life_s=7.3 * DAY_S)
    replayed_rows, replayed = fold_positives(events, {}, {}, rules)

    recent_table, neighbour_table, online_rows = {}, {}, []
    for batch in commits(events, random.Random(seed)):
        states = {key: recent_table[key] for key in recent_keys(batch) if key in recent_table}
        neighbours = {
            key: Neighbours(
                dict(zip(neighbour_table[key].neighbour_ids, neighbour_table[key].weights, strict=True)),
                neighbour_table[key].as_of_s,
            )
            for key in touched_neighbours(batch, states, window_s)
            if key in neighbour_table
        }
        rows, changed = fold_positives(batch, states, neighbours, rules)
        online_rows += rows
        recent_table.update({(row.view, row.key): row.state for row in rows})
        neighbour_table.update({row.proposition_id: row for row in changed})

    assert online_rows == replayed_rows
    assert neighbour_table == {row.proposition_id: row for row in replayed}


@settings(max_examples=100, deadline=None)
@given(st.permutations("abcdefghij"), st.lists(st.integers(0, 100), min_size=10, max_size=10))
def test_the_order_of_receipt_does_not_decide_what_is_a_neighbour_of_what(ids, hours):
    in_order = sorted(zip(hours, "abcdefghij", strict=True))
    times = {proposition_id: hour * HOUR_S for hour, proposition_id in in_order}
    expected = neighbours_after([click(i, times[i]) for _, i in in_order])

    neighbours = neighbours_after(
        [click(i, times[i], received_after_s=DAY_S * 9 + n) for n, i in enumerate(ids)]
    )

    for proposition_id in ids:
        assert weights_at(neighbours, proposition_id, 0) == pytest.approx(
            weights_at(expected, proposition_id, 0)
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), max_size=40))
def test_a_weight_is_the_sum_of_its_decayed_pairs(clicks):
    half_life_s = 2 * DAY_S
    events = [click(i, hour * HOUR_S) for hour, i in sorted((hour, i) for i, hour in clicks)]

    neighbours = neighbours_after(events, CovisitRules(DAY_S, half_life_s))

    expected, last_s = {}, {}
    for event in events:
        b, at_s = event.proposition_id, event.counted_at_s
        for a, time_s in last_s.items():
            if a != b and at_s - time_s <= DAY_S:
                pair = frozenset((a, b))
                decayed = 2 ** ((at_s - NOON.timestamp()) / half_life_s)
                expected[pair] = expected.get(pair, 0) + decayed
        last_s[b] = at_s
    for pair, weight in expected.items():
        one, other = pair
        assert weights_at(neighbours, one, 0, half_life_s)[other] == pytest.approx(weight, rel=1e-9)
        assert weights_at(neighbours, other, 0, half_life_s)[one] == pytest.approx(weight, rel=1e-9)
    assert sum(len(known.weights) for known in neighbours.values()) == 2 * len(expected)
