import doctest
import json
from dataclasses import replace

import numpy as np
import pytest

import app.domain.context
import app.features.assembly
import app.features.rates
from app.features.assembly import MatrixSpec, codes_of, encode, learn_spec
from app.features.rows import Rows, rows_from_records
from tests.builders import DAY_S, HOUR_S, NOON, SMALL_SCHEMA

HALF_LIVES = (HOUR_S, DAY_S)
NOW = NOON.timestamp()


@pytest.mark.parametrize("module", [app.domain.context, app.features.assembly, app.features.rates])
def test_examples_in_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


def counters(impressions, clicks, as_of_s=NOW):
    return {
        "impressions": [impressions] * 2,
        "clicks": [clicks] * 2,
        "conversions": [0.0, 0.0],
        "dismissals": [0.0, 0.0],
        "as_of_s": as_of_s,
    }


def rows(**records) -> dict[str, Rows]:
    return {view.name: rows_from_records(view, records[view.name], 2) for view in SMALL_SCHEMA.views}


def two_candidates():
    return rows(
        proposition_catalog=[
            {"category": "sport", "value": 3.0, "created_at_s": NOW - 2 * DAY_S},
            {"category": "unheard of", "value": None, "created_at_s": None},
        ],
        user_activity=[counters(30.0, 15.0)],
        user_category_affinity=[counters(10.0, 10.0), None],
        proposition_performance=[counters(90.0, 9.0), None],
    )


def cell(spec, matrix, column, row=0):
    return float(matrix[row, spec.columns.index(column)])


def test_columns_hold_smoothed_rates_volumes_codes_and_ages(spec):
    matrix = spec.assemble(two_candidates(), NOW, 2)

    assert matrix.shape == (2, len(spec.columns)) and matrix.dtype == np.float32
    assert cell(spec, matrix, "proposition_performance.click_rate_1d") == pytest.approx((9 + 10 * 0.2) / 100)
    assert cell(spec, matrix, "proposition_performance.log_impressions_1h") == pytest.approx(np.log(91))
    assert cell(spec, matrix, "proposition_catalog.category") == 1.0
    assert cell(spec, matrix, "proposition_catalog.value") == 3.0
    assert cell(spec, matrix, "proposition_catalog.created_at_days") == 2.0


def test_a_crossed_rate_shrinks_towards_its_parents_rate(spec):
    matrix = spec.assemble(two_candidates(), NOW, 2)

    users_rate = (15 + 10 * 0.2) / 40
    assert cell(spec, matrix, "user_category_affinity.click_rate_1d") == pytest.approx(
        (10 + 10 * users_rate) / 20
    )
    assert cell(spec, matrix, "user_category_affinity.click_rate_1d", row=1) == pytest.approx(users_rate)


def test_what_is_not_known_is_nan_or_the_prior(spec):
    matrix = spec.assemble(two_candidates(), NOW, 2)

    assert np.isnan(cell(spec, matrix, "proposition_catalog.category", row=1))
    assert np.isnan(cell(spec, matrix, "proposition_catalog.value", row=1))
    assert np.isnan(cell(spec, matrix, "proposition_performance.idle", row=1))
    assert cell(spec, matrix, "proposition_performance.click_rate_1d", row=1) == pytest.approx(0.2)


def test_counters_decay_to_the_moment_of_the_request(spec):
    matrix = spec.assemble(two_candidates(), NOW + HOUR_S, 2)

    assert cell(spec, matrix, "proposition_performance.log_impressions_1h") == pytest.approx(np.log(46))


def test_one_row_for_all_gives_the_same_as_a_row_for_each(spec):
    one_for_all = two_candidates()
    for_each = {**one_for_all, "user_activity": one_for_all["user_activity"].take(np.array([0, 0]))}

    assert np.array_equal(
        spec.assemble(one_for_all, NOW, 2),
        spec.assemble(for_each, np.array([NOW, NOW]), 2),
        equal_nan=True,
    )


def test_a_spec_survives_its_manifest(spec):
    fewer = replace(spec, dropped=spec.columns[:3])

    assert MatrixSpec.from_json(json.loads(json.dumps(fewer.to_json()))) == fewer != spec


def test_dropped_columns_are_left_out_and_the_others_stay_as_they_are(spec):
    dropped = tuple(
        name for name in spec.columns if "user_activity" in name or name.endswith(("1h", "value"))
    )
    fewer = replace(spec, dropped=dropped)

    matrix = fewer.assemble(two_candidates(), NOW, 2)

    kept = [number for number, name in enumerate(spec.columns) if name not in dropped]
    assert fewer.columns == tuple(spec.columns[number] for number in kept)
    assert np.array_equal(matrix, spec.assemble(two_candidates(), NOW, 2)[:, kept], equal_nan=True)
    assert [len(fewer.columns_of[view.name]) for view in fewer.views if view.name == "user_activity"] == [0]


def test_codes_of_a_dropped_text_are_no_column(spec):
    assert replace(spec, dropped=("proposition_catalog.category",)).category_columns == ()


def test_a_manifest_from_before_columns_were_dropped_has_them_all(spec):
    manifest = spec.to_json()
    del manifest["dropped"]

    assert MatrixSpec.from_json(manifest).columns == spec.columns


def test_a_changed_feature_changes_the_schema_hash(spec):
    renamed = replace(SMALL_SCHEMA, service="ranker_v2")

    assert renamed.hash() != SMALL_SCHEMA.hash()


def test_constants_are_learned_from_the_given_rows_only():
    spec = learn_spec(SMALL_SCHEMA, HALF_LIVES, two_candidates())

    assert spec.base_rates["click_rate"] == pytest.approx((15 + 9) / (30 + 90))
    assert spec.vocabularies["proposition_catalog.category"] == ("sport", "unheard of")


def test_an_empty_vocabulary_knows_nothing():
    assert np.isnan(encode(np.array(["a"]), codes_of(()))).all()
