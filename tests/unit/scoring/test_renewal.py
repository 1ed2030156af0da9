"""When candidates' parts are computed anew, and how that is spread over time."""

from dataclasses import replace

import numpy as np
import orjson
import pytest

from app.features.forest import Forest
from app.features.snapshot import SnapshotChanges
from app.serving import current_scorer, scoring
from app.serving.current_scorer import QUIET_FACTOR, RENEWAL_SHARE, CurrentScorer
from app.serving.online import OnlineFeatures
from app.serving.scoring import Scorer
from tests.builders import NOON, proposition
from tests.unit.scoring.world import HERE, NOW_S, READER, Trees
from tests.unit.test_ranking import counters

MAX_AGE_S = 5.0
QUIET_S = QUIET_FACTOR * MAX_AGE_S


@pytest.fixture
def model(spec, booster):
    return Trees(spec, booster, Forest.from_xgboost(orjson.loads(booster.save_raw("json"))))


@pytest.fixture
def counted(taken):
    """The same propositions after an event."""
    return taken.with_changes(SnapshotChanges(performance={"p1": counters(1_000, 900)}))


class Naps:
    """A clock on which only sleeping takes time. `on_nap` is called after each."""

    def __init__(self):
        self.now_s = 100.0
        self.taken_s: list[float] = []
        self.on_nap = lambda: None

    def sleep(self, seconds):
        self.now_s += seconds
        self.taken_s.append(seconds)
        self.on_nap()

    def current_scorer(self, max_age_s=MAX_AGE_S):
        return CurrentScorer(max_age_s, 1 << 20, self.sleep, lambda: self.now_s)


def ask(current, model, taken, positions=(1, 2), contexts=(HERE, "elsewhere")):
    scorer = current.get(model, taken, NOW_S)
    for context in contexts:
        online = OnlineFeatures(READER.read({}, 2, NOON), ())
        scorer.score(context, np.array(positions), taken.catalog, online, NOW_S)
    return scorer


def test_what_was_prepared_in_a_quiet_time_is_not_lost_with_the_first_event(model, taken, counted):
    current = CurrentScorer(MAX_AGE_S, 1 << 20)
    scorer = ask(current, model, taken)
    quiet_until_s = NOW_S + 2 * MAX_AGE_S
    assert current.get(model, taken, quiet_until_s) is scorer

    assert current.get(model, counted, quiet_until_s + 1.0) is scorer
    current.renew(model, counted, quiet_until_s + 1.5)

    fresh = current.get(model, counted, quiet_until_s + 2.0)
    assert fresh is not scorer and fresh.snapshot is counted
    assert not len(fresh._contexts[HERE].missing(np.array([1, 2])))


def test_what_lacks_news_for_too_long_serves_no_more(model, taken, counted):
    current = CurrentScorer(MAX_AGE_S, 1 << 20)
    scorer = ask(current, model, taken)
    current.get(model, taken, NOW_S + 10.0)

    assert current.get(model, counted, NOW_S + 10.0 + MAX_AGE_S) is scorer
    assert current.get(model, counted, NOW_S + 10.1 + MAX_AGE_S) is not scorer


def test_a_renewal_sees_that_there_was_no_news_where_no_request_does(model, taken, counted):
    current = CurrentScorer(MAX_AGE_S, 1 << 20, sleep=lambda _: None)
    scorer = ask(current, model, taken)
    current.renew(model, taken, NOW_S + 10.0)

    assert current.get(model, counted, NOW_S + 10.0 + MAX_AGE_S) is scorer


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Each candidate is a step, and a renewal would rest for ever after one, if it had the time."""
    monkeypatch.setattr(scoring, "PREPARED_AT_ONCE", 1)
    monkeypatch.setattr(current_scorer, "RENEWAL_DUTY", 1e-12)
    monkeypatch.setattr(current_scorer, "PREPARING_DUTY", 1e-12)


@pytest.mark.usefixtures("one_at_a_time")
def test_news_from_the_end_of_a_long_renewal_do_not_make_it_useless(model, taken, counted):
    naps = Naps()
    current = naps.current_scorer()
    old, began_s = ask(current, model, taken, positions=range(7)), naps.now_s
    due_s, event_s = NOW_S + QUIET_S / 2, 0.8 * RENEWAL_SHARE * QUIET_S

    def request_comes():
        after_s = naps.now_s - began_s
        assert current.get(model, counted if after_s > event_s else taken, due_s + after_s) is old

    naps.on_nap = request_comes

    current.renew(model, taken, due_s)

    adopted_s = due_s + naps.now_s - began_s
    fresh = current.get(model, counted, adopted_s)
    assert fresh is not old and not len(fresh._contexts[HERE].missing(np.arange(7)))
    assert current.get(model, counted, due_s + event_s - 1.0 + MAX_AGE_S) is fresh
    assert current.get(model, counted, due_s + event_s + 0.1 + MAX_AGE_S) is not fresh


def test_what_a_renewal_began_with_is_as_old_as_its_beginning(model, taken, counted):
    current = CurrentScorer(MAX_AGE_S, 1 << 20)
    ask(current, model, taken)
    later = counted.with_changes(SnapshotChanges(performance={"p1": counters(1_001, 900)}))
    current.renew(model, counted, NOW_S + MAX_AGE_S)
    fresh = current.get(model, later, NOW_S + MAX_AGE_S)

    assert fresh.snapshot is counted
    assert current.get(model, later, NOW_S + 2 * MAX_AGE_S) is fresh
    assert current.get(model, later, NOW_S + 2 * MAX_AGE_S + 0.1) is not fresh


def test_another_model_that_was_prepared_before_an_event_lacks_it_for_no_longer(
    spec, model, taken, counted, booster
):
    promoted = Trees(spec, booster, None, version="m2")
    current = CurrentScorer(MAX_AGE_S, 1 << 20)
    ask(current, model, taken)
    prepared = current.prepared(promoted, taken, NOW_S + 1.0)
    current.renew(model, counted, NOW_S + 3.0)  # under way at the same time, and done first
    current.get(model, counted, NOW_S + 5.0)

    current.adopt(prepared)

    assert current.get(promoted, counted, NOW_S + 1.0 + MAX_AGE_S) is prepared
    assert current.get(promoted, counted, NOW_S + 1.1 + MAX_AGE_S) is not prepared


def test_when_the_clock_is_set_back_news_are_not_waited_for_longer(model, taken, counted):
    current = CurrentScorer(MAX_AGE_S, 1 << 20)
    scorer = ask(current, model, taken)
    assert current.get(model, taken, NOW_S + 25.0) is scorer

    assert current.get(model, counted, NOW_S + 2.0) is not scorer


@pytest.mark.usefixtures("one_at_a_time")
def test_a_scorer_that_requests_had_to_make_outlives_a_renewal_that_was_under_way(model, taken):
    naps, made = Naps(), []
    current = naps.current_scorer()
    ask(current, model, taken)
    grown = taken.with_changes(SnapshotChanges(propositions=[proposition("new")]))
    naps.on_nap = lambda: made.append(current.get(model, grown, NOW_S + QUIET_S))

    current.renew(model, taken, NOW_S + QUIET_S)

    assert made and current.get(model, grown, NOW_S + QUIET_S) is made[0]


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("age_s", [1.0, QUIET_S / 2 - 2.0])
def test_preparing_leaves_its_time_to_the_renewal(model, taken, age_s):
    naps = Naps()
    current = naps.current_scorer()
    ask(current, model, taken, positions=range(15))

    current.renew(model, taken, NOW_S + age_s)

    assert sum(naps.taken_s) == pytest.approx(min(RENEWAL_SHARE * QUIET_S, QUIET_S / 2 - age_s))


def test_preparing_ends_with_the_context_under_way_when_there_is_news(model, taken, counted):
    naps = Naps()
    current = naps.current_scorer()
    scorer = ask(current, model, taken, positions=range(15))
    naps.on_nap = lambda: current.get(model, counted, NOW_S + 2.0)

    current.renew(model, taken, NOW_S + 1.0)

    missing = {key: len(parts.missing(np.arange(30))) for key, parts in scorer._contexts.items()}
    assert sorted(missing.values()) == [0, 15]


def test_where_events_never_end_there_is_time_for_preparing(model, taken, counted):
    current = CurrentScorer(MAX_AGE_S, 1 << 20)
    scorer = ask(current, model, taken, positions=range(15))

    current.renew(model, counted, NOW_S + 1.0)

    assert not any(len(parts.missing(np.arange(30))) for parts in scorer._contexts.values())


def test_a_promotion_during_a_renewal_keeps_its_scorer(spec, model, taken, booster):
    promoted = Trees(spec, booster, None, version="m2")
    ready, naps = Scorer(promoted, taken, NOW_S + QUIET_S, 1), Naps()
    current = naps.current_scorer()
    naps.on_nap = lambda: current.adopt(ready)
    ask(current, model, taken)

    current.renew(model, taken, NOW_S + QUIET_S)

    assert naps.taken_s and current.get(promoted, taken, NOW_S + QUIET_S) is ready


@pytest.mark.parametrize(("max_age_s", "may_sleep"), [(MAX_AGE_S, True), (0.0, False)])
def test_a_renewal_leaves_the_processor_to_requests_while_there_is_time(model, taken, max_age_s, may_sleep):
    naps = Naps()
    current = naps.current_scorer(max_age_s)
    ask(current, model, taken)

    current.renew(model, taken, NOW_S + QUIET_S)

    assert len(naps.taken_s) == (2 if may_sleep else 0)  # one after each context
    assert all(nap_s > 0 for nap_s in naps.taken_s)


@pytest.mark.usefixtures("one_at_a_time")
def test_a_renewal_is_spread_evenly_and_ends_in_time_however_much_is_asked_for_meanwhile(model, taken):
    naps = Naps()
    current = naps.current_scorer()
    ask(current, model, taken, positions=range(7))
    naps.on_nap = lambda: ask(current, model, taken, positions=range(20))

    current.renew(model, taken, NOW_S + QUIET_S)

    assert naps.taken_s == pytest.approx([RENEWAL_SHARE * QUIET_S / 13] * 13)


@pytest.mark.usefixtures("one_at_a_time")
def test_a_renewal_hurries_when_there_is_news(model, taken, counted):
    naps = Naps()
    naps.on_nap = lambda: current.get(model, counted, NOW_S + QUIET_S - 1)  # as a request does
    current = naps.current_scorer()
    ask(current, model, taken, positions=range(7))

    current.renew(model, taken, NOW_S + QUIET_S - 1)

    first_s, *others_s = naps.taken_s
    assert first_s == pytest.approx(RENEWAL_SHARE * QUIET_S / 13)
    assert sum(others_s) == pytest.approx(RENEWAL_SHARE * MAX_AGE_S)


@pytest.mark.usefixtures("one_at_a_time")
def test_another_model_is_ready_in_the_time_of_a_renewal(model, taken):
    naps = Naps()
    current = naps.current_scorer()
    ask(current, model, taken)

    current.prepared(model, taken, NOW_S)

    assert sum(naps.taken_s) == pytest.approx(RENEWAL_SHARE * QUIET_S)


def test_nothing_is_prepared_from_positions_of_another_database(model, taken):
    current = CurrentScorer(MAX_AGE_S, 1 << 20)
    ask(current, model, taken)

    foreign = replace(taken, version=replace(taken.version, generation="another"))

    assert not current.prepared(model, foreign, NOW_S)._contexts


def test_a_step_is_followed_by_a_rest_in_proportion(model, taken, monkeypatch):
    worked_s = iter(range(100))
    monkeypatch.setattr(scoring.time, "thread_time", lambda: next(worked_s))
    naps = Naps()
    current = naps.current_scorer(max_age_s=1e6)
    ask(current, model, taken)

    current.renew(model, taken, NOW_S + 6e6)
    current.prepared(model, taken, NOW_S)
    ask(current, model, taken, positions=range(15), contexts=(HERE,))
    current.renew(model, taken, NOW_S)

    rests_s = [1 / duty - 1 for duty in (current_scorer.RENEWAL_DUTY, current_scorer.PREPARING_DUTY)]
    assert naps.taken_s == pytest.approx([rests_s[0]] * 2 + [rests_s[1]] * 3)
