"""`propositions logs anomalies`: files, streams, what it prints, and how it ends."""

import gzip
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import logs
from app.cli.logs import EXIT_ANOMALIES

BEGIN = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def line(at_s: float, message: str = "a store is down: 7", level: str = "warning") -> str:
    time = datetime.fromtimestamp(BEGIN + at_s, UTC).isoformat()
    told = {"@timestamp": time, "log.level": level, "message": message, "log": {"logger": "app.api.problems"}}
    return json.dumps(told) + "\n"


QUIET = "".join(line(60 * minute, "all is well", "info") for minute in range(120))
OUTAGE = "".join(line(7_200 + second) for second in range(30))


def run(*arguments: object, stdin: str | None = None):
    return CliRunner().invoke(logs.commands, ["anomalies", *map(str, arguments)], input=stdin)


@pytest.fixture
def quiet(tmp_path) -> Path:
    path = tmp_path / "quiet.log"
    path.write_text(QUIET)
    return path


@pytest.fixture
def outage(tmp_path) -> Path:
    path = tmp_path / "outage.log.gz"
    path.write_bytes(gzip.compress(OUTAGE.encode()))
    return path


def test_a_log_without_anomalies_ends_well(quiet):
    done = run(quiet)

    assert done.exit_code == 0
    assert "120 lines, 0 anomalies" in done.output


def test_files_in_any_order_are_read_in_the_order_of_time_and_anomalies_end_with_a_status(quiet, outage):
    done = run(outage, quiet)

    assert done.exit_code == EXIT_ANOMALIES
    assert "new signature" in done.output and "app.api.problems: a store is down: *" in done.output


def test_the_standard_input_is_read_and_json_is_printed():
    done = run("-", "--json", stdin=f"no line\n{QUIET}{OUTAGE}")

    told = json.loads(done.output)
    assert (done.exit_code, told["lines"], told["unreadable"]) == (EXIT_ANOMALIES, 150, 1)
    (anomaly,) = told["anomalies"]
    assert anomaly["kind"] == "new signature"
    assert anomaly["detected_at"] == "2026-01-01T02:00:00+00:00"
    assert (anomaly["seen"], anomaly["expected"], anomaly["unit"]) == (30, 0, "per window")


def test_with_a_state_lines_count_once_and_what_was_told_is_not_told_again(quiet, outage, tmp_path):
    state = tmp_path / "state"

    assert run(quiet, "--state", state).exit_code == 0
    assert run(quiet, outage, "--state", state).exit_code == EXIT_ANOMALIES
    again = run(quiet, outage, "--state", state)

    assert again.exit_code == 0
    assert "150 lines were known" in again.output


def test_a_state_of_other_options_is_refused(quiet, tmp_path):
    state = tmp_path / "state"
    run(quiet, "--state", state)

    done = run(quiet, "--state", state, "--window", "30")

    assert done.exit_code == 1 and "other options" in str(done.exception)


def test_what_is_no_log_of_the_service_is_refused(tmp_path):
    path = tmp_path / "other.log"
    path.write_text("hello\n")

    assert "no line of the service" in str(run(path).exception)
    assert "cannot be read" in str(run(tmp_path / "nowhere").exception)


def test_a_growing_and_rotated_file_is_followed_until_told_to_end(tmp_path):
    path, state = tmp_path / "service.log", tmp_path / "state"
    path.write_text(QUIET)
    command = [sys.executable, "-m", "app", "logs", "anomalies", "--follow", "--json", "--state", state, path]
    following = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        with path.open("a") as file:
            file.write(line(7_200, "new here")[:20])
            file.flush()
            file.write(line(7_200, "new here")[20:])
        first = json.loads(following.stdout.readline())
        path.rename(tmp_path / "service.log.1")
        path.write_text(line(7_300, "and another"))
        second = json.loads(following.stdout.readline())
        following.send_signal(signal.SIGTERM)

        assert following.wait(20) == EXIT_ANOMALIES
        assert [told["subject"] for told in (first, second)] == [
            "app.api.problems: new here",
            "app.api.problems: and another",
        ]
        assert run(tmp_path / "service.log.1", path, "--state", state).exit_code == 0
    finally:
        following.kill()
