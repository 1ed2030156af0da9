"""Data sets on disk: what was written is what is read, a part at a time."""

import json
from dataclasses import replace

import numpy as np
import pytest

from app.domain.errors import ConfigurationError
from app.features.affinity import Traits
from app.features.rows import Rows
from tests.training_data import synthetic_dataset
from training.dataset import NothingToTrainOn
from training.dataset_folder import DatasetFolder, is_same
from training.labels import LabelOptions

SCHEMA, DATASET = synthetic_dataset(seed=2, slates=30)
OPTIONS = LabelOptions("engagement", session_s=600.0, seed=4)


def thirds():
    return (DATASET.slice(first, first + 10) for first in (0, 10, 20))


@pytest.fixture
def folder(tmp_path) -> DatasetFolder:
    return DatasetFolder.write(tmp_path / "set", thirds(), SCHEMA, OPTIONS)


def test_parts_are_read_as_they_were_written(folder, tmp_path):
    read = list(DatasetFolder(tmp_path / "set").parts())

    assert [part.slate_count for part in read] == [10, 10, 10]
    assert all(is_same(part, written) for part, written in zip(read, thirds(), strict=True))


def test_any_difference_between_data_sets_is_seen():
    rows = DATASET.rows["proposition_performance"]
    changed = Rows(rows.counts + 1e-12, rows.as_of_s, rows.values)
    others = [
        replace(DATASET, relevance=1 - DATASET.relevance),
        replace(DATASET, rows={**DATASET.rows, "proposition_performance": changed}),
        replace(DATASET, traits=Traits(DATASET.traits.codes, DATASET.traits.code_count, {})),
        DATASET.slice(0, 29),
    ]

    assert is_same(DATASET, DATASET)
    assert not any(is_same(DATASET, other) for other in others)


def test_the_manifest_tells_how_the_data_set_was_made(folder, tmp_path):
    about = json.loads((tmp_path / "set/manifest.json").read_text())

    assert about["schema_hash"] == folder.manifest.schema_hash == SCHEMA.hash()
    assert folder.manifest.options == OPTIONS
    assert (about["slates"], about["impressions"], about["seed"]) == (30, len(DATASET), 4)
    assert about["label_rate"] == pytest.approx((DATASET.relevance > 0).mean())
    assert about["windows"] == [DATASET.slates.decided_at_s[0], DATASET.slates.decided_at_s[-1]]


def test_names_that_no_file_can_have_and_lists_of_ids_survive(tmp_path):
    name = "numbers.a/../b\u2603"
    catalog = DATASET.rows["proposition_catalog"]
    ids = np.empty(len(DATASET), dtype=object)
    ids[:] = [("p1", "p2") if n % 2 else () for n in range(len(DATASET))]
    strange = Rows(None, None, {**catalog.values, name: np.arange(len(DATASET)) / 3, "ids": ids})
    dataset = replace(DATASET, rows={**DATASET.rows, "proposition_catalog": strange})

    (read,) = DatasetFolder.write(tmp_path / "set", [dataset], SCHEMA, OPTIONS).parts()

    assert np.array_equal(read.rows["proposition_catalog"].values[name], strange.values[name])
    assert read.rows["proposition_catalog"].values["ids"].tolist() == ids.tolist()


def test_what_was_there_is_replaced(folder, tmp_path):
    again = DatasetFolder.write(tmp_path / "set", [DATASET.slice(0, 5)], SCHEMA, OPTIONS)

    assert [part.slate_count for part in again.parts()] == [5]
    assert not (tmp_path / "set/part-00001").exists()


def test_a_write_that_ended_early_leaves_no_data_set(tmp_path):
    def breaking():
        yield DATASET.slice(0, 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DatasetFolder.write(tmp_path / "set", breaking(), SCHEMA, OPTIONS)
    with pytest.raises(ConfigurationError, match="no complete data set"):
        DatasetFolder(tmp_path / "set")
    with pytest.raises(NothingToTrainOn):
        DatasetFolder.write(tmp_path / "set", [], SCHEMA, OPTIONS)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(ConfigurationError, match="something other"):
        DatasetFolder.write(tmp_path, thirds(), SCHEMA, OPTIONS)

    assert (tmp_path / "thesis.txt").exists()
