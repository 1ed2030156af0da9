import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import xgboost
from sklearn.linear_model import LogisticRegression

from app.adapters.model_store import BASELINE, MANIFEST, RANKER, ModelStore
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
        store.write(version, {RANKER: bytes(booster.save_raw("json"))}, {"matrix": spec.to_json()})
    return store


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_stored_model_scores_as_the_trained_one(store, spec, booster):
    matrix = np.random.default_rng(1).random((20, len(spec.columns))).astype(np.float32)
    expected = booster.inplace_predict(matrix, validate_features=False)

    assert np.array_equal(store.load("v1", SMALL_SCHEMA).score(matrix), expected)


def test_the_trees_of_a_model_are_read_without_xgboost(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)

    assert store.load("v1", SMALL_SCHEMA).forest.tree_count == 3


def test_a_file_with_the_right_hash_that_is_no_model_is_refused(store, spec):
    store.write("v3", {RANKER: b'{"learner": {"feature_names": 7}}'}, {"matrix": spec.to_json()})

    with pytest.raises(ModelRefused, match="not the JSON of an XGBoost model"):
        store.load("v3", SMALL_SCHEMA)


def test_a_changed_file_is_refused(store):
    path = store.folder("v1") / RANKER
    overwrite(path, path.read_bytes()[:-1] + b"!")

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
    store.write("v3", {RANKER: bytes(booster.save_raw("json"))}, {"matrix": spec.to_json()})

    with pytest.raises(ModelRefused, match="columns"):
        store.load("v3", SMALL_SCHEMA)


def test_versions_are_immutable(store):
    with pytest.raises(FileExistsError):
        store.write("v1", {}, {})


def test_the_files_of_a_version_cannot_be_written_to(store):
    assert [path.stat().st_mode & 0o777 for path in store.folder("v1").iterdir()] == [0o444, 0o444]


def test_writing_returns_the_manifest_as_it_is_read_later(store):
    written = store.write("v3", {RANKER: b"x"}, {"columns": ("a", "b")})

    assert written == store.manifest("v3")
    assert set(written["files_sha256"]) == {RANKER}


def test_every_file_of_the_manifest_is_verified(store):
    store.write("v3", {RANKER: b"x", BASELINE: b"y"}, {})
    store.verify("v3")
    overwrite(store.folder("v3") / BASELINE, b"z")

    with pytest.raises(ModelRefused, match=r"baseline\.pkl"):
        store.verify("v3")


class CodeThatRunsWhenUnpickled:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_baseline_predicts_as_the_trained_one(store):
    matrix = np.random.default_rng(1).random((20, 3)).astype(np.float32)
    baseline = LogisticRegression().fit(matrix, matrix[:, 0] > 0.5)
    store.write("v3", {BASELINE: pickle.dumps(baseline)}, {})

    loaded = store.load_baseline("v3")

    assert np.array_equal(loaded.predict_proba(matrix), baseline.predict_proba(matrix))


def test_a_tampered_baseline_is_refused_before_anything_of_it_runs(store, tmp_path):
    store.write("v3", {BASELINE: pickle.dumps("harmless")}, {})
    attack = pickle.dumps(CodeThatRunsWhenUnpickled(tmp_path / "trace"))
    overwrite(store.folder("v3") / BASELINE, attack)

    with pytest.raises(ModelRefused, match="SHA-256"):
        store.load_baseline("v3")

    assert not (tmp_path / "trace").exists()
    pickle.loads(attack)
    assert (tmp_path / "trace").exists()  # it would have run


def test_a_version_without_a_baseline_says_so(store):
    with pytest.raises(ModelRefused, match="lacks its file"):
        store.load_baseline("v1")


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
    overwrite(store.folder("v1") / MANIFEST, b'{"matrix": {}}')

    with pytest.raises(ModelRefused, match="damaged"):
        store.load("v1", SMALL_SCHEMA)


def test_a_damaged_pointer_is_refused_and_mended_by_a_promotion(store):
    store.activate("v1")
    (store.folder("v1").parent / "active.json").write_text("{")

    with pytest.raises(ModelRefused, match="promote a model again"):
        store.active()

    store.activate("v2")
    assert store.active().version == "v2"
