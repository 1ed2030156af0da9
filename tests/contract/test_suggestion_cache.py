"""What every store of slates does: the one in Redis, and the fake that unit tests use."""

from dataclasses import replace
from datetime import timedelta

import pytest

from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import open_wire
from app.adapters.suggestion_cache import RedisSlateStore
from app.domain.errors import StoreUnavailable
from app.domain.types import DegradationLevel, FeatureState, RankedProposition, Slate, Strategy
from tests.builders import NOON
from tests.unit.test_cache import FakeSlateStore

SLATE = Slate(
    request_id="r1",
    decided_at=NOON + timedelta(microseconds=7),
    propositions=(
        RankedProposition("p\u00fc", 1, 0.5, ("new", "trending"), b"{}"),
        RankedProposition("q", 2, -1.25, (), b"{}"),
    ),
    strategy=Strategy.MODEL,
    model_version="m1",
    degradation_level=DegradationLevel.FULL,
    feature_states={"user": FeatureState.FRESH, "context": FeatureState.DEFAULT},
    candidate_count=7,
)


@pytest.fixture(params=["redis", "fake"])
def store(request):
    if request.param == "fake":
        return FakeSlateStore()
    settings = request.getfixturevalue("settings")
    return RedisSlateStore(open_wire(connect_redis(settings.redis_address, 1_000)), timedelta(seconds=10))


def keep(store, user_id, key, epoch):
    store.keep(user_id, key, epoch, SLATE)
    store.flush()


def test_a_slate_is_stored_off_the_path_of_its_request(store):
    store.keep("u", "k", 0, SLATE)
    assert store.find("u", "k", 1.0).slate is None

    store.flush()

    assert store.find("u", "k", 1.0).slate is not None


def test_what_was_kept_is_found_whole(store):
    assert store.find("u", "k", 1.0).slate is None

    keep(store, "u", "k", 0)

    found = store.find("u", "k", 1.0)
    assert replace(found.slate, is_cached=False) == SLATE
    assert not found.is_outdated


@pytest.mark.parametrize(("user_id", "key"), [("v", "k"), (None, "k"), ("u", "l")])
def test_users_and_keys_are_kept_apart(store, user_id, key):
    keep(store, "u", "k", 0)

    assert store.find(user_id, key, 1.0).slate is None


def test_slates_of_requests_without_a_user_are_kept(store):
    keep(store, None, "k", 0)

    assert store.find(None, "k", 1.0).slate is not None


def test_forgetting_a_user_outdates_all_that_was_kept_for_them_and_nobody_else(store):
    for user_id, key in (("u", "k"), ("u", "l"), ("v", "k")):
        keep(store, user_id, key, 0)

    store.forget(["u", "w"])

    assert store.find("u", "k", 1.0).is_outdated and store.find("u", "l", 1.0).is_outdated
    assert not store.find("v", "k", 1.0).is_outdated


def test_a_slate_that_was_being_ranked_when_its_user_was_forgotten_is_outdated_when_it_is_kept(store):
    epoch = store.find("u", "k", 1.0).epoch

    store.forget(["u"])
    keep(store, "u", "k", epoch)

    assert store.find("u", "k", 1.0).is_outdated


def test_after_an_event_slates_can_be_kept_again(store):
    store.forget(["u"])

    keep(store, "u", "k", store.find("u", "k", 1.0).epoch)

    assert not store.find("u", "k", 1.0).is_outdated


def test_nothing_stays_in_redis_for_ever(settings):
    client = connect_redis(settings.redis_address, 1_000)
    store = RedisSlateStore(open_wire(client), timedelta(seconds=10))

    keep(store, "u", "k", 0)
    store.forget(["v"])

    assert {client.ttl(key) for key in client.scan_iter("propositions:suggestions:*")} <= {69, 70}


@pytest.mark.parametrize("garbage", [b"no json", b"[1]", b"[0, {}]", b"7", b'[0, {"propositions": 3}]'])
def test_garbage_in_redis_is_no_slate(settings, garbage):
    client = connect_redis(settings.redis_address, 1_000)
    store = RedisSlateStore(open_wire(client), timedelta(seconds=10))
    keep(store, "u", "k", 0)
    (key,) = client.scan_iter("propositions:suggestions:*")
    client.hset(key, "k", garbage)

    with pytest.raises(StoreUnavailable, match="something else"):
        store.find("u", "k", 1.0)


def test_a_key_of_another_kind_is_told(settings):
    client = connect_redis(settings.redis_address, 1_000)
    client.set("propositions:suggestions:u", "x")

    with pytest.raises(StoreUnavailable):
        RedisSlateStore(open_wire(client), timedelta(seconds=10)).find("u", "k", 1.0)


def test_a_redis_that_is_gone_is_told():
    client = connect_redis("redis://127.0.0.1:1/0", 100)

    with pytest.raises(StoreUnavailable):
        RedisSlateStore(open_wire(client), timedelta(seconds=10)).find("u", "k", 1.0)
