"""Which propositions are scored, and why."""

from datetime import timedelta

import numpy as np
import pytest

from app.domain.types import Filters
from app.features.snapshot import MAX_CATEGORIES
from app.serving.candidates import CandidateGenerator, NothingToRank, Source, Taste, sources_in
from tests.builders import HOUR_S, NOON, proposition, request
from tests.unit.test_ranking import counters, snapshot

HERE = request().context_key


def found(taken, budget, taste=None, **fields):
    candidates = CandidateGenerator(budget).find(taken, request(**fields), NOON, taste or Taste())
    return {
        taken.catalog.id_at(position): set(sources_in(int(candidates.source_bits[number])))
        for number, position in enumerate(candidates.positions)
    }


def large(count=60, **changes):
    """p0 is the most popular, then p1, and so on; c0, c1, c2 are the categories."""
    propositions = [
        proposition(
            f"p{n}", category=f"c{n % 3}", value=float(n), created_at=NOON - timedelta(seconds=HOUR_S * n)
        )
        for n in range(count)
    ]
    performance = {f"p{n}": counters(1_000, 900 - 10 * n) for n in range(count)} | changes.pop("seen", {})
    return snapshot(*propositions, performance=performance, list_length=20, **changes)


def test_a_small_catalog_is_scored_whole():
    assert found(large(5), budget=5) == {f"p{n}": {Source.CATALOG} for n in range(5)}


def test_a_large_catalog_is_cut_to_the_budget_with_the_most_popular_first():
    candidates = found(large(), budget=10)

    assert len(candidates) == 10
    assert {"p0", "p1", "p2"} <= candidates.keys()
    assert all(Source.POPULAR in sources for sources in candidates.values())


def test_what_works_in_this_context_is_a_candidate_here_only():
    taken = large(context_performance={f"{HERE}\x1fp50": counters(1_000, 950)})

    assert found(taken, budget=10)["p50"] == {Source.TRENDING}
    assert "p50" not in found(taken, budget=10, context={"page": "elsewhere"})


def test_what_is_near_to_the_users_last_interactions_is_a_candidate():
    taken = large(neighbours={"p9": ["p55", "p57"]})

    candidates = found(taken, 10, Taste(recent=[taken.catalog.position_of("p9")]))

    assert candidates["p55"] == candidates["p57"] == {Source.COVISITED}


def test_the_best_of_a_users_favourite_categories_are_candidates():
    candidates = found(large(), 12, Taste(categories=[2]))

    assert {"p2", "p5", "p8"} <= {name for name, sources in candidates.items() if Source.FAVOURITE in sources}


def test_young_propositions_with_few_impressions_are_candidates():
    taken = large(seen={"p40": counters(2, 0), "p50": counters(2, 0)})

    candidates = found(taken, budget=10)

    assert Source.NEW in candidates["p40"]
    assert "p50" not in candidates  # older than p40, and one in ten is all that the budget has for new ones


def test_a_candidate_carries_all_its_sources():
    taken = large(context_performance={f"{HERE}\x1fp0": counters(1_000, 950)})

    assert found(taken, 10, Taste(categories=[0]))["p0"] == {
        Source.FAVOURITE,
        Source.TRENDING,
        Source.POPULAR,
    }


def test_each_proposition_is_a_candidate_once():
    taken = large(context_performance={f"{HERE}\x1fp{n}": counters(1_000, 900) for n in range(20)})

    positions = CandidateGenerator(30).find(taken, request(), NOON, Taste(categories=[0, 1, 2])).positions

    assert len(np.unique(positions)) == len(positions) == 30 - 10  # lists are 20 long, and alike here


def test_what_was_excluded_is_no_candidate_and_others_take_its_place():
    candidates = found(large(), budget=10, excluded_ids=frozenset({"p0", "p1"}))

    assert not {"p0", "p1"} & candidates.keys()


def test_the_candidates_of_the_request_are_the_only_ones():
    assert found(large(), budget=10, candidate_ids=frozenset({"p59", "?"})) == {"p59": {Source.REQUEST}}


def test_of_too_many_requested_candidates_the_most_clicked_are_scored():
    names = frozenset(f"p{n}" for n in range(10, 60))

    assert found(large(), budget=10, candidate_ids=names).keys() == {f"p{n}" for n in range(10, 20)}


@pytest.mark.parametrize(
    ("filters", "is_met"),
    [
        (Filters(min_value=57.0), lambda n: n >= 57),
        (Filters(categories=frozenset({"c1"})), lambda n: n % 3 == 1),
        (Filters(categories=frozenset({"c1"}), min_value=50.0), lambda n: n % 3 == 1 and n >= 50),
    ],
)
def test_filters_that_the_lists_cannot_meet_search_the_whole_catalog(filters, is_met):
    candidates = found(large(), budget=20, filters=filters, limit=3)

    assert len(candidates) >= 3
    assert all(is_met(int(name[1:])) for name in candidates)


def test_nothing_eligible_is_told():
    with pytest.raises(NothingToRank):
        found(large(), budget=10, filters=Filters(min_value=1e9))


@pytest.mark.parametrize("count", [100, 10_000])
def test_what_a_request_touches_does_not_grow_with_the_catalog(count):
    """Beyond the budget, the work is on lists, whose length is fixed when a snapshot is taken."""
    taken = large(count)
    lists = taken.lists

    touched = max(len(lists.popular), len(lists.new), *np.diff(lists.by_category.starts).tolist())

    assert touched == 20


def test_a_users_categories_are_the_largest_that_have_a_name():
    largest = [proposition(f"a{n}", category="largest") for n in range(3)]
    nameless = [proposition(f"b{n}", category=None) for n in range(2)]
    others = [proposition(f"c{n}", category=f"c{n}") for n in range(MAX_CATEGORIES)]
    taken = snapshot(*others, *nameless, *largest)

    numbers, names = taken.largest_categories

    assert names[0] == "largest" and len(set(names)) == MAX_CATEGORIES and "" not in names
    assert [taken.catalog.category_names[number] for number in numbers] == names
