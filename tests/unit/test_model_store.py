import numpy as np
import pytest
import xgboost

from app.adapters.model_store import RANKER, ModelStore
from app.domain.errors import ModelRefused
from tests.builders import SMALL_SCHEMA


@pytest.fixture
def booster(spec):
    rng = np.random.default_rng(0)
    matrix = rng.random((50, len(spec.columns))).astype(np.float32)
    data = xgboost.DMatrix(matrix, label=matrix[:, 0], feature_names=list(spec.columns))
    return xgboost.train({"max_depth": 2, "nthread": 1}, data, num_boost_round=3)


@pytest.fixture
def store(tmp_path, spec, booster):
    store = ModelStore(tmp_path / "models", spec.half_lives_s)
    for version in ("v1", "v2"):
        store.write(version, {RANKER: bytes(booster.save_raw("ubj"))}, {"matrix": spec.to_json()})
    return store


def test_a_stored_model_scores_as_the_trained_one(store, spec, booster):
    matrix = np.random.default_rng(1).random((20, len(spec.columns))).astype(np.float32)
    expected = booster.inplace_predict(matrix, validate_features=False)

    assert np.array_equal(store.load("v1", SMALL_SCHEMA).score(matrix), expected)


def test_a_changed_file_is_refused(store):
    path = store.folder("v1") / RANKER
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(ModelRefused, match="SHA-256"):
        store.load("v1", SMALL_SCHEMA)


def test_a_missing_file_is_refused(store):
    (store.folder("v1") / RANKER).unlink()

    with pytest.raises(ModelRefused, match="lacks"):
        store.load("v1", SMALL_SCHEMA)


def test_a_model_for_other_features_is_refused(store):
    from dataclasses import replace

    with pytest.raises(ModelRefused, match="train again"):
        store.load("v1", replace(SMALL_SCHEMA, service="ranker_v2"))


def test_a_model_for_other_half_lives_is_refused(store, tmp_path):
    with pytest.raises(ModelRefused, match="HALF_LIVES_S"):
        ModelStore(tmp_path / "models", (60.0,)).load("v1", SMALL_SCHEMA)


def test_a_model_with_other_columns_than_its_manifest_is_refused(store, spec, booster):
    booster.feature_names = list(reversed(spec.columns))
    store.write("v3", {RANKER: bytes(booster.save_raw("ubj"))}, {"matrix": spec.to_json()})

    with pytest.raises(ModelRefused, match="columns"):
        store.load("v3", SMALL_SCHEMA)


def test_versions_are_immutable(store):
    with pytest.raises(FileExistsError):
        store.write("v1", {}, {})


def test_promotion_remembers_what_to_roll_back_to(store):
    store.activate("v1")
    store.activate("v2")

    assert store.roll_back().version == "v1"
    assert store.active().version == "v1"


def test_promoting_the_active_version_again_keeps_the_way_back(store):
    store.activate("v1")
    store.activate("v2")
    store.activate("v2")

    assert store.active().previous == "v1"


def test_without_an_earlier_model_there_is_no_way_back(store):
    with pytest.raises(ModelRefused, match="no earlier model"):
        store.roll_back()


def test_an_unknown_version_cannot_be_activated(store):
    with pytest.raises(ModelRefused, match="no readable manifest"):
        store.activate("v9")

    assert store.active() is None


def test_a_damaged_manifest_is_refused(store):
    (store.folder("v1") / "manifest.json").write_text('{"matrix": {}}')

    with pytest.raises(ModelRefused, match="damaged"):
        store.load("v1", SMALL_SCHEMA)


def test_a_damaged_pointer_is_refused_and_mended_by_a_promotion(store):
    store.activate("v1")
    (store.folder("v1").parent / "active.json").write_text("{")

    with pytest.raises(ModelRefused, match="promote a model again"):
        store.active()

    store.activate("v2")
    assert store.active().version == "v2"
