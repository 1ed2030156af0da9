"""A Redis that holds garbage under our keys: projectors do not stumble, and what they write anew is as it was."""

import random

import pytest
import redis

from app.bootstrap.projector import build_projector
from tests.projection import import_events


@pytest.fixture
def client(settings):
    with redis.Redis.from_url(settings.redis_address) as client:
        yield client


KEPT_SLATES = b"propositions:suggestions:"


def content(client) -> dict[bytes, dict[bytes, bytes]]:
    """All but kept slates, which are not written again but forgotten."""
    return {key: client.hgetall(key) for key in client.scan_iter() if not key.startswith(KEPT_SLATES)}


def of_another_type(client, key: bytes, chance: random.Random) -> None:
    client.set(key, chance.randbytes(40))


def of_random_fields(client, key: bytes, chance: random.Random) -> None:
    client.hset(key, mapping={name: chance.randbytes(chance.randrange(40)) for name in client.hkeys(key)})


def of_ends_of_numbers(client, key: bytes, chance: random.Random) -> None:
    """What begins like a timestamp and breaks off."""
    client.hset(key, mapping=dict.fromkeys(client.hkeys(key), b"\x08\xff"))


@pytest.mark.parametrize("spoil", [of_another_type, of_random_fields, of_ends_of_numbers])
def test_garbage_under_all_our_keys_is_written_over(settings, client, spoil):
    import_events(settings, 60)
    build_projector(settings)[0].run()
    before, chance = content(client), random.Random(7)
    assert before

    for key in list(client.scan_iter()):
        spoil(client, key, chance)
    build_projector(settings)[0].run()

    assert content(client) == before
    assert not list(client.scan_iter(KEPT_SLATES + b"*"))


def test_keys_of_others_stay_as_they_are(settings, client):
    client.set("another-project:1", b"theirs")
    client.hset("propositions-of-others", "field", b"theirs")
    import_events(settings, 10)

    build_projector(settings)[0].run()

    assert client.get("another-project:1") == client.hget("propositions-of-others", "field") == b"theirs"
