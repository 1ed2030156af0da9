"""Data sets for training: what the labels are, and that PostgreSQL and exported files give the same arrays."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from app.adapters.database import batch_database
from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.parquet_export import ParquetExport
from app.bootstrap.projector import build_projector
from app.bootstrap.stores import open_import
from app.domain.errors import ConfigurationError
from tests.builders import NOON, event, proposition, query
from training.dataset import Dataset, NothingToTrainOn
from training.dataset_folder import DatasetFolder, is_same
from training.duckdb_join import DuckDbLimits, build_dataset_from_parquet, parts_from_parquet
from training.joins import build_dataset
from training.labels import LabelOptions

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
USER, CATALOG = "user_activity", "proposition_catalog"


@pytest.fixture
def log(settings) -> Callable:
    """A function that imports what it is given, and projects it."""

    def log(*items) -> None:
        with open_import(settings) as loader:
            for item in items:
                loader.add(item)
            loader.finish(False)
        build_projector(settings)[0].run()

    return log


@pytest.fixture
def dataset_of(settings, tmp_path) -> Callable[..., Dataset]:
    """A function that builds the data set both ways and sees to it that they are the same."""

    def build(**options) -> Dataset:
        store = open_feature_store(settings)
        schema, half_life_count = load_schema(store), len(settings.half_lives_s)
        chosen = LabelOptions(**options)
        joined = build_dataset(store, schema, half_life_count, chosen, batch_database(settings))
        export(settings, tmp_path / "out")
        read = build_dataset_from_parquet(tmp_path / "out", schema, half_life_count, chosen)
        assert is_same(joined, read)
        return joined

    return build


def export(settings, folder) -> None:
    list(
        ParquetExport(batch_database(settings), folder).run(
            date(1900, 1, 1), date(2100, 1, 1), datetime.now(UTC)
        )
    )


def impression(slate: str | None, proposition_id: str, at: datetime = NOON, **fields):
    return event(
        f"i-{slate}-{proposition_id}-{at}-{fields}",
        "impression",
        proposition_id,
        at,
        request_id=slate,
        **fields,
    )


def outcome(slate: str | None, proposition_id: str, at: datetime, event_type: str = "click", **fields):
    return event(
        f"{event_type}-{slate}-{proposition_id}-{at}",
        event_type,
        proposition_id,
        at,
        request_id=slate,
        **fields,
    )


def decide(settings, slate: str, at: datetime, user_id: str | None, ranked: str = "[]") -> None:
    query(
        settings,
        "INSERT INTO decisions (request_id, decided_at, user_id, context, context_key, strategy, degradation_level,"
        " feature_states, candidate_count, slate) VALUES (%s, %s, %s, '{}', 'page=home', 'rules', 2, '{}', 1, %s)",
        (slate, at, user_id, ranked),
    )


def labels(dataset: Dataset) -> dict[tuple[str, str], int]:
    """Relevance by slate and proposition."""
    keys = zip(
        dataset.slates.ids[dataset.slate_of_row].tolist(), dataset.proposition_ids.tolist(), strict=True
    )
    return dict(zip(keys, dataset.relevance.tolist(), strict=True))


def test_both_ways_give_the_same_arrays_whatever_the_history_looks_like(settings, log, dataset_of):
    items = [
        proposition(f"p{n}", category=f"c{n % 2}", tags=("x", f"t{n}"), attributes={"length": n, "by": "A"})
        for n in range(4)
    ]
    items += [
        impression("old", "p1", NOON - 400 * DAY, user_id="u9"),
        impression("expired", "p1", NOON, user_id="u9"),
    ]
    # Slates at equal moments, of known and unknown users, repeated and in no context of their own.
    for n in range(40):
        at, user = NOON + (n // 2) * HOUR, ("u1", "u2", None)[n % 3]
        context = {"page": f"q{n % 3}"} if n % 4 else {}
        for place in range(1, 4):
            shown = f"p{(n + place) % 5}"  # p4 is in no catalog
            items.append(impression(f"r{n}", shown, at, user_id=user, context=context, position=place))
            items.append(impression(f"r{n}", shown, at + timedelta(seconds=9), user_id=user, context=context))
        if n % 2:
            for event_type in ("click", "conversion" if n % 3 else "dismiss"):
                items.append(
                    outcome(f"r{n}", f"p{(n + 1) % 5}", at + timedelta(minutes=n), event_type, user_id=user)
                )
    log(*items)
    query(settings, "UPDATE events SET received_at = received_at + interval '5 hours' WHERE seq %% 7 = 0", ())
    build_projector(settings)[0].rebuild()
    write_again(settings)
    query(
        settings,
        f"INSERT INTO {CATALOG} (proposition_id, category, traits, number_names, number_values, event_timestamp)"
        " SELECT 'p1', 'c' || n, ARRAY['t' || n], ARRAY['length', 'n' || n], ARRAY[10 * n, 9], %s + n * interval '7 h'"
        " FROM generate_series(1, 3) AS n",
        (NOON,),
    )

    dataset = dataset_of()

    assert dataset.slate_count == 42
    assert (dataset.slates.user_ids == "").any() and (dataset.relevance == 2).any()
    assert np.isnan(dataset.rows[USER].as_of_s[dataset.slates.ids == "expired"]).all()
    assert (dataset.rows[USER].counts[dataset.slates.user_ids == "u1"][-1] == 7.0).all()
    lengths = dataset.rows[CATALOG].values["numbers.length"]
    assert set(lengths[dataset.proposition_ids == "p1"].tolist()) == {
        1.0,
        10.0,
        20.0,
    }  # the third version is newer than all slates
    assert np.isnan(lengths[dataset.proposition_ids == "p4"]).all()


def write_again(settings) -> None:
    """Second rows of the same moments, in which all counts are 7; the last ones count."""
    ((name,),) = query(
        settings, f"SELECT conname FROM pg_constraint WHERE conrelid = '{USER}'::regclass AND contype = 'p'"
    )
    query(settings, f"ALTER TABLE {USER} DROP CONSTRAINT {name}")
    sevens = "array_fill(7.0::float8, ARRAY[4])"
    for later in ("1 s", "-1 s"):
        number = sevens if later == "1 s" else "clicks"
        query(
            settings,
            f"INSERT INTO {USER} SELECT user_id, {number}, {number}, {number}, {number}, as_of_s, event_timestamp,"
            f" created_timestamp + interval '{later}' FROM {USER} WHERE user_id = 'u1'",
        )


def test_a_slate_is_the_same_whether_it_is_read_as_a_whole_or_in_parts(settings, log, dataset_of, tmp_path):
    log(
        *(
            impression(f"r{n:02}", f"p{place}", NOON + n * HOUR)
            for n in range(12)
            for place in range(n % 3 + 1)
        )
    )
    whole = dataset_of()
    store = open_feature_store(settings)
    schema, limits = load_schema(store), DuckDbLimits(memory_mb=256, threads=1, part_impressions=5)

    parts = parts_from_parquet(tmp_path / "out", schema, len(settings.half_lives_s), LabelOptions(), limits)
    folder = DatasetFolder.write(tmp_path / "set", parts, schema, LabelOptions())

    sizes = [len(part) for part in folder.parts()]
    assert sum(sizes) == len(whole) == 24 and max(sizes) <= 5
    first = 0
    for part in folder.parts():
        assert is_same(part, whole.slice(first, first + part.slate_count))
        first += part.slate_count


def test_what_is_shown_or_clicked_twice_counts_once(log, dataset_of):
    log(
        impression("r1", "p1", position=2),
        impression("r1", "p1", NOON + HOUR, position=2),
        impression("r1", "p2", position=1),
        outcome("r1", "p1", NOON + HOUR),
        outcome("r1", "p1", NOON + 2 * HOUR),
    )

    dataset = dataset_of()

    assert labels(dataset) == {("r1", "p1"): 1, ("r1", "p2"): 0}
    assert dataset.positions.tolist() == [2.0, 1.0]


def test_outcomes_before_the_impression_or_after_the_window_do_not_count(log, dataset_of):
    log(
        *(impression("r1", f"p{n}") for n in range(4)),
        outcome("r1", "p0", NOON - timedelta(seconds=1)),
        outcome("r1", "p1", NOON),
        outcome("r1", "p2", NOON + HOUR, "conversion"),
        outcome("r1", "p3", NOON + HOUR + timedelta(microseconds=1)),
    )

    dataset = dataset_of(attribution_window_s=3_600.0)

    assert dataset.relevance.tolist() == [0, 1, 2, 0]


def test_an_outcome_without_a_slate_belongs_to_what_its_user_saw_last(log, dataset_of):
    log(
        impression("r1", "p1"),
        impression("r2", "p1", NOON + HOUR),
        impression("r3", "p1", NOON + 2 * HOUR),
        impression("r4", "p1", NOON + HOUR, user_id="u2"),
        outcome(None, "p1", NOON + HOUR + timedelta(minutes=1), "conversion"),
    )

    assert labels(dataset_of()) == {("r1", "p1"): 0, ("r2", "p1"): 2, ("r3", "p1"): 0, ("r4", "p1"): 0}


def test_engagement_ends_with_the_session_that_the_slate_began(settings, log, dataset_of):
    decide(settings, "r1", NOON - timedelta(minutes=5), "u1")
    log(
        impression("r1", "p1"),
        impression("r1", "p2"),
        outcome("r1", "p1", NOON + timedelta(minutes=5), "conversion"),
        outcome("r1", "p2", NOON + timedelta(minutes=6)),
    )

    assert dataset_of(label="engagement", session_s=600.0).relevance.tolist() == [1, 0]


def test_retention_is_a_click_of_a_user_who_comes_back_in_time(log, dataset_of):
    log(
        *(impression("r1", p, user_id="back") for p in ("p1", "p2")),
        outcome("r1", "p1", NOON, user_id="back"),
        event("again", "impression", "p9", NOON + 3 * DAY, user_id="back", request_id="r9"),
        impression("r2", "p1", user_id="soon"),
        outcome("r2", "p1", NOON + 23 * HOUR, user_id="soon"),
        impression("r3", "p1", user_id="late"),
        outcome("r3", "p1", NOON, user_id="late"),
        event("later", "dismiss", "p9", NOON + 5 * DAY, user_id="late"),
    )

    dataset = dataset_of(label="retention", return_days=4.0)

    # What is not known yet, because the log ends on the fifth day, is left out.
    assert labels(dataset) == {("r1", "p1"): 1, ("r1", "p2"): 0, ("r2", "p1"): 0, ("r3", "p1"): 0}
    with pytest.raises(NothingToTrainOn, match="not known yet"):
        dataset_of(label="retention", return_days=6.0)


def test_positions_are_those_of_the_events_else_those_of_the_decision(settings, log, dataset_of):
    ranked = json.dumps(
        [{"proposition_id": p, "rank": rank} for p, rank in (("p1", 3), ("p2", 4), ("p7", 5))]
    )
    decide(settings, "r1", NOON, "u1", ranked)
    decide(settings, "never shown", NOON, "u1", ranked)
    log(impression("r1", "p1", position=1), impression("r1", "p2"), impression("r1", "p3"))

    dataset = dataset_of()

    assert dataset.slates.ids.tolist() == ["r1"]
    np.testing.assert_array_equal(dataset.positions, [1.0, 4.0, np.nan])


def test_where_only_outcomes_are_known_negatives_are_drawn_on_request_and_marked(settings, log, dataset_of):
    log(
        *(proposition(f"p{n}", category="c") for n in range(8)),
        impression("r1", "p1"),
        outcome("r2", "p2", NOON),
        outcome("r3", "p3", NOON + HOUR),
    )
    query(settings, f"UPDATE {CATALOG} SET event_timestamp = event_timestamp - interval '10 years'")

    plain = dataset_of()
    sampled = dataset_of(sampled_negatives=3, seed=5)

    assert plain.slates.ids.tolist() == ["r1"] and not plain.slates.is_sampled.any()
    assert dict(zip(sampled.slates.ids, sampled.slates.is_sampled, strict=True)) == {
        "r1": False,
        "r2": True,
        "r3": True,
    }
    found = labels(sampled)
    assert found["r2", "p2"] == found["r3", "p3"] == 1
    assert 2 <= sum(slate == "r2" for slate, _ in found) <= 4
    assert is_same(sampled, dataset_of(sampled_negatives=3, seed=5))
    assert found.keys() != labels(dataset_of(sampled_negatives=3, seed=6)).keys()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"label": "joy"}, "click, engagement, retention"),
        ({"attribution_window_s": 0.0}, "attribution_window_s"),
        ({"return_days": 1.0}, "return_days"),
        ({"sampled_negatives": -1}, "sampled_negatives"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, reason):
    with pytest.raises(ConfigurationError, match=reason):
        LabelOptions(**options)
