"""What goes wrong in the game day of serving. Each fault lasts as long as its block."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import redis

from app.gameday.judging import Moments
from app.gameday.proxy import Fault, Proxy
from app.gameday.serving_world import MANY_CONNECTIONS, World
from app.gameday.stack import Server

FaultBlock = Callable[[World, Moments], AbstractContextManager]

DELAY_S = 2.0
FOREIGN_KEYS = 1_000
GARBAGE_BYTES = 40
# How far the projector says that Redis got. It stays a hash, so that its garbage is read.
PROJECTED = b"propositions:projected-slots"
OVERLOAD = 3.0
# Hundreds of clients that connect at once are another matter than what they ask for then.
CONNECTING_S = 1.0


def killed(*servers: Callable[[World], Server]) -> FaultBlock:
    """With SIGKILL; they start again in the end."""

    @contextmanager
    def block(world: World, _: Moments) -> Iterator[None]:
        for server in servers:
            server(world).kill()
        yield
        for server in servers:
            server(world).start()

    return block


def frozen(server: Callable[[World], Server]) -> FaultBlock:
    @contextmanager
    def block(world: World, _: Moments) -> Iterator[None]:
        server(world).freeze()
        try:
            yield
        finally:
            server(world).thaw()

    return block


def on_the_way(proxy: Callable[[World], Proxy], fault: Fault, delay_s: float = 0.0) -> FaultBlock:
    @contextmanager
    def block(world: World, _: Moments) -> Iterator[None]:
        proxy(world).set(fault, delay_s)
        yield
        proxy(world).set(Fault.PASS)

    return block


def redis_of(world: World) -> Server:
    return world.stack.redis


def postgres_of(world: World) -> Server:
    return world.stack.postgres


def way_to_redis(world: World) -> Proxy:
    return world.redis


def way_to_postgres(world: World) -> Proxy:
    return world.postgres


@contextmanager
def restarted_empty(world: World, moments: Moments) -> Iterator[None]:
    server = world.stack.redis
    server.kill()
    shutil.rmtree(server.data / "appendonlydir")
    server.start()
    moments.ended_s = time.perf_counter()
    yield


@contextmanager
def filled_with_garbage(world: World, _: Moments) -> Iterator[None]:
    """Everything of ours is garbage, half of it of another type; somebody empties Redis in the end."""
    chance = random.Random(world.seed)
    with redis.Redis.from_url(world.stack.redis.address) as client:
        ours = sorted(client.scan_iter(count=1_000))
        fields = _fields(client, ours)
        for key, names in zip(ours, fields, strict=True):
            if names and (key == PROJECTED or chance.random() < 0.5):
                client.hset(key, mapping={name: chance.randbytes(GARBAGE_BYTES) for name in names})
            else:
                client.set(key, chance.randbytes(GARBAGE_BYTES))
        for number in range(FOREIGN_KEYS):
            client.hset(f"another-project:{number}", mapping={"value": chance.randbytes(GARBAGE_BYTES)})
        yield
        client.flushall()


def _fields(client: redis.Redis, keys: Sequence[bytes]) -> list[list[bytes]]:
    """Of each hash; of what is none, none."""
    with client.pipeline(transaction=False) as commands:
        for key in keys:
            commands.hkeys(key)
        return [[] if isinstance(names, Exception) else names for names in commands.execute(False)]


def promoted(version: Callable[[World], str]) -> FaultBlock:
    """Past all checks of the command; in the end the good model is promoted again."""

    @contextmanager
    def block(world: World, _: Moments) -> Iterator[None]:
        world.store.activate(version(world))
        yield
        world.store.activate(world.model)

    return block


@contextmanager
def worker_killed(world: World, moments: Moments) -> Iterator[None]:
    os.kill(world.stack.service.workers[0], signal.SIGKILL)
    moments.ended_s = time.perf_counter()
    yield


@contextmanager
def overloaded(world: World, moments: Moments) -> Iterator[None]:
    world.watch.routes = ("/metrics",)
    load = world.load.start(OVERLOAD * world.capacity_rps - world.rate, MANY_CONNECTIONS)
    time.sleep(CONNECTING_S)
    moments.began_s = time.perf_counter()
    yield
    moments.over_s = time.perf_counter()
    world.load.stop(load)
    world.watch.routes = ()


@contextmanager
def restarted_with_everything_down(world: World, moments: Moments) -> Iterator[None]:
    """There is no load while nobody listens; the fault begins when somebody does."""
    stack = world.stack
    world.stop_load()
    with killed(redis_of, postgres_of)(world, moments):
        stack.service.kill()
        stack.service.start()
        stack.wait_until_ready()
        moments.began_s = time.perf_counter()
        world.start_load()
        yield
