"""Whether serving read what training would have read."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import typer
from typer.testing import CliRunner

from app.adapters.database import batch_database
from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.model_store import ModelStore
from app.api.factory import create_app
from app.bootstrap.keeper import take_snapshot
from app.bootstrap.projector import build_projector
from app.bootstrap.stores import open_import
from app.bootstrap.web import build_api
from app.settings import load_settings
from tests.builders import event, proposition, query
from tests.small_model import activate_small_model
from training.skew import NothingToAudit, SkewOptions, audit, logged_decisions
from training.skew_cli import skew

CATEGORIES = ("film", "news", "sport")


@pytest.fixture
def stores(settings):
    """Feast's store and the schema that it holds."""
    store = open_feature_store(settings)
    return store, load_schema(store)


@pytest.fixture
def model(settings, stores):
    """A model serves that reads everything."""
    return activate_small_model(settings, *CATEGORIES, ranks={"length": (0.0, 1.0, 2.0, 3.0)})


@pytest.fixture
def history(settings):
    """Twelve propositions with traits and numbers, and four users with something behind them."""
    start = datetime.now(UTC) - timedelta(hours=5)
    with open_import(settings) as loader:
        for n in range(12):
            attributes = {"length": n % 4, "author": f"a{n % 2}"}
            loader.add(proposition(f"p{n}", category=CATEGORIES[n % 3], tags=("new",), attributes=attributes))
        for n in range(60):
            at = start + timedelta(minutes=n)
            common = {"user_id": f"u{n % 4}", "request_id": f"r{n}", "context": {"page": "home"}}
            loader.add(event(f"i{n}", "impression", f"p{n % 12}", at, **common))
            if n % 5 == 0:
                loader.add(event(f"c{n}", "click", f"p{n % 12}", at + timedelta(seconds=2), **common))
        loader.finish(False)
    build_projector(settings)[0].run()
    take_snapshot(settings)


@pytest.fixture
def serve(model, history, monkeypatch):
    """A function that answers requests of some users and has their decisions logged."""

    def serve(users=("u0", "u1", "nobody", None), share: str = "1") -> None:
        monkeypatch.setenv("DECISION_FEATURES_SHARE", share)
        monkeypatch.setenv("SUGGEST_DEADLINE_MS", "20000")
        settings = load_settings()
        services, _, registry = build_api(settings)
        client = create_app(settings, services, registry).test_client()
        for user in users:
            body = {"context": {"page": "home"}, "limit": 5, **({"user_id": user} if user else {})}
            answer = client.post("/suggest", data=json.dumps(body), content_type="application/json")
            assert answer.get_json()["strategy"] == "model"
        services.flush_decisions()

    return serve


@pytest.fixture
def audited(settings, stores):
    """A function that audits what was logged."""

    def audited(**options):
        since = datetime.now(UTC) - timedelta(hours=1)
        return audit(
            *stores,
            batch_database(settings),
            ModelStore(settings.model_dir, settings.half_lives_s),
            settings.half_lives_s,
            SkewOptions(since, **options),
        )

    return audited


def wrong_columns(report) -> set[str]:
    return {column.name for column in report.columns if column.mismatch_share > 0}


def test_serving_reads_what_training_reads_and_models_that_are_gone_are_counted_apart(
    settings, serve, audited, model
):
    serve()

    report = audited()

    assert report.decision_count == 4 and not report.skipped
    assert {column.name for column in report.columns} == set(model.columns)
    assert {column.compared_count for column in report.columns} == {4 * 5}
    assert wrong_columns(report) == set()
    assert report.worst_share == 0.0
    assert not any(column.lagging_share for column in report.columns)

    query(settings, "UPDATE decisions SET model_version = 'm0' WHERE user_id = 'u0'")
    report = audited()

    assert report.decision_count == 3
    assert report.skipped == {"model m0 is not on this machine": 1}


def test_what_training_sees_otherwise_is_found_by_column_with_examples(settings, serve, audited, tmp_path):
    serve()
    query(settings, "UPDATE proposition_performance SET clicks = array(SELECT unnest(clicks) + 3)")
    query(settings, "UPDATE user_history SET clicks = impressions WHERE user_id = 'u0'")

    report = audited()

    assert "proposition_performance.click_rate_30d" in wrong_columns(report)
    assert {name.split(".")[0] for name in wrong_columns(report)} == {
        "proposition_performance",
        "context_proposition_performance",  # its rates shrink towards those
        "user_history",
    }
    worst = report.columns[0]
    assert worst.mismatch_share == report.worst_share == 1.0
    assert worst.examples[0].served < worst.examples[0].recomputed
    assert worst.examples[0].proposition_id.startswith("p")
    ran = run("--json", f"{tmp_path}/skew.json", "--metrics-file", f"{tmp_path}/skew.prom")
    assert ran.exit_code == 1 and "allowed are 1.00%" in ran.output
    assert json.loads((tmp_path / "skew.json").read_text())["worst_share"] == 1.0
    line = 'propositions_feature_skew_mismatch_share{feature="proposition_performance.click_rate_30d"} 1\n'
    assert line in (tmp_path / "skew.prom").read_text()
    assert run("--max-mismatch", "1").exit_code == 0


def run(*arguments: str):
    app = typer.Typer()
    app.command()(skew)
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def test_what_happened_just_before_a_decision_may_be_on_its_way(settings, serve, audited):
    serve(["u0"])
    # Training sees another impression of three seconds before; serving did not.
    query(
        settings,
        "INSERT INTO user_activity SELECT user_id, array(SELECT unnest(impressions) + 1), clicks, conversions, dismissals,"
        " as_of_s, (SELECT decided_at FROM decisions) - interval '3 seconds', now()"
        " FROM user_activity WHERE user_id = 'u0' ORDER BY event_timestamp DESC LIMIT 1",
    )

    lenient, strict = audited(), audited(lag_s=1.0)

    assert wrong_columns(lenient) == set()
    lagging = {column.name for column in lenient.columns if column.lagging_share > 0}
    assert "user_activity.log_impressions_30d" in lagging
    assert wrong_columns(strict) == lagging


def test_only_the_asked_for_share_of_what_is_ranked_holds_features(settings, serve, audited):
    serve(["u0", "u1", None], share="0")

    assert query(settings, "SELECT count(*), count(features) FROM decisions") == [(3, 0)]
    with pytest.raises(NothingToAudit, match="DECISION_FEATURES_SHARE"):
        audited()

    serve(["u2", "u2", "u3"])
    # What is kept of a slate is stored by and by: the second one may be ranked again.
    assert query(
        settings,
        "SELECT bool_and(coalesce(is_cached, false) = (features IS NULL)) FROM decisions"
        " WHERE user_id IN ('u2', 'u3')",
    ) == [(True,)]
    options = SkewOptions(datetime.now(UTC) - timedelta(hours=1), sample=2)
    draws = [
        [d.request_id for d in logged_decisions(batch_database(settings), replace(options, seed=seed))]
        for seed in (1, 1, 7)
    ]
    assert draws[0] == draws[1] and [len(draw) for draw in draws] == [2, 2, 2]
