"""The wire below the reader, and both in a worker."""

import socket
import subprocess
import sys
import threading

import pytest

from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import open_wire
from app.domain.errors import StoreUnavailable
from tests.contract.online_reader.redis_servers import PASSWORD, packed


def test_any_command_with_one_key_can_be_asked(place):
    wire = open_wire(place.client())
    commands = [
        ["SET", "text", b"\x00\r\n"],
        ["HSET", "hash", "one", "1"],
        ["GET", "text"],
        ["HMGET", "hash", "one", "two"],
        ["GET", "absent"],
    ]

    replies = wire.ask(packed(*commands), len(commands), timeout_s=2.0)

    assert replies[1:] == [1, b"\x00\r\n", [b"1", None], None]


def test_a_refused_command_is_named_and_leaves_the_wire_usable(place):
    wire = open_wire(place.client())
    wire.ask(packed(["SET", "text", "a"]), 1)

    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        wire.ask(packed(["GET", "text"], ["HGET", "text", "field"]), 2)

    assert wire.ask(packed(["GET", "text"]), 1) == [b"a"]


def test_replies_larger_than_one_read_arrive_whole(place):
    wire = open_wire(place.client())
    text = b"0123456789" * 100_000
    wire.ask(packed(["SET", "long", text]), 1)

    replies = wire.ask(packed(["GET", "long"], ["GET", "long"]), 2)

    assert replies == [text, text]


def test_a_bad_password_is_an_error(single):
    client = connect_redis(single.url.replace(PASSWORD, "wrong"), 1_000)

    with pytest.raises(StoreUnavailable, match="invalid username-password"):
        open_wire(client).ask(packed(["GET", "a"]), 1)


def test_the_database_of_the_address_is_read(single):
    open_wire(single.client()).ask(packed(["SET", "where", "zero"]), 1)
    other = open_wire(connect_redis(single.url.removesuffix("0") + "3", 1_000))

    assert other.ask(packed(["GET", "where"]), 1) == [None]


def run_python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_reading_needs_neither_feast_nor_protobuf():
    loaded = run_python("import sys, app.adapters.online_reader; print(*sys.modules)").split()

    assert not {"feast", "google.protobuf", "pandas", "pyarrow"} & set(loaded)


UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import RedisWire
wire = RedisWire(connect_redis(sys.argv[1], 20_000).connection_pool)
get = b"*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\na\\r\\n"
jobs = [gevent.spawn(wire.ask, get, 1) for _ in range(2)]
gevent.joinall(jobs, raise_error=True)
print(*sorted(job.value[0].decode() for job in jobs))
"""


def test_under_gevent_one_read_does_not_hold_up_another():
    """The server answers the first only when the second has asked too."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"

    def answer_both_at_last() -> None:
        connections = [listener.accept()[0] for _ in range(2)]
        for connection in connections:
            connection.recv(1_000)
        for number, connection in enumerate(connections):
            connection.sendall(b"$1\r\n%d\r\n" % number)

    server = threading.Thread(target=answer_both_at_last, daemon=True)
    server.start()

    assert run_python(UNDER_GEVENT, url) == "0 1"

    server.join()
    listener.close()
