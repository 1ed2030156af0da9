"""The online reader reads, value for value, what stock Feast reads."""

import math
import struct
from collections.abc import Sequence

import numpy as np
from feast import FeatureStore
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array

from app.adapters.feast_layout import entity_key_opening, value_field
from app.adapters.feature_store import load_schema, open_feature_store
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, ViewSchema
from tests.builders import NOON
from tests.contract.online_reader.feature_rows import (
    ALL_TYPES,
    DTYPES,
    FRESH,
    HALF_LIFE_COUNT,
    KEYS,
    MISSING,
    assert_alike,
    entity_key,
    list_value,
    of_all_types,
    write,
)


def test_values_of_every_type_are_read_as_stock_feast_reads_them(place, stock):
    empty = {name: list_value(name, []) for name, dtype in DTYPES.items() if isinstance(dtype, Array)}
    rows = {
        "all": of_all_types(),
        "below zero": of_all_types(-1),
        "nulls": {name: Value() for name in DTYPES},
        "empty lists": of_all_types() | empty,
        "few fields": {"double": Value(double_val=0.0)},
    }
    write(stock, rows)
    keys = [*rows, "absent", "all"]

    ours = place.reader().read({ALL_TYPES: keys}, HALF_LIFE_COUNT, NOON)["all_types"]

    assert ours.states == [FRESH] * len(rows) + [MISSING, FRESH]
    assert_alike(ALL_TYPES, ours, online_features(stock, "all_types", keys))
    assert ours.rows.values["strings"][0] == ("a", "", "ünï 🙂" * 40)
    assert ours.rows.values["int64s"][1] == (-1, 0, 2**63 - 1, -(2**63))
    assert [len(values) for values in ours.rows.values["bools"]] == [2, 2, 0, 0, 0, 0, 2]


def online_features(store: FeatureStore, view: str, keys: Sequence[str]) -> dict[str, list]:
    (column,) = store.get_feature_view(view).entity_columns
    return store.get_online_features(
        features=[f"{view}:{feature.name}" for feature in store.get_feature_view(view).features],
        entity_rows=[{column.name: key} for key in keys],
    ).to_dict()


def test_rows_are_found_under_every_key_that_feast_can_write(place, stock):
    write(stock, {key: {"double": Value(double_val=number)} for number, key in enumerate(KEYS)})

    ours = place.reader().read({ALL_TYPES: KEYS}, HALF_LIFE_COUNT, NOON)["all_types"]

    assert ours.rows.values["double"].tolist() == list(range(len(KEYS)))
    assert_alike(ALL_TYPES, ours, online_features(stock, "all_types", KEYS))


def test_the_feature_repos_views_are_read_as_stock_feast_reads_them(place, settings, monkeypatch):
    monkeypatch.setenv("REDIS_URL", place.url)
    monkeypatch.setenv("REDIS_CLUSTER", str(place.is_cluster))
    store = open_feature_store(settings)
    schema = load_schema(store)
    for view in schema.views:
        row, nulls = repo_row(view), {name: Value() for name in view.field_names}
        data = [
            (entity_key(key, view.join_key), values, NOON, None) for key, values in (("a", row), ("b", nulls))
        ]
        store._get_provider().online_store.online_write_batch(
            store.config, store.get_feature_view(view.name), data, None
        )
    reader = place.reader(project=schema.project)

    ours = reader.read({view: ["a", "b", "absent"] for view in schema.views}, HALF_LIFE_COUNT, NOON)

    assert set(ours) == {view.name for view in schema.views}
    for view in schema.views:
        rows, stock = ours[view.name], online_features(store, view.name, ["a", "b", "absent"])
        assert rows.states == [FRESH, FRESH, MISSING]
        assert_alike(view, rows, stock)
        if view.has_counters:
            for position, name in enumerate(COUNTER_FIELDS):
                assert rows.rows.counts[0, position].tolist() == stock[name][0]
            assert not rows.rows.counts[1:].any()
            np.testing.assert_equal(rows.rows.as_of_s.tolist(), [stock[AS_OF_FIELD][0], math.nan, math.nan])


def repo_row(view: ViewSchema) -> dict[str, Value]:
    values = {
        "Float64": Value(double_val=NOON.timestamp()),
        "String": Value(string_val="sport"),
        "Array(String)": list_value("strings", ["p1", "p2"]),
        "Array(Float64)": list_value("doubles", [0.1, 2.0, 0.0, 1e300]),
    }
    return {field.name: values[field.dtype] for field in view.fields}


def test_the_layout_is_feasts(place):
    for key in KEYS:
        value = key.encode()
        ours = entity_key_opening("user_id") + struct.pack("<I", len(value)) + value
        assert ours == serialize_entity_key(entity_key(key), 3)
    assert value_field("user_profile", "age_years") == _mmh3("user_profile:age_years")
