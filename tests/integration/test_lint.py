"""What is found wrong with the event log."""

import json
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from app.adapters.database import batch_database
from app.bootstrap.projector import build_projector
from app.bootstrap.stores import open_import
from tests.builders import NOON, event, proposition, query
from training.dataset_cli import dataset
from training.lint.events import lint_events
from training.lint.findings import LintLimits, Severity


@pytest.fixture
def found(settings):
    """A function that records events and returns what is wrong with the log, by name."""

    def found(*events, limits: LintLimits = LintLimits()) -> dict:
        with open_import(settings) as loader:
            loader.add(proposition("p1"))
            for each in events:
                loader.add(each)
            loader.finish(False)
        # An import takes events as received when they happened.
        query(
            settings, "UPDATE events SET received_at = occurred_at - interval '2 m' WHERE event_id = 'early'"
        )
        query(
            settings, "UPDATE events SET received_at = occurred_at + interval '8 d' WHERE event_id = 'late'"
        )
        return {finding.name: finding for finding in lint_events(batch_database(settings), limits)}

    return found


def shown_and_clicked(number: int, **fields) -> list:
    at = NOON + timedelta(minutes=number)
    common = {"request_id": f"r{number}", **fields}
    return [
        event(f"i{number}", "impression", at=at, **common),
        event(f"c{number}", "click", at=at + timedelta(seconds=5), **common),
    ]


def test_a_sound_log_has_no_findings(found):
    assert found(*shown_and_clicked(1), *shown_and_clicked(2)) == {}


def test_outcomes_of_what_was_never_shown_are_found(found):
    lost = [event("lost1", request_id="r9"), event("lost2", user_id="u9")]

    finding = found(*shown_and_clicked(1), *shown_and_clicked(2), *lost)["clicks without an impression"]

    assert (finding.count, finding.share, finding.examples) == (2, 0.5, ("lost1", "lost2"))
    assert finding.severity is Severity.ERROR  # half of them, and a fifth is the limit


def test_events_of_unknown_propositions_are_found(found):
    findings = found(
        *shown_and_clicked(1),
        event("x", "dismiss", "nobody"),
        limits=LintLimits(max_unknown_share=0.5),
    )

    finding = findings["unknown propositions"]
    assert (finding.count, finding.examples, finding.severity) == (1, ("nobody",), Severity.WARNING)


def test_clocks_that_run_ahead_or_behind_are_found(found):
    early = event("early", "impression", request_id="r5")
    late = event("late", "impression", request_id="r6")

    findings = found(*shown_and_clicked(1), early, late)

    assert findings["events from the future"].examples == ("early",)
    assert findings["late events"].examples == ("late",)


def test_clicks_before_their_impression_are_found(found):
    clicked = event("before", "click", at=NOON - timedelta(hours=1), request_id="r1", user_id="u1")

    finding = found(*shown_and_clicked(1), clicked)["outcomes before their impression"]

    assert (finding.count, finding.examples) == (1, ("before",))


def test_events_that_repeat_others_under_another_id_are_found(found):
    impression, click = shown_and_clicked(1)

    finding = found(impression, click, event("c1-again", "click", at=click.occurred_at, request_id="r1"))[
        "duplicates"
    ]

    assert (finding.count, finding.examples) == (1, ("c1",))


def test_users_who_click_everything_or_nothing_are_found(found):
    keen = [e for n in range(4) for e in shown_and_clicked(n, user_id="keen")]
    usual = [e for n in range(20, 30) for e in shown_and_clicked(n, user_id=f"u{n}")[: 1 + n % 2]]
    never = [event(f"n{n}", "impression", at=NOON + timedelta(days=n), user_id="never") for n in range(40)]

    findings = found(*keen, *usual, *never, limits=LintLimits(min_bot_impressions=4, max_chance=1e-2))

    assert findings["bots"].examples == ("keen", "never")
    assert findings["bots"].count == 44


def run(*arguments: str):
    return CliRunner().invoke(dataset, arguments, env={"COLUMNS": "200"})


def test_the_commands_build_a_data_set_cut_it_and_tell_what_is_wrong(settings, found, tmp_path):
    found(*(each for n in range(20) for each in shown_and_clicked(n, user_id=f"u{n % 3}")))
    build_projector(settings)[0].run()

    built = run("build", "--out", f"{tmp_path}/data")
    cut = run("build", "--out", f"{tmp_path}/cut", "--split", "time", "--embargo-s", "60")
    linted = run("lint", "--dataset", f"{tmp_path}/data", "--json", f"{tmp_path}/findings.json")

    assert built.exit_code == 0 and "20 slates with 20 impressions" in built.output
    assert cut.exit_code == 0
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"train", "validation", "test"}
    assert linted.exit_code == 1 and "too few slates" in linted.output
    assert "too few slates" in {each["name"] for each in json.loads((tmp_path / "findings.json").read_text())}
    assert run("build", "--out", f"{tmp_path}/other", "--engine", "duckdb").exit_code == 2
