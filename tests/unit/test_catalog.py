from datetime import timedelta

import pytest

from app.domain.catalog import Catalog
from app.domain.context import context_key, is_valid_id
from app.domain.types import Filters
from tests.builders import NOON, proposition, request

SECOND = timedelta(seconds=1)


def eligible_ids(propositions, **fields):
    catalog = Catalog(propositions)
    return [catalog.propositions[i].proposition_id for i in catalog.eligible(request(**fields), NOON)]


@pytest.mark.parametrize(
    ("fields", "is_shown"),
    [
        ({}, True),
        ({"is_active": False}, False),
        ({"starts_at": NOON}, True),
        ({"starts_at": NOON + SECOND}, False),
        ({"ends_at": NOON + SECOND}, True),
        ({"ends_at": NOON}, False),
    ],
)
def test_a_proposition_is_shown_when_active_and_inside_its_window(fields, is_shown):
    assert eligible_ids([proposition("a", **fields)]) == (["a"] if is_shown else [])


def test_excluded_propositions_are_never_eligible():
    assert eligible_ids([proposition("a"), proposition("b")], excluded_ids=frozenset({"a", "?"})) == ["b"]


def test_only_the_requested_candidates_are_eligible():
    assert eligible_ids([proposition("a"), proposition("b")], candidate_ids=frozenset({"b", "?"})) == ["b"]


def test_exclusion_beats_candidacy():
    ids = frozenset({"a"})

    assert eligible_ids([proposition("a")], candidate_ids=ids, excluded_ids=ids) == []


def test_filters_keep_any_category_all_tags_and_a_least_value():
    propositions = [
        proposition("a", category="x", tags=("t", "s"), value=2.0),
        proposition("b", category="y", tags=("t",), value=2.0),
        proposition("c", category="z", tags=("t", "s"), value=2.0),
        proposition("d", category="x", tags=("t", "s"), value=1.0),
        proposition("e", category="x", tags=("t", "s")),
    ]

    filters = Filters(categories=frozenset({"x", "y"}), tags=frozenset({"t", "s"}), min_value=1.5)

    assert eligible_ids(propositions, filters=filters) == ["a"]


def test_a_context_too_long_for_an_index_gets_a_short_key_of_its_own():
    contexts = [{"page": "x" * 2_000}, {"page": "x" * 2_001}]

    keys = {context_key(context, ["page"]) for context in contexts}

    assert len(keys) == 2
    assert all(len(key) < 100 for key in keys)


@pytest.mark.parametrize(
    ("text", "is_valid"), [("x" * 200, True), ("x" * 201, False), ("\u00fc" * 101, False)]
)
def test_an_id_has_at_most_200_bytes(text, is_valid):
    assert is_valid_id(text) is is_valid


def test_an_empty_catalog_has_nothing_eligible():
    assert eligible_ids([]) == []
