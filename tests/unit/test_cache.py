"""When a slate that was ranked before may answer again."""

import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from app.domain.errors import ModelRefused, StoreUnavailable
from app.domain.ports import Kept
from app.domain.types import Filters
from app.features.snapshot import SnapshotVersion
from app.serving.cache import CachedRanker, CacheOutcome, slate_key
from tests.builders import NOON, proposition, request
from tests.unit.test_ranking import FakeModel, plenty, rankers, shown, snapshot

TTL = timedelta(seconds=10)
SECOND = timedelta(seconds=1)


class FakeSlateStore:
    """In memory; the same contract as the one in Redis."""

    def __init__(self):
        self.slates, self.epochs, self.waiting, self.is_down = {}, {}, [], False

    def find(self, user_id, key, timeout_s):
        self._answer()
        epoch = self.epochs.get(user_id, 0)
        ranked_epoch, slate = self.slates.get((user_id, key), (epoch, None))
        return Kept(epoch, slate, is_outdated=ranked_epoch != epoch)

    def keep(self, user_id, key, epoch, slate):
        # As there: what is shown of propositions comes from the catalog.
        bare = tuple(ranked._replace(details=b"{}") for ranked in slate.propositions)
        self.waiting.append(((user_id, key), (epoch, replace(slate, propositions=bare))))

    def flush(self):
        waiting, self.waiting = self.waiting, []
        self._answer()
        self.slates.update(waiting)

    def forget(self, user_ids):
        self._answer()
        for user_id in user_ids:
            self.epochs[user_id] = self.epochs.get(user_id, 0) + 1

    def _answer(self):
        if self.is_down:
            raise StoreUnavailable("down")


class CountingRanker:
    """Ranks as the model does, and counts how often."""

    def __init__(self, ranker):
        self._ranker = ranker
        self.count = 0
        self.before = lambda: None

    def rank(self, *arguments):
        self.count += 1
        self.before()
        return self._ranker.rank(*arguments)


class World:
    def __init__(self, spec):
        self.model = FakeModel(spec)
        self.snapshot = snapshot(proposition("a"), proposition("b"))
        self.store = FakeSlateStore()
        self.outcomes = []
        self.ranker = CountingRanker(rankers(self.model, self.snapshot))
        self.cached = CachedRanker(
            self.ranker,
            self.store,
            lambda: self.model,
            lambda: self.snapshot,
            TTL,
            self.outcomes.append,
        )

    def ask(self, now=NOON, **fields):
        slate = self.cached.rank(request(**fields), f"r{self.ranker.count}-{now}", now, plenty())
        self.cached.flush()
        return slate


@pytest.fixture
def world(spec):
    return World(spec)


def test_an_equal_request_is_answered_from_the_cache_and_says_so(world):
    first = world.ask()

    second = world.ask(NOON + SECOND)

    assert world.ranker.count == 1
    assert (first.is_cached, second.is_cached) == (False, True)
    assert second.request_id != first.request_id
    assert second.decided_at == first.decided_at
    assert second.propositions == first.propositions
    assert world.outcomes == [CacheOutcome.MISS, CacheOutcome.HIT]


@pytest.mark.parametrize(
    "other",
    [
        {"user_id": "u2"},
        {"user_id": None},
        {"limit": 1},
        {"context": {"page": "cart"}},
        {"excluded_ids": frozenset({"a"})},
        {"candidate_ids": frozenset({"a"})},
        {"filters": Filters(min_value=0.0)},
        {"filters": Filters(tags=frozenset({"t"}))},
        {"filters": Filters(categories=frozenset({"t"}))},
    ],
)
def test_another_request_is_not(world, other):
    world.ask()

    world.ask(**other)

    assert world.ranker.count == 2


def test_an_event_of_the_user_outdates_the_slate_at_once(world):
    world.ask()

    world.store.forget(["u1"])

    assert not world.ask().is_cached
    assert world.outcomes[-1] is CacheOutcome.STALE
    assert world.ask().is_cached


def test_an_event_while_a_slate_is_ranked_outdates_that_slate(world):
    world.ranker.before = lambda: world.store.forget(["u1"])
    world.ask()
    world.ranker.before = lambda: None

    assert not world.ask().is_cached


def test_events_of_others_leave_it_alone(world):
    world.ask()

    world.store.forget(["u2"])

    assert world.ask().is_cached


def test_another_model_outdates_all_slates(world):
    world.ask()

    world.model.version = "m2"

    assert not world.ask().is_cached


def test_a_changed_catalog_outdates_all_slates_but_changed_counters_do_not(world):
    world.ask()

    world.snapshot = replace(world.snapshot, version=SnapshotVersion(None, None, NOON))
    assert world.ask().is_cached
    world.snapshot = replace(world.snapshot, version=SnapshotVersion(None, NOON, NOON))
    assert not world.ask().is_cached


@pytest.mark.parametrize(("age", "is_cached"), [(TTL - SECOND, True), (TTL, False), (-SECOND, False)])
def test_a_slate_counts_for_its_time_only(world, age, is_cached):
    world.ask()

    assert world.ask(NOON + age).is_cached is is_cached


def test_a_proposition_whose_window_closed_is_not_shown_from_the_cache(world, spec):
    closing = snapshot(proposition("a"), proposition("b", ends_at=NOON + SECOND))
    world.snapshot = closing
    world.ranker = world.cached._ranker = CountingRanker(rankers(world.model, closing))
    assert set(shown(world.ask())) == {"a", "b"}

    later = world.ask(NOON + SECOND)

    assert not later.is_cached and shown(later) == ["a"]


def test_without_the_store_everything_is_ranked(world):
    world.store.is_down = True

    assert [world.ask().is_cached for _ in range(2)] == [False, False]
    assert world.outcomes == [CacheOutcome.DOWN] * 2


def test_a_store_that_dies_while_a_slate_is_ranked_costs_nothing(world):
    world.ranker.before = lambda: setattr(world.store, "is_down", True)

    assert not world.ask().is_cached


def test_without_a_model_nothing_is_kept(world):
    world.model = None

    world.ask()

    assert world.store.slates == {} and world.outcomes == []


def test_equal_requests_at_the_same_time_are_ranked_once(world):
    is_ranking, may_go_on, answers = threading.Event(), threading.Event(), []

    def hold():
        is_ranking.set()
        assert may_go_on.wait(10)

    world.ranker.before = hold
    askers = [threading.Thread(target=lambda: answers.append(world.ask())) for _ in range(5)]
    for asker in askers:
        asker.start()
    assert is_ranking.wait(10)
    # The others have looked into the store before the first slate is in it.
    while len(world.outcomes) < 5:
        pass
    may_go_on.set()
    for asker in askers:
        asker.join()

    assert world.ranker.count == 1
    assert sorted(answer.is_cached for answer in answers) == [False, True, True, True, True]
    assert world.outcomes.count(CacheOutcome.COLLAPSED) == 4


def test_those_who_wait_for_a_ranking_that_fails_rank_themselves(world):
    def fail():
        raise ModelRefused("no")

    world.ranker.before = fail
    with pytest.raises(ModelRefused):
        world.ask()
    world.ranker.before = lambda: None

    assert not world.ask().is_cached


def test_keys_differ_by_generation_so_another_database_shares_nothing(world):
    other = replace(world.snapshot, version=SnapshotVersion("g2", None, None))

    assert slate_key(request(), "m", world.snapshot) != slate_key(request(), "m", other)
