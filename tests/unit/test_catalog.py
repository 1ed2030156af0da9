from datetime import timedelta

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.context import context_key, is_valid_id
from app.domain.types import Filters
from app.features.catalog import Catalog
from app.features.columns import RaggedColumn
from tests.builders import NOON, proposition, request

SECOND = timedelta(seconds=1)


def eligible_ids(propositions, **fields):
    catalog = Catalog.of(propositions)
    return [catalog.id_at(position) for position in catalog.eligible(request(**fields), NOON)]


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


def test_eligibility_of_some_positions_is_that_of_all_in_their_order():
    catalog = Catalog.of([proposition("a"), proposition("b", is_active=False), proposition("c")])

    assert catalog.eligible(request(), NOON, np.array([2, 1, 0])).tolist() == [2, 0]


def test_a_changed_proposition_keeps_its_position_and_a_new_one_is_appended():
    before = Catalog.of([proposition("a", value=1.0, tags=("t",)), proposition("b")])

    after = before.with_propositions([proposition("c"), proposition("a", title="New", value=2.0)])

    assert [after.id_at(n) for n in range(3)] == ["a", "b", "c"]
    assert orjson.loads(after.details_at(0)) == {
        "proposition_id": "a",
        "title": "New",
        "category": None,
        "tags": [],
        "value": 2.0,
        "attributes": {},
    }
    assert orjson.loads(before.details_at(0))["title"] == "A"
    assert after.positions_of(["c", "?", "a"]).tolist() == [2, -1, 0]


def test_what_is_shown_and_where_it_lies_are_the_same_when_they_are_asked_for_again():
    catalog = Catalog.of([proposition(letter, value=1.0) for letter in "abc"])

    for _ in range(2):
        assert catalog.positions_of(["c", "?", "a", "c"]).tolist() == [2, -1, 0, 2]
        assert [shown.proposition_id for shown in catalog.shown([1, 0, 1])] == ["b", "a", "b"]
        assert catalog.shown([2])[0].details == catalog.details_at(2)


def test_a_changed_catalog_shows_the_changes_though_the_old_one_was_asked():
    before = Catalog.of([proposition("a", value=1.0)])
    before.shown([0]), before.positions_of(["a", "b"])

    after = before.with_propositions([proposition("a", value=2.0), proposition("b")])

    assert orjson.loads(after.shown([0])[0].details)["value"] == 2.0
    assert after.positions_of(["a", "b"]).tolist() == [0, 1]


def test_no_more_than_there_is_room_for_is_remembered(monkeypatch):
    monkeypatch.setattr("app.features.catalog.MAX_REMEMBERED", 30)
    monkeypatch.setattr("app.features.catalog.MAX_REMEMBERED_BYTES", 30_000)
    names = [f"p{number}" for number in range(100)]
    catalog = Catalog.of([proposition(name, attributes={"text": "x" * 600}) for name in names])

    assert [position for name in names for position in catalog.positions_of([name])] == list(range(100))
    assert [shown.proposition_id for n in range(100) for shown in catalog.shown([n])] == names
    assert 0 < len(catalog._positions) <= 30
    assert 0 < len(catalog._shown) <= 30


def test_a_lookup_of_very_many_leaves_alone_what_is_remembered():
    names = [f"p{number}" for number in range(3_000)]
    catalog = Catalog.of([proposition(name) for name in names])
    catalog.positions_of(["p7"])

    assert catalog.positions_of(names).tolist() == list(range(3_000))
    assert list(catalog._positions) == ["p7"]


def test_columns_that_a_change_leaves_alone_are_shared():
    before = Catalog.of([proposition("a", value=1.0), proposition("b")])

    after = before.with_propositions([proposition("a", value=2.0)])

    assert after.values is not before.values
    assert after.is_active is before.is_active and after.id_hashes is before.id_hashes


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 100), max_size=4)), max_size=60))
def test_ragged_rows_are_what_was_written_last_however_often_they_change(changes):
    column, expected = RaggedColumn.empty(np.int32), {}
    for position, row in changes:
        expected[position] = row
        column = column.with_rows(np.array([position]), [row], max(expected) + 1)

    for position, row in expected.items():
        assert column.row(position).tolist() == row
    items, numbers = column.rows(np.array(sorted(expected), dtype=np.int64))
    assert items.tolist() == [item for position in sorted(expected) for item in expected[position]]
    assert len(column.blocks) <= 8
    assert len(numbers) == len(items)


def test_an_unknown_tag_fits_nothing():
    assert eligible_ids([proposition("a", tags=("t",))], filters=Filters(tags=frozenset({"t", "?"}))) == []
