"""The benchmark runs on small data. What it measures there means nothing and is not looked at."""

import json

import pytest

from tests.benchmarks import report
from tests.benchmarks.hot_path import Profile, collapsed, describe
from tests.benchmarks.open_loop import percentile
from tests.benchmarks.run import run


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    return out, run(["rows"], is_quick=True, out=out)


def test_a_quick_run_leaves_every_figure_of_its_rows(quick_run):
    _, summary = quick_run

    assert {"serving_vs_flask", "serving_vs_feast", "cache_vs_no_cache", "serving_rps", "ready_s"} <= set(
        summary
    )
    assert all(value is None or value >= 0 for value in summary.values())


def test_a_quick_run_is_answered_without_errors_at_level_0(quick_run):
    out, _ = quick_run

    rows = json.loads((out / report.RESULTS).read_text())["rows"]

    assert {name: row["problems"] for name, row in rows.items()} == {name: [] for name in rows}
    for row in rows.values():
        for loop in row["open_loops"].values():
            assert loop["errors"] == 0 and loop["answers"] == loop["due"] > 0


def test_the_models_have_exactly_the_stated_size_and_read_every_kind_of_feature(quick_run):
    out, _ = quick_run

    models = json.loads((out / report.RESULTS).read_text())["models"]

    assert [(model["trees"], model["max_leaves"]) for model in models] == [(100, 64), (300, 64), (100, 64)]
    for model in models:
        assert model["used_columns"] == model["columns"]
        assert set(model["splits"]) == {
            "user",
            "proposition",
            "context",
            "user_category",
            "context_proposition",
        }


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
