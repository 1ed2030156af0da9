"""Training on small worlds whose truth is known."""

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.model_store import ModelStore
from app.bootstrap import build_projector, open_import
from app.domain.errors import ModelRefused
from app.features.assembly import learn_spec
from tests.builders import event, proposition, query
from training.dataset import NothingToTrainOn, build_dataset, split_by_time
from training.fit import matrix
from training.registry import open_promotions
from training.run import train_model

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


@pytest.fixture
def dataset_of(settings):
    """A function that projects what is new and builds the data set."""

    def build():
        build_projector(settings)[0].run()
        store = open_feature_store(settings)
        return build_dataset(store, load_schema(store), len(settings.half_lives_s))

    return build


def test_a_ranker_learns_what_each_user_likes_and_beats_the_baselines(settings):
    import_world(settings)
    build_projector(settings)[0].run()

    trained = train_model(settings, datetime.now(UTC), seed=3)

    ndcg = {name: metrics["ndcg@10"].mean for name, metrics in trained.report.rankers.items()}
    assert ndcg["xgboost"] > 0.95 > ndcg["popularity"] + 0.1
    assert trained.report.paired["popularity"]["ndcg@10"].low > 0
    manifest = ModelStore(settings.model_dir, settings.half_lives_s).manifest(trained.version)
    assert set(manifest["files_sha256"]) == {"ranker.ubj", "baseline.pkl"}
    assert manifest["windows"]["train"]["last"] <= manifest["windows"]["test"]["first"]


def test_the_same_seed_on_the_same_events_gives_the_same_model(settings):
    import_world(settings, 120)
    build_projector(settings)[0].run()
    now = datetime.now(UTC)

    first = train_model(settings, now, seed=3)
    second = train_model(settings, now + timedelta(seconds=1), seed=3)

    hashes = [
        ModelStore(settings.model_dir, settings.half_lives_s).manifest(trained.version)["files_sha256"]
        for trained in (first, second)
    ]
    assert hashes[0] == hashes[1]
    assert first.report == second.report


def test_with_shuffled_labels_quality_falls_to_random(settings):
    import_world(settings)
    rng = random.Random(5)
    rows = query(settings, "SELECT seq, proposition_id FROM events WHERE event_type = 'click'")
    for seq, _ in rows:
        query(
            settings, "UPDATE events SET proposition_id = %s WHERE seq = %s", (f"p{rng.randrange(24)}", seq)
        )
    build_projector(settings)[0].run()

    report = train_model(settings, datetime.now(UTC), seed=3).report

    assert report.paired["random"]["ndcg@10"].low < 0.05
    assert report.rankers["xgboost"]["ndcg@10"].mean < 0.75


def test_what_happens_after_a_slate_does_not_change_its_features(settings, dataset_of):
    import_world(settings, 60)
    before = dataset_of()
    spec = learn_spec(load_schema(open_feature_store(settings)), settings.half_lives_s, before.rows)
    cut = START + timedelta(seconds=60 * 30, microseconds=-1)
    query(settings, "DELETE FROM events WHERE received_at > %s AND event_type <> 'impression'", (cut,))
    build_projector(settings)[0].rebuild()

    after = dataset_of()

    early = before.slate_at_s < cut.timestamp()
    assert early.sum() == 30 * 6
    assert np.array_equal(matrix(spec, before)[early], matrix(spec, after)[early], equal_nan=True)


def test_the_logged_position_is_no_feature(settings, dataset_of):
    import_world(settings, 40)
    before = dataset_of()
    query(settings, "UPDATE events SET position = 7 - position")

    after = dataset_of()

    for name, rows in before.rows.items():
        if rows.counts is not None:
            assert np.array_equal(rows.counts, after.rows[name].counts)


def test_slates_are_split_by_time_and_never_cut(settings, dataset_of):
    import_world(settings, 50)

    split = split_by_time(dataset_of())

    assert [len(part.slate_starts) for part in (split.train, split.validation, split.test)] == [35, 5, 10]
    assert {len(part) for part in (split.train, split.validation, split.test)} == {210, 30, 60}
    assert split.train.slate_at_s.max() <= split.validation.slate_at_s.min()
    assert split.validation.slate_at_s.max() <= split.test.slate_at_s.min()


def test_conversions_weigh_more_than_clicks_and_outcomes_join_by_slate(settings, dataset_of):
    with open_import(settings) as loader:
        for n, types in enumerate((["impression"], ["impression", "click"], ["impression", "conversion"])):
            for event_type in types:
                loader.add(event(f"{event_type}{n}", event_type, f"p{n}", START, request_id="s1"))
        loader.add(event("other", "click", "p0", START, request_id="s2"))
        loader.finish(False)

    assert dataset_of().relevance.tolist() == [0, 1, 2]


def test_a_slate_was_decided_for_whom_and_where_the_decision_log_says(settings, dataset_of):
    with open_import(settings) as loader:
        loader.add(event("old", "impression", "p1", START, user_id="u7", request_id="before"))
        later = START + timedelta(hours=1)
        loader.add(event("shown", "impression", "p1", later, user_id=None, request_id="r1"))
        loader.finish(False)
    query(
        settings,
        "INSERT INTO decisions (request_id, decided_at, user_id, context, context_key, strategy,"
        " degradation_level, feature_states, candidate_count, slate)"
        " SELECT 'r1', occurred_at - interval '2 s', 'u7', '{}', 'page=home', 'rules', 2, '{}', 1, '[]'"
        " FROM events WHERE event_id = 'shown'",
    )

    dataset = dataset_of()

    assert dataset.slate_at_s[1] == pytest.approx(later.timestamp() - 2)
    assert dataset.rows["user_activity"].counts[1, 0, -1] == pytest.approx(1.0, rel=1e-3)
    assert not dataset.rows["context_activity"].counts[1].any()  # nothing had happened at page=home


def test_slates_that_cannot_tell_good_from_bad_give_no_model(settings):
    with open_import(settings) as loader:
        for n in range(20):
            loader.add(event(f"i{n}", "impression", "p1", START + timedelta(hours=n), request_id=f"s{n}"))
            if n % 2:
                loader.add(event(f"c{n}", "click", "p1", START + timedelta(hours=n), request_id=f"s{n}"))
        loader.finish(False)
    build_projector(settings)[0].run()

    with pytest.raises(NothingToTrainOn, match="collect more events"):
        train_model(settings, datetime.now(UTC), seed=1)

    assert ModelStore(settings.model_dir, settings.half_lives_s).versions() == []


def test_impressions_without_a_request_id_form_a_slate_per_user_and_hour(settings, dataset_of):
    hour = START.replace(minute=10, second=0, microsecond=0)
    with open_import(settings) as loader:
        loader.add(event("a", "impression", "p1", hour))
        loader.add(event("b", "impression", "p2", hour + timedelta(minutes=20)))
        loader.add(event("c", "click", "p2", hour + timedelta(minutes=21)))
        loader.add(event("d", "impression", "p1", hour + timedelta(hours=1)))
        loader.finish(False)

    dataset = dataset_of()

    assert dataset.slate_sizes.tolist() == [2, 1]
    assert dataset.relevance.tolist() == [0, 1, 0]


def test_without_events_there_is_nothing_to_train_on(settings):
    with pytest.raises(NothingToTrainOn, match="no impressions"):
        train_model(settings, datetime.now(UTC), seed=1)


def test_models_are_promoted_recorded_and_rolled_back(settings):
    import_world(settings, 120)
    build_projector(settings)[0].run()
    now = datetime.now(UTC)
    first = train_model(settings, now, seed=3).version
    second = train_model(settings, now + timedelta(seconds=1), seed=4).version
    promotions = open_promotions(settings)

    assert promotions.promote(first) == first
    assert promotions.promote("latest") == second
    assert promotions.roll_back() == first
    with pytest.raises(ModelRefused):
        promotions.promote("20000101T000000")
    assert ModelStore(settings.model_dir, settings.half_lives_s).active().version == first
