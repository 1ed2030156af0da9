"""What is no features is refused, and servers that misbehave cost an error and no more."""

import socket
import threading
import time
from datetime import UTC, datetime

import pytest
import redis
from feast.protos.feast.types.Value_pb2 import Value

from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_client import RedisProbe, connect_redis
from app.adapters.redis_wire import open_wire
from app.domain.errors import FeaturesUnavailable
from tests.builders import NOON
from tests.contract.online_reader.feature_rows import AGE, FRESH, HALF_LIFE_COUNT, list_value, put
from tests.contract.online_reader.redis_servers import (
    PROJECT,
    Place,
    ScriptedServer,
    free_ports,
    packed,
    running_server,
    wait_for,
)


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xff\xff not a value",
        Value(string_val="1.5"),
        list_value("doubles", [1.5]),
        Value(double_val=1.5).SerializeToString()[:-1],
        Value(uuid_val="1.5"),
    ],
)
def test_foreign_values_are_refused_not_served(place, value):
    put(place, AGE, "u1", age=value)

    with pytest.raises(FeaturesUnavailable, match="something else than features"):
        place.reader().read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)


def test_a_key_of_another_type_is_refused_and_others_are_read_on(place):
    put(place, AGE, "u1", age=Value(double_val=42))
    foreign = put(place, AGE, "u2")
    client = place.client()
    client.delete(foreign)
    client.set(foreign, "text")
    reader = place.reader()

    with pytest.raises(FeaturesUnavailable, match="WRONGTYPE"):
        reader.read({AGE: ["u1", "u2"]}, HALF_LIFE_COUNT, NOON)

    assert reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"].states == [FRESH]


def test_a_key_that_is_no_text_is_refused(single):
    with pytest.raises(FeaturesUnavailable, match="no text"):
        single.reader().read({AGE: ["\ud800"]}, HALF_LIFE_COUNT, NOON)


@pytest.mark.parametrize("is_cluster", [False, True])
def test_a_refused_connection_is_an_error_at_the_read_not_before(is_cluster):
    (port,) = free_ports(1)
    client = connect_redis(f"redis://127.0.0.1:{port}/0", 200, cluster=is_cluster)
    reader, probe = RedisOnlineReader(open_wire(client), PROJECT), RedisProbe(client)

    with pytest.raises(FeaturesUnavailable):
        reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)
    with pytest.raises(redis.RedisError):
        client.get("a")
    probe.refresh()

    assert probe.problem is not None


# Two values, as a row of `AGE` has them: its timestamp and its age.
ROW = b"*2\r\n$2\r\n\x08\x01\r\n$9\r\n" + Value(double_val=42).SerializeToString() + b"\r\n"
NO_ROW = b"*2\r\n$-1\r\n$-1\r\n"
AT_ROW = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)


def reader_of(server: ScriptedServer, timeout_ms: int = 10_000, **options) -> RedisOnlineReader:
    return RedisOnlineReader(open_wire(connect_redis(server.url, timeout_ms, **options)), PROJECT)


def age(reader: RedisOnlineReader, timeout_s: float | None = None) -> list[float]:
    read = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, AT_ROW, timeout_s)["profile"]
    return read.rows.values["age"].tolist()


def test_a_silent_server_costs_the_rest_of_the_request_and_its_connection(script):
    server = script([None], [ROW])
    reader = reader_of(server, timeout_ms=60_000)
    started = time.monotonic()

    with pytest.raises(FeaturesUnavailable, match="timed out"):
        age(reader, timeout_s=0.05)

    assert time.monotonic() - started < 30
    assert age(reader) == [42.0]
    assert server.accepted == 2


def test_the_clients_own_timeout_holds_when_the_request_has_more_time(script):
    server = script([None])
    started = time.monotonic()

    with pytest.raises(FeaturesUnavailable, match="timed out"):
        age(reader_of(server, timeout_ms=50), timeout_s=60)

    assert time.monotonic() - started < 30


def test_a_server_that_drips_does_not_stretch_the_timeout():
    (port,) = free_ports(1)
    listener = socket.create_server(("127.0.0.1", port))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            for byte in b"*2\r\n$" + b"0" * 1_000:
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.02)

    threading.Thread(target=drip, daemon=True).start()
    reader = RedisOnlineReader(open_wire(connect_redis(f"redis://127.0.0.1:{port}/0", 200)), PROJECT)
    started = time.monotonic()

    with pytest.raises(FeaturesUnavailable, match="timed out"):
        age(reader)

    listener.close()
    assert time.monotonic() - started < 10


def test_no_time_left_asks_nobody(script):
    server = script([ROW])

    with pytest.raises(FeaturesUnavailable):
        age(reader_of(server), timeout_s=0)

    assert server.requests == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-ERR unknown command\r\n",
        b":7\r\n",
        b"+OK\r\n",
        b"$2\r\nab\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"*1\r\n$-1\r\n",
        b"*2\r\n:1\r\n:2\r\n",
        b"*2\r\n$2\r\n\x08\x01\r\n:2\r\n",
        b"*2\r\n$2\r\n\x08\x01\r\n*3\r\n:152\r\n:1\r\n:0\r\n",
        b"*2\r\n$2\r\nno\r\n$-1\r\n",
        ROW + ROW,
    ],
)
def test_garbage_is_refused(script, garbage):
    with pytest.raises(FeaturesUnavailable):
        age(reader_of(script([garbage], [None]), timeout_ms=500))


def test_what_came_without_being_asked_for_is_nobodys_answer(script):
    is_read, is_sent = threading.Event(), threading.Event()

    def send_another(connection: socket.socket) -> None:
        is_read.wait()
        connection.sendall(NO_ROW)
        is_sent.set()

    server = script([ROW, send_another], [ROW])
    reader = reader_of(server)
    age(reader)
    is_read.set()
    is_sent.wait()

    assert age(reader) == [42.0]
    assert server.accepted == 2


def test_a_reply_cut_off_in_the_middle_is_an_error_and_not_asked_again(script):
    server = script([ROW, ROW[:-5], ScriptedServer.CLOSE], [ROW])
    reader = reader_of(server)
    age(reader)

    with pytest.raises(FeaturesUnavailable, match="in the middle"):
        age(reader)

    assert server.accepted == 1
    assert age(reader) == [42.0]


def test_a_reused_connection_that_ends_before_the_reply_is_replaced_once(script):
    server = script([ROW, b"", ScriptedServer.CLOSE], [b"", ScriptedServer.CLOSE], [ROW])
    reader = reader_of(server)
    age(reader)

    with pytest.raises(FeaturesUnavailable, match="closed the connection"):
        age(reader)

    assert server.accepted == 2


def test_a_long_reply_on_the_connection_that_replaced_one_arrives_whole(script):
    text = b"0123456789" * 10_000
    server = script([b"+OK\r\n", b"", ScriptedServer.CLOSE], [b"$%d\r\n%b\r\n" % (len(text), text)])
    wire = open_wire(connect_redis(server.url, 10_000))
    wire.ask(packed(["SET", "a", "b"]), 1)

    assert wire.ask(packed(["GET", "a"]), 1) == [text]
    assert server.accepted == 2


def test_a_new_connection_that_ends_before_the_reply_is_an_error(script):
    server = script([b"", ScriptedServer.CLOSE], [ROW])

    with pytest.raises(FeaturesUnavailable, match="closed the connection"):
        age(reader_of(server))

    assert server.accepted == 1


def test_who_finds_all_connections_in_use_gets_an_error_at_once(script):
    server = script([None])
    reader = reader_of(server, timeout_ms=60_000, max_connections=1)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            age(reader)
        except FeaturesUnavailable as error:
            errors.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    wait_for(lambda: len(server.requests) == 1)

    with pytest.raises(FeaturesUnavailable, match="in use"):
        age(reader)

    server.close()
    waiting.join()
    assert "closed the connection" in str(errors[0])


def test_a_server_restarted_between_two_reads_is_not_noticed(tmp_path):
    (port,) = free_ports(1)
    place = Place([port], is_cluster=False)
    reader = place.reader()
    with running_server(tmp_path / "redis", port):
        put(place, AGE, "u1", age=Value(double_val=1))
        before = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"]

    with running_server(tmp_path / "redis", port):
        put(place, AGE, "u1", age=Value(double_val=2))
        after = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"]

    assert before.rows.values["age"].tolist() == [1.0]
    assert after.rows.values["age"].tolist() == [2.0]
