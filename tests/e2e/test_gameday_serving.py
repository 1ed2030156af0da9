"""The game day of serving in its short form. What it notices is tested in tests/unit/test_gameday_judging.py."""

import json
import subprocess
import sys

from app.gameday.serving import trials


def test_slates_come_in_time_whatever_fails(tmp_path):
    result_path = tmp_path / "gameday.json"

    command = [sys.executable, "-m", "app", "gameday", "--scenario", "serving", "--short"]
    done = subprocess.run([*command, "--json", str(result_path)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(result_path.read_text())
    assert result["passed"]
    assert 0 < result["rate"] < result["capacity_rps"]
    phases = {phase["name"]: phase for phase in result["phases"]}
    assert phases.keys() >= {trial.name for trial in trials("any")}
    assert all(phase["requests"] > 0 and phase["passed"] for phase in phases.values())
    # The faults were felt: nobody ranks by a model without Redis.
    assert "0" not in phases["redis frozen"]["levels"] or phases["redis frozen"]["levels"]["0"] < 0.5
    assert result_path.with_suffix(".png").stat().st_size > 0
