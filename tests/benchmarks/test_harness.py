"""The benchmark runs on small data. What it measures there means nothing and is not looked at."""

import json
import os

import pytest

from app.capacity.costs import sections
from app.features.schema import EntityName
from app.gameday.series import percentile
from tests.benchmarks import report
from tests.benchmarks.hot_path import Profile, collapsed, describe
from tests.benchmarks.run import SECTIONS, run


@pytest.fixture(scope="module")
def promotions(tmp_path_factory):
    out = tmp_path_factory.mktemp("promotions")
    summary = run(["promotion"], is_quick=True, out=out)
    return summary, json.loads((out / report.RESULTS).read_text())


def test_requests_are_answered_without_errors_while_models_change(promotions):
    summary, results = promotions

    assert set(summary) == {"promotion_bad_requests", "steady_bad_requests"}
    changing, steady = (results["promotion"][name] for name in ("outcome", "steady"))
    for outcome in (changing, steady):
        assert outcome["errors"] == 0 and outcome["answers"] == outcome["due"] > 0
        assert outcome["statuses"].keys() == {"200"}
    assert set(changing["models"]) == {"trees-100", "trees-100-other"}


def test_the_models_have_exactly_the_stated_size_and_read_every_kind_of_feature(promotions):
    _, results = promotions

    models = results["models"]
    assert [(model["trees"], model["max_leaves"]) for model in models] == [(100, 64), (300, 64), (100, 64)]
    for model in models:
        assert model["used_columns"] == model["columns"]
        assert set(model["splits"]) == {str(entity) for entity in EntityName}


def test_sections_leave_the_costs_that_capacity_is_computed_from(tmp_path):
    quick = ("projection", "materialize")

    summary = run(quick, is_quick=True, out=tmp_path)

    expected = {cost for cost, section in sections().items() if section in quick}
    # A quick run is too short for Redis to be seen at work.
    assert {cost for cost in expected if not summary[cost] > 0} <= {"redis_cpu_ms_per_event"}


@pytest.mark.skipif("BENCHMARKS" not in os.environ, reason="takes minutes; BENCHMARKS=1 runs it")
def test_a_quick_run_of_everything_leaves_every_figure_without_errors(tmp_path):
    summary = run(list(SECTIONS), is_quick=True, out=tmp_path)

    results = json.loads((tmp_path / report.RESULTS).read_text())
    assert set(report.REQUIRED) | set(sections()) <= set(summary)
    assert {name: row["problems"] for name, row in results["rows"].items()} == {
        name: [] for name in results["rows"]
    }
    assert [p["problem"] for points in results["growth"].values() for p in points] == [None] * 6
    assert all((tmp_path / f"{name}.png").stat().st_size for name in ("throughput", "latency", "growth"))


def test_a_later_run_adds_to_what_an_earlier_one_left(tmp_path):
    report.write(tmp_path, {"serving_rps": 1_200.0, "ready_s": 3.0}, {"machine": {"cpus": 2}})

    text = report.write(tmp_path, {"ready_s": 20.0, "catalog_cost_ratio": None}, {})

    assert json.loads((tmp_path / report.SUMMARY).read_text()) == {
        "serving_rps": 1_200.0,
        "ready_s": 20.0,
        "catalog_cost_ratio": None,
    }
    assert "| serving_rps | 1,200 | >= 1000 | holds |" in text
    assert "| ready_s | 20 | < 15 | FALLS SHORT |" in text
    assert "| catalog_cost_ratio | - | <= 1.5 | FALLS SHORT |" in text


def test_a_run_of_another_plan_starts_over(tmp_path):
    report.write(tmp_path, {"serving_rps": 1_200.0}, {"plan": {"users": 10}})

    report.write(tmp_path, {"ready_s": 3.0}, {"plan": {"users": 20}})

    assert json.loads((tmp_path / report.SUMMARY).read_text()) == {"ready_s": 3.0}


def test_percentiles_are_values_that_occurred():
    latencies = [float(n) for n in range(1, 1_001)]

    assert [percentile(latencies, p) for p in (50.0, 99.0, 99.9, 100.0)] == [500.0, 990.0, 999.0, 1_000.0]


def test_a_profile_tells_own_time_from_that_of_what_is_called():
    profile = Profile({("ask", "rank"): 3, ("ask",): 1}, cpu_us=1_000.0)

    lines = list(describe(profile))

    own, cumulative = lines.index("own time:"), lines.index("with everything called:")
    assert lines[own + 1] == "  75.0%    750.0 us  rank"
    assert lines[cumulative + 1] == " 100.0%   1000.0 us  ask"
    assert list(collapsed(profile)) == ["ask 1", "ask;rank 3"]
