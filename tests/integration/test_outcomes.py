"""What came of slates, by what ranked them: each event once, whoever folds it."""

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from app.adapters.catalog_store import PropositionStore
from app.adapters.database import batch_database
from app.adapters.decision_log import PostgresDecisionLog
from app.adapters.feature_tables import FeatureTables
from app.adapters.outcome_tables import OutcomeTables
from app.domain.types import DegradationLevel, Slate, Strategy
from app.events.metrics import OutcomeMetrics
from app.events.outcomes import Outcomes
from app.events.project import Projector
from app.features.slots import ALL_SLOTS
from tests.builders import event, proposition, query, request
from tests.projection import COVISITS, FakeOnlineStore, log_events


@pytest.fixture
def database(settings):
    return batch_database(settings)


class Process:
    """A projector with some of the slots, and what it has counted."""

    def __init__(self, settings, slots=ALL_SLOTS) -> None:
        self.registry = CollectorRegistry()
        tables = OutcomeTables(batch_database(settings))
        self.outcomes = Outcomes(tables, OutcomeMetrics(self.registry), ripe_after=timedelta(0))
        self.slots = slots
        self.projector = Projector(
            FeatureTables(batch_database(settings)),
            FakeOnlineStore(),
            settings.half_lives_s,
            COVISITS,
            1_000,
            on_folded=self.outcomes.folded,
        )

    def fold(self) -> None:
        while self.projector.step(self.slots)[1]:
            pass
        self.outcomes.refresh()

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"propositions_{name}", labels)

    def counted(self, name: str) -> dict[tuple, float]:
        """What is not 0, by the values of its labels."""
        return {
            tuple(sample.labels.values()): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == f"propositions_{name}_total" and sample.value
        }


def decide(
    database, request_id: str, strategy: Strategy, version: str | None, at: datetime | None = None
) -> None:
    slate = Slate(request_id, at or datetime.now(UTC), (), strategy, version, DegradationLevel.FULL, {}, 0)
    PostgresDecisionLog(database).append([(request(), slate)])


def now() -> datetime:
    return datetime.now(UTC)


def test_events_are_counted_by_what_ranked_their_slate_and_by_category(settings, database):
    add_propositions(settings, p1="sport", p2=None)
    decide(database, "r1", Strategy.MODEL, "v1")
    decide(database, "r2", Strategy.RULES, None)
    decide(database, "long-ago", Strategy.MODEL, "v0", now() - timedelta(days=9))
    log_events(
        database,
        *(event(f"i{n}", "impression", "p1", now(), request_id="r1") for n in range(3)),
        event("c1", "click", "p1", now(), request_id="r1"),
        event("i4", "impression", "p2", now(), request_id="r2"),
        event("i5", "impression", "p2", now(), request_id="unknown"),
        event("c2", "conversion", "p2", now()),
        event("c3", "click", "p2", now(), request_id="long-ago"),
    )
    process = Process(settings)

    process.fold()

    assert process.counted("outcomes") == {
        ("impression", "model", "v1"): 3,
        ("click", "model", "v1"): 1,
        ("impression", "rules", "none"): 1,
        ("impression", "none", "none"): 1,
        ("conversion", "none", "none"): 1,
        ("click", "none", "none"): 1,
    }
    assert process.counted("category_outcomes") == {
        ("impression", "sport"): 3,
        ("click", "sport"): 1,
        ("impression", "none"): 2,
        ("conversion", "none"): 1,
        ("click", "none"): 1,
    }


def test_over_all_projectors_every_event_is_counted_once(settings, database):
    processes = [Process(settings, {0, 1, 8}), Process(settings, {2, 3, 4}), Process(settings, {5, 6, 7})]
    for n in range(5):
        log_events(database, event(f"e{n}", "click", f"p{n}", now()))
        for process in processes[n % 3 :]:
            process.fold()

    processes[0].slots, processes[1].slots = {0, 1}, {2, 3, 4, 8}
    log_events(database, event("e5", "click", "p1", now()))
    for process in processes:
        process.fold()

    counted = [process.counted("outcomes").get(("click", "none", "none"), 0) for process in processes]
    assert sum(counted) == 6 and counted[0] > 0 and counted[1] > 0


def test_of_many_categories_the_largest_are_told_apart(settings, database):
    few = {f"p{n}": f"c{n}" for n in range(200)}
    add_propositions(settings, **few, q1="large", q2="large")
    events = [event(f"e-{key}", "click", key, now()) for key in (*few, "q1", "q2")]
    log_events(database, *events)
    process = Process(settings)

    process.fold()

    counted = process.counted("category_outcomes")
    assert counted["click", "large"] == 2 and len(counted) == 51
    assert counted["click", "other"] == len(events) - 2 - 49


def test_how_much_of_the_catalog_was_shown_and_how_old_features_are(settings, database):
    add_propositions(settings, p1="a", p2="a", p3="a", p4="a")
    query(settings, "UPDATE propositions SET is_active = false WHERE proposition_id = 'p4'")
    log_events(database, event("e1", "impression", "p1", now()), event("e2", "impression", "p4", now()))
    process = Process(settings)
    while process.projector.step(ALL_SLOTS)[1]:
        pass

    process.outcomes.refresh()

    assert process.value("catalog_coverage_ratio") == pytest.approx(1 / 3)
    assert 0 <= process.value("feature_view_age_seconds", view="proposition_performance") < 60
    assert 0 <= process.value("feature_view_age_seconds", view="proposition_catalog") < 60
    assert process.value("feature_view_age_seconds", view="user_profile") is None


def test_the_newest_row_is_found_where_it_is_old_and_when_a_newer_one_comes(settings, database):
    tables, long_ago = OutcomeTables(database), now() - timedelta(days=3)
    insert = "INSERT INTO user_profile (user_id, event_timestamp) VALUES ('u1', %s)"
    query(settings, insert, [long_ago])
    known = tables.newest_rows({})
    assert known == {"user_profile": long_ago}
    assert tables.newest_rows(known) == known

    query(settings, insert, [long_ago + timedelta(days=1)])

    assert tables.newest_rows(known) == {"user_profile": long_ago + timedelta(days=1)}


def test_decisions_of_coming_months_are_found_as_fast(settings):
    query(settings, "SELECT ensure_month_partition('decisions', 'decided_at', now() + interval '9 months')")

    without = query(
        settings,
        """SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'decisions'::regclass AND NOT EXISTS (
               SELECT FROM pg_index JOIN pg_inherits AS of ON of.inhrelid = indexrelid
               WHERE indrelid = pg_inherits.inhrelid AND of.inhparent = 'decisions_request'::regclass
                 AND indisvalid)""",
    )
    assert without == []


def add_propositions(settings, **categories: str | None) -> None:
    PropositionStore(batch_database(settings)).upsert(
        [proposition(key, category=category) for key, category in categories.items()]
    )
