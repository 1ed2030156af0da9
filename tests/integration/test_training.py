"""Training on small worlds whose truth is known."""

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from app.adapters.model_store import ModelStore
from app.bootstrap.projector import build_projector
from app.bootstrap.stores import open_import
from app.domain.errors import ModelRefused
from app.features.assembly import learn_spec
from tests.builders import event, proposition, query
from training.assessment import SERVING, of_version
from training.dataset import NothingToTrainOn
from training.matrix import matrix
from training.models import ModelParameters
from training.registry import open_promotions
from training.run import Choices, TrainingData, build, time_split, train_model

START = datetime.now(UTC) - timedelta(days=2)
CATEGORIES = ("sport", "news", "film", "food")


def import_world(settings, slate_count: int = 250, seed: int = 1):
    """Users who click what is of their own category, on slates of six; user uN likes category N % 4."""
    rng = random.Random(seed)
    with open_import(settings) as loader:
        for n in range(24):
            loader.add(proposition(f"p{n}", category=CATEGORIES[n % 4]))
        for slate in range(slate_count):
            user, at = slate % 20, START + timedelta(seconds=60 * slate)
            for position, n in enumerate(rng.sample(range(24), 6), start=1):
                common = {"user_id": f"u{user}", "request_id": f"s{slate}", "position": position}
                loader.add(event(f"i{slate}-{n}", "impression", f"p{n}", at, **common))
                if n % 4 == user % 4:
                    later = at + timedelta(seconds=5)
                    loader.add(event(f"c{slate}-{n}", "click", f"p{n}", later, **common))
        loader.finish(False)


# A small world needs small leaves.
SMALL = ModelParameters(min_child_weight=2.0, max_trees=60, learning_rate=0.2, colsample_bytree=0.6)


def folded(settings):
    """The schema and the data set of all events so far."""
    build_projector(settings)[0].run()
    return build(settings)


def train(settings, now=None, seed=3):
    schema, dataset = folded(settings)
    choices = Choices(seed=seed, parameters=SMALL)
    data = TrainingData.of(time_split(dataset))
    return train_model(settings, schema, data, now or datetime.now(UTC), choices)


def test_a_ranker_learns_what_each_user_likes_and_beats_the_baselines(settings):
    import_world(settings)

    trained = train(settings)

    report = trained.report
    assert report.rankers["xgboost"]["all"]["ndcg@10"] > 0.95
    assert report.paired["xgboost-popularity"]["ndcg@10"].low > 0.1
    assert report.retained_lift["users"] < 0.5  # without their history nothing is known of what users like
    assert report.coverage["requests"] == report.coverage["model"] == 1.0
    manifest = ModelStore(settings.model_dir, settings.half_lives_s).manifest(trained.version)
    assert set(manifest["files_sha256"]) == {"ranker.json", "baseline.pkl"}
    assert manifest["windows"]["train"]["last"] <= manifest["windows"]["test"]["first"]
    assert "proposition_performance.dismiss_rate_30d" in manifest["matrix"]["dropped"]  # nobody ever did
    assert not set(manifest["matrix"]["dropped"]) & set(manifest["columns"])


def test_the_same_seed_on_the_same_events_gives_the_same_model_and_report(settings):
    import_world(settings, 120)
    now = datetime.now(UTC)

    first, second = train(settings, now), train(settings, now + timedelta(seconds=1))

    hashes = [trained.manifest["files_sha256"] for trained in (first, second)]
    assert hashes[0] == hashes[1]
    assert first.report.to_json() == second.report.to_json()


def test_a_stored_model_is_measured_on_the_slates_that_it_was_tested_on_and_later_ones(settings):
    import_world(settings, 120)
    trained = train(settings)
    open_promotions(settings).promote(trained.version, force=True, reason="a test")

    measured = of_version(settings, SERVING, seed=3)

    assert measured.report.to_json() == trained.report.to_json()
    assert measured.facts.windows["test"]["slates"] == trained.manifest["windows"]["test"]["slates"]


def test_with_shuffled_labels_quality_falls_to_random(settings):
    import_world(settings)
    rng = random.Random(5)
    rows = query(settings, "SELECT seq, proposition_id FROM events WHERE event_type = 'click'")
    for seq, _ in rows:
        query(
            settings, "UPDATE events SET proposition_id = %s WHERE seq = %s", (f"p{rng.randrange(24)}", seq)
        )

    report = train(settings).report

    assert report.paired["xgboost-random"]["ndcg@10"].low < 0.05
    assert report.rankers["xgboost"]["all"]["ndcg@10"] < 0.75


CUT = START + timedelta(seconds=60 * 30, microseconds=-1)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM events WHERE received_at > %s AND event_type <> 'impression'",
        # Later still, by a time of its own each, and in another order.
        """UPDATE events SET received_at = received_at + moved, occurred_at = occurred_at + moved FROM (
               SELECT seq AS moved_seq, make_interval(secs => 7200 + (seq * 7919) %% 3600) AS moved
               FROM events WHERE received_at > %s AND event_type <> 'impression'
           ) AS moves WHERE seq = moved_seq""",
    ],
    ids=["dropped", "moved"],
)
def test_what_happens_after_a_slate_does_not_change_its_features(settings, change):
    import_world(settings, 60)
    schema, before = folded(settings)
    spec = learn_spec(schema, settings.half_lives_s, before.rows)
    query(settings, change, (CUT,))
    build_projector(settings)[0].rebuild()

    _, after = folded(settings)

    early = before.slates.decided_at_s < CUT.timestamp()
    assert early.sum() == 30 and before.slates.ids[:30].tolist() == after.slates.ids[:30].tolist()
    was, now = (matrix(spec, dataset)[: 30 * 6] for dataset in (before, after))
    assert np.array_equal(was, now, equal_nan=True)
    assert np.isfinite(was[-6:, spec.columns.index("user_history.trait_affinity")]).all()
    assert not np.array_equal(matrix(spec, before), matrix(spec, after)[: len(before)], equal_nan=True)


def test_the_logged_position_changes_no_score(settings):
    import_world(settings, 60)
    schema, before = folded(settings)
    spec = learn_spec(schema, settings.half_lives_s, before.rows)
    query(settings, "UPDATE events SET position = 7 - position")

    _, after = folded(settings)

    assert (before.positions != after.positions).any()
    assert np.array_equal(matrix(spec, before), matrix(spec, after), equal_nan=True)


def test_slates_that_cannot_tell_good_from_bad_give_no_model(settings):
    with open_import(settings) as loader:
        for n in range(20):
            loader.add(event(f"i{n}", "impression", "p1", START + timedelta(hours=n), request_id=f"s{n}"))
        loader.finish(False)

    with pytest.raises(NothingToTrainOn, match=r"nothing to tell apart|collect more events"):
        train(settings)

    assert ModelStore(settings.model_dir, settings.half_lives_s).versions() == []


def test_without_events_there_is_nothing_to_train_on(settings):
    with pytest.raises(NothingToTrainOn, match="no impressions"):
        train(settings)


def test_models_are_promoted_recorded_and_rolled_back(settings):
    import_world(settings, 120)
    now = datetime.now(UTC)
    first = train(settings, now).version
    second = train(settings, now + timedelta(seconds=1), seed=4).version
    promotions = open_promotions(settings)
    forced = {"force": True, "reason": "small worlds have few slates"}

    assert promotions.promote(first, **forced) == first
    assert promotions.promote("latest", **forced) == second
    assert promotions.roll_back() == first
    with pytest.raises(ModelRefused):
        promotions.promote("20000101T000000")
    assert ModelStore(settings.model_dir, settings.half_lives_s).active().version == first


def test_a_model_that_the_gate_did_not_pass_is_not_promoted(settings):
    import_world(settings, 120)
    trained = train(settings)
    failed = {check.name for check in trained.verdict.checks if not check.is_passed}

    assert "test slates" in failed
    with pytest.raises(ModelRefused, match="slates were tested on"):
        open_promotions(settings).promote(trained.version)
    assert ModelStore(settings.model_dir, settings.half_lives_s).active() is None
