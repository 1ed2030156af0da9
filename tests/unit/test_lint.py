"""What is found wrong with a data set."""

from dataclasses import replace

import numpy as np
import pytest

from tests.training_data import synthetic_dataset, synthetic_spec, without_clicks
from training.lint.dataset import lint_dataset
from training.lint.findings import LintLimits, Severity
from training.matrix import matrix


@pytest.fixture(scope="module")
def world():
    _, dataset = synthetic_dataset(seed=1, slates=300)
    return dataset, matrix(synthetic_spec(dataset), dataset), synthetic_spec(dataset).columns


def found(dataset, rows, columns, limits=LintLimits(), scores=None) -> dict:
    return {finding.name: finding for finding in lint_dataset(dataset, rows, columns, limits, scores)}


def with_column(world, name: str, values: np.ndarray):
    dataset, rows, columns = world
    return dataset, np.column_stack([rows, values.astype(np.float32)]), (*columns, name)


def test_sound_data_have_no_errors(world):
    findings = found(
        *world, scores=np.random.default_rng(0).random(len(world[0])), limits=LintLimits(max_auc_lead=0.3)
    )

    assert not [f for f in findings.values() if f.severity is Severity.ERROR]


def test_a_column_that_knows_the_label_is_an_error(world):
    label = world[0].relevance + np.random.default_rng(0).normal(0.0, 0.1, len(world[0]))

    finding = found(*with_column(world, "user.score", -label))["leaking column"]

    assert finding.severity is Severity.ERROR
    assert finding.examples == ("user.score",)


def test_a_column_that_is_known_only_where_something_was_clicked_is_an_error(world):
    label = np.where(world[0].relevance > 0, np.random.default_rng(0).random(len(world[0])), np.nan)

    assert found(*with_column(world, "a.b", label))["leaking column"].examples == ("a.b",)


def test_few_clicks_judge_no_column(world):
    dataset, rows, columns = with_column(world, "a.b", world[0].relevance)
    few = dataset.slice(0, 5)

    findings = found(few, rows[: len(few)], columns)

    assert "leaking column" not in findings
    assert findings["too few slates"].count <= 5


def test_a_column_that_ranks_much_better_than_the_model_is_an_error(world):
    dataset = world[0]
    rng = np.random.default_rng(0)
    good = (dataset.relevance > 0) + rng.normal(0.0, 1.0, len(dataset))

    findings = found(*with_column(world, "a.b", good), scores=rng.random(len(dataset)))

    assert "a.b alone ranks slates" in findings["better than the model"].message
    assert "better than the model" not in found(*with_column(world, "a.b", good), scores=good)


def test_the_position_is_no_feature_under_any_name(world):
    dataset = world[0]

    for name, values in (("slate.where", dataset.positions - 1), ("event.position", np.zeros(len(dataset)))):
        finding = found(*with_column(world, name, values))["position as a feature"]
        assert finding.examples == (name,)


def test_features_from_the_moment_of_the_slate_or_later_are_an_error(world):
    dataset, rows, columns = world
    counters = dataset.rows["proposition_performance"]
    as_of_s = counters.as_of_s.copy()
    as_of_s[10] = dataset.slates.decided_at_s[dataset.slate_of_row[10]]
    leaking = replace(
        dataset, rows={**dataset.rows, "proposition_performance": replace(counters, as_of_s=as_of_s)}
    )

    finding = found(leaking, rows, columns)["features from later"]

    assert (finding.count, finding.examples) == (1, (str(dataset.slates.ids[dataset.slate_of_row[10]]),))


def test_columns_without_any_information_are_named(world):
    dataset, rows, columns = world
    count = len(dataset)
    nearly = np.full(count, np.nan)
    nearly[0] = 1.0
    wide = np.column_stack([rows, np.full(count, np.nan), np.ones(count), nearly]).astype(np.float32)

    findings = found(dataset, wide, (*columns, "a.missing", "a.constant", "a.rare"))

    assert "a.missing" in findings["missing columns"].examples
    assert "a.constant" in findings["constant columns"].examples
    assert "a.rare" in findings["rare columns"].examples
    assert findings["rare columns"].severity is Severity.WARNING


def test_a_label_rate_that_jumps_is_found_with_its_moment(world):
    dataset, rows, columns = world
    rng = np.random.default_rng(0)
    is_late = dataset.slate_of_row >= 150
    relevance = (rng.random(len(dataset)) < np.where(is_late, 0.6, 0.1)).astype(np.int64)

    finding = found(replace(dataset, relevance=relevance), rows, columns, LintLimits(buckets=6))[
        "label rate jumps"
    ]

    assert "2026-05-16 00:30" in finding.message  # 150 slates of five minutes after noon
    assert "label rate jumps" not in found(dataset, rows, columns, LintLimits(buckets=6))


def test_slates_in_which_nothing_was_clicked_teach_nothing(world):
    dataset, rows, columns = world

    finding = found(without_clicks(dataset), rows, columns)["too few slates"]

    assert (finding.severity, finding.count) == (Severity.ERROR, 0)
