"""A foreign file becomes a report with one command, and nothing of it is left."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

START_MS = 1_760_000_000_000
SLATE_MS = 40_000
SLATES = 360
TESTED = 90
GENRES = ("war", "love", "space", "crime")


def write_events(path: Path) -> int:
    """User N likes genre N % 4 and long films; returns the moment of the first slate to test on, in milliseconds."""
    rng = random.Random(11)
    lines = [
        {
            "event": "item",
            "id": f"m{n}",
            "item": str(n),
            "timestamp": str(START_MS - 1_000),
            "fields": [
                {"name": "genres", "value": [GENRES[n % 4]]},
                {"name": "tags", "value": [f"{GENRES[n % 4]} story", f"tag {n % 7}"]},
                {"name": "runtime", "value": 80.0 + n},
                {"name": "director", "value": f"director {n % 5}"},
            ],
        }
        for n in range(40)
    ]
    for slate in range(SLATES):
        user, at = f"u{slate % 30}", START_MS + SLATE_MS * slate
        shown = rng.sample(range(40), 10)
        common = {"user": user, "timestamp": str(at), "session": user, "fields": []}
        lines.append(
            {"event": "ranking", "id": f"s{slate}", **common, "items": [{"id": str(n)} for n in shown]}
        )
        for n in shown:
            if rng.random() < (0.8 if n % 4 == slate % 30 % 4 else 0.1 + n / 400):
                click = {
                    "event": "interaction",
                    "id": f"c{slate}-{n}",
                    "ranking": f"s{slate}",
                    "item": str(n),
                }
                lines.append({**click, **common, "timestamp": str(at + 5_000), "type": "click"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return START_MS + SLATE_MS * (SLATES - TESTED)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    split_at = write_events(folder / "events.jsonl")
    # What a scratch database must not be mistaken for.
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", "app", "evaluate", "--format", "metarank", "--events", "events.jsonl"]
    options = ["--split-at", str(split_at), "--json", "out/report.json", "--html", "out/report.html"]
    done = subprocess.run([*command, *options], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "out" / "report.json").read_text()), done.stdout


def test_the_report_has_every_ranker_on_the_slates_since_the_moment(evaluated):
    _, report, _ = evaluated

    assert report["slate_count"] == TESTED
    assert set(report["rankers"]) == {"xgboost", "logistic", "rules", "popularity", "shown_order", "random"}
    for segments in report["rankers"].values():
        assert 0.0 < segments["all"]["ndcg@10"] <= 1.0
        assert {"precision@3", "hit_rate@3", "recall@3", "mrr", "auc"} <= set(segments["warm"])
    assert set(report["retained_lift"]) == {"users", "propositions"}
    assert 0.0 <= report["selective"]["0.2"]["precision@3"] <= 1.0
    assert report["coverage"]["requests"] == report["coverage"]["model"] == 1.0


def test_the_model_has_learned_what_users_like(evaluated):
    _, report, _ = evaluated

    gain = report["paired"]["xgboost-popularity"]["ndcg@10"]
    assert 0.0 < gain["low"] < gain["mean"] < gain["high"]


def test_the_page_needs_nothing_from_elsewhere(evaluated):
    folder, _, _ = evaluated

    page = (folder / "out" / "report.html").read_text()

    assert "events.jsonl" in page
    assert 'src="http' not in page and 'href="http' not in page


def test_what_was_done_is_told_and_nothing_of_it_is_left(evaluated):
    folder, _, printed = evaluated

    assert "propositions import --format metarank" in printed
    assert sorted(path.name for path in folder.iterdir()) == ["events.jsonl", "out"]
