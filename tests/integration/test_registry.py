"""Which models may serve, and the record of it."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import xgboost
from typer.testing import CliRunner

from app.adapters.database import service_database
from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.model_store import BASELINE, MANIFEST, RANKER, ModelStore
from app.bootstrap.stores import migrate_database
from app.domain.errors import ModelRefused
from app.features.assembly import MatrixSpec
from tests.builders import query
from training.gate import Check, Verdict
from training.models_cli import models as commands
from training.registry import GateDecisions, ModelTable, open_promotions

PASSED = Verdict(True, (Check("latency", True, "3", "<= 20", "it takes 3 ms"),))
FAILED = Verdict(False, (Check("latency", False, "30", "<= 20", "it takes 30 ms, allowed are 20"),))


@pytest.fixture
def store(settings):
    return ModelStore(settings.model_dir, settings.half_lives_s)


@pytest.fixture
def add(settings, store):
    """A function that trains a tiny model, records it and has it judged."""
    schema = load_schema(open_feature_store(settings))
    counter_views = [view.name for view in schema.views if view.has_counters]
    rates = {"click_rate": 0.2, "conversion_rate": 0.1, "dismiss_rate": 0.05}
    spec = MatrixSpec(
        schema=schema,
        half_lives_s=settings.half_lives_s,
        base_rates=rates,
        prior_strengths={name: dict.fromkeys(rates, 10.0) for name in counter_views},
        vocabularies={
            f"{view.name}.{field.name}": ("a",)
            for view in schema.views
            for field in view.fields
            if field.kind == "category"
        },
        ranks={},
    )
    matrix = np.random.default_rng(0).random((20, len(spec.columns))).astype(np.float32)
    data = xgboost.DMatrix(matrix, label=matrix[:, 0], feature_names=list(spec.columns))
    content = bytes(xgboost.train({"nthread": 1}, data, num_boost_round=1).save_raw("json"))

    def add(version: str, verdict: Verdict | None = PASSED, ndcg: float = 0.6, **manifest) -> str:
        compared_with = store.active() and store.active().version
        pair = {"ndcg@10": {"mean": 0.02, "low": 0.01, "high": 0.03}}
        report = {
            "rankers": {"xgboost": {"all": {"ndcg@10": ndcg}}},
            "paired": {"xgboost-popularity": pair},
        }
        facts = {"version": version, "columns": list(spec.columns), "metrics": report, **manifest}
        files = {RANKER: content, BASELINE: pickle.dumps(version)}
        written = store.write(version, files, {"matrix": spec.to_json(), **facts})
        ModelTable(service_database(settings)).add(version, written)
        if verdict is not None:
            GateDecisions(service_database(settings)).add_verdict(version, verdict, compared_with)
        return version

    return add


@pytest.fixture
def promotions(settings):
    return open_promotions(settings)


def serving(store) -> str | None:
    active = store.active()
    return active and active.version


def test_a_model_that_passed_the_gate_serves_and_can_be_rolled_back(settings, store, promotions, add):
    promotions.promote(add("m1"))
    promotions.promote(add("m2"))

    assert serving(store) == "m2"
    assert promotions.roll_back("ann") == "m1"
    assert serving(store) == "m1"
    assert query(
        settings, "SELECT version, is_passed, actor, reason FROM gate_decisions WHERE promoted ORDER BY id"
    ) == [("m1", True, None, None), ("m2", True, None, None), ("m1", True, "ann", "rolled back")]
    assert query(settings, "SELECT count(*) FROM models WHERE promoted_at IS NOT NULL") == [(2,)]


def test_a_model_that_failed_is_refused_with_the_reasons(store, promotions, add):
    promotions.promote(add("m1"))
    add("m2", FAILED)

    with pytest.raises(ModelRefused, match="it takes 30 ms, allowed are 20"):
        promotions.promote("latest")

    assert serving(store) == "m1"


def test_a_model_that_was_never_judged_is_refused(store, promotions, add):
    add("m1", verdict=None)

    with pytest.raises(ModelRefused, match="never judged"):
        promotions.promote("m1")

    assert serving(store) is None


def test_the_last_verdict_counts(settings, promotions, add):
    add("m1", FAILED)
    GateDecisions(service_database(settings)).add_verdict("m1", PASSED, None)

    assert promotions.promote("m1") == "m1"


def test_a_verdict_against_another_model_than_the_one_that_serves_does_not_count(store, promotions, add):
    add("m1")
    add("m2")
    promotions.promote("m1")

    with pytest.raises(ModelRefused, match="compared model m2 with no model, but m1 serves now"):
        promotions.promote("m2")

    assert promotions.promote("m1") == "m1"  # promoting what serves changes nothing


def test_force_needs_a_reason_and_keeps_it(settings, store, promotions, add):
    add("m1", FAILED)

    with pytest.raises(ModelRefused, match="--reason"):
        promotions.promote("m1", force=True, reason=" ")
    promotions.promote("m1", force=True, reason="the sale starts", actor="ann")

    assert serving(store) == "m1"
    assert query(settings, "SELECT is_passed, actor, reason FROM gate_decisions WHERE promoted") == [
        (False, "ann", "the sale starts")
    ]


def test_a_model_that_was_recorded_nowhere_serves_only_by_force_and_is_recorded(
    settings, store, promotions, add
):
    add("m1", verdict=None)
    query(settings, "DELETE FROM models")

    with pytest.raises(ModelRefused, match="not recorded"):
        promotions.promote("m1")
    promotions.promote("m1", force=True, reason="comes from the old cluster")

    assert query(settings, "SELECT version, promoted_at IS NOT NULL FROM models") == [("m1", True)]


def tamper(store, version: str) -> None:
    """Changes the model's file, and its manifest so that they fit each other."""
    source = store.write("forged", {RANKER: b"forged", BASELINE: pickle.dumps(0)}, store.manifest(version))
    for name in (*source["files_sha256"], MANIFEST):
        path = store.folder(version) / name
        path.chmod(0o644)
        path.write_bytes((store.folder("forged") / name).read_bytes())


@pytest.mark.parametrize("is_forced", [False, True])
def test_a_manifest_that_was_changed_together_with_its_files_is_refused(store, promotions, add, is_forced):
    add("m1")
    tamper(store, "m1")
    store.verify("m1")  # on disk everything fits

    with pytest.raises(ModelRefused, match="not the one that was recorded"):
        promotions.promote("m1", force=is_forced, reason="trust me")
    with pytest.raises(ModelRefused, match="not the one that was recorded"):
        promotions.baseline("m1")

    assert serving(store) is None


def test_a_changed_baseline_stops_a_promotion(store, promotions, add):
    path = store.folder(add("m1")) / BASELINE
    path.chmod(0o644)
    path.write_bytes(b"")

    with pytest.raises(ModelRefused, match=r"baseline\.pkl"):
        promotions.promote("m1")


def test_a_recorded_baseline_can_be_loaded(promotions, add):
    assert promotions.baseline(add("m1")) == "m1"


def test_a_version_is_recorded_once_and_never_changed(settings, store, add):
    add("m1")
    table, manifest = ModelTable(service_database(settings)), store.manifest("m1")

    table.add("m1", manifest)
    with pytest.raises(ModelRefused, match="never change"):
        table.add("m1", {**manifest, "seed": 8})
    with pytest.raises(ModelRefused, match="SHA-256"):
        table.add("m2", {"version": "m2"})

    assert query(settings, "SELECT version FROM models") == [("m1",)]


def test_numbers_of_any_size_do_not_make_a_manifest_look_changed(settings, promotions, add):
    add("m1", numbers=[1e300, 1e-300, 0.1, -0.0, 12345678901234567890, 1.0])

    assert promotions.promote("m1") == "m1"


def test_models_tell_where_they_stand(promotions, add):
    promotions.promote(add("m1", ndcg=0.61))
    promotions.promote(add("m2", ndcg=0.62))
    add("m3", FAILED)
    add("m4", verdict=None)

    states = promotions.states()

    assert [(s.version, s.is_serving, s.is_previous, s.ndcg) for s in states] == [
        ("m1", False, True, 0.61),
        ("m2", True, False, 0.62),
        ("m3", False, False, 0.6),
        ("m4", False, False, 0.6),
    ]
    assert [s.gate and s.gate.is_passed for s in states] == [True, True, False, None]
    assert states[0].gain_over_popularity.low == 0.01
    details = promotions.describe("m2")
    assert [decision.promoted for decision in details.decisions] == [False, True]
    assert details.decisions[0].compared_with == "m1"
    assert details.decisions[0].checks == PASSED.checks


def test_two_models_differ_in_what_was_changed(promotions, add):
    add("m1", parameters={"eta": 0.1, "max_depth": 4}, columns=["a", "b"], windows={"train": {"slates": 10}})
    add(
        "m2",
        ndcg=0.65,
        parameters={"eta": 0.2, "max_depth": 4},
        columns=["b", "c"],
        windows={"train": {"slates": 20}},
    )

    diff = promotions.diff("m1", "m2")

    assert diff.parameters == {"eta": (0.1, 0.2)}
    assert (diff.columns_added, diff.columns_removed) == (("c",), ("a",))
    assert diff.windows == {"train.slates": (10, 20)}
    assert diff.metrics["rankers.xgboost.all.ndcg@10"] == (0.6, 0.65)
    assert diff.constants == {}


def run(*arguments: str):
    return CliRunner().invoke(commands, arguments, env={"COLUMNS": "200"})


def test_the_commands_show_and_change_what_serves(store, add):
    add("m1", ndcg=0.612)
    assert run("promote", "m1").exit_code == 0
    add("m2", FAILED, ndcg=0.613)

    refused = run("promote", "m2")
    listed = run("list").output
    shown = run("show", "m2").output
    compared = run("diff", "m1", "m2").output

    assert isinstance(refused.exception, ModelRefused)
    assert "serves" in listed and "failed" in listed and "0.6120" in listed and "+0.0200" in listed
    assert "it takes 30 ms, allowed are 20" in shown
    assert "+0.0010" in compared
    assert run("promote", "m2", "--force", "--reason", "an experiment").exit_code == 0
    assert serving(store) == "m2"
    assert "an experiment" in run("show", "m2").output
    assert "m1 serves again" in run("rollback").output


def test_models_are_listed_while_the_database_is_down(store, add, monkeypatch):
    add("m1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")

    listed = run("list")

    assert listed.exit_code == 0
    assert "m1" in listed.output and "did not answer" in listed.output


def test_migrating_back_and_forth_keeps_the_models(settings, add):
    add("m1")

    migrate_database(settings, down_to="0006")
    migrate_database(settings)

    assert query(settings, "SELECT version FROM models") == [("m1",)]
    assert query(settings, "SELECT count(*) FROM gate_decisions") == [(0,)]


def test_a_verdict_survives_the_database_unchanged(settings):
    decisions = GateDecisions(service_database(settings))
    verdict = replace(FAILED, checks=(*FAILED.checks, Check("cold users", True, "-", ">= 1", "none", True)))

    decisions.add_verdict("m1", verdict, "m0")

    stored = decisions.last_verdict("m1")
    assert (stored.is_passed, stored.checks, stored.compared_with) == (False, verdict.checks, "m0")
    assert json.loads(json.dumps(verdict.to_json()))[1]["is_skipped"]
