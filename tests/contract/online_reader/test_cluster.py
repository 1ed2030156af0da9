"""A cluster that comes up late, one whose slots move, and one whose nodes are not equally quick."""

import threading
from itertools import count

import pytest
from feast.protos.feast.types.Value_pb2 import Value
from redis.crc import key_slot

from app.adapters.redis_wire import open_wire
from app.domain.errors import FeaturesUnavailable, StoreUnavailable
from tests.builders import NOON
from tests.contract.online_reader.feature_rows import AGE, FRESH, HALF_LIFE_COUNT, put
from tests.contract.online_reader.redis_servers import (
    PASSWORD,
    Place,
    free_ports,
    packed,
    running_server,
    wait_for,
)


def test_a_cluster_that_comes_up_later_is_read(tmp_path):
    port, bus_port = free_ports(2)
    place = Place([port], is_cluster=True)
    reader = place.reader()
    with pytest.raises(FeaturesUnavailable):
        reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)

    options = ["--cluster-enabled", "yes", "--cluster-port", str(bus_port)]
    with running_server(tmp_path / "node", port, *options):
        place.node(0).execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        wait_for(lambda: place.node(0).execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        put(place, AGE, "u1", age=Value(double_val=42))
        read = reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"]

    assert read.states == [FRESH]


def test_slots_are_read_while_they_move_and_after(cluster):
    cluster.empty()
    redis_key = put(cluster, AGE, "u1", age=Value(double_val=42))
    slot, client = key_slot(redis_key), cluster.client()
    nodes = [cluster.node(position) for position in range(3)]
    ids = [node.execute_command("CLUSTER MYID").decode() for node in nodes]
    source = cluster.ports.index(client.nodes_manager.get_node_from_slot(slot).port)
    target = (source + 1) % 3
    reader = cluster.reader()
    wire = reader._wire

    def read() -> list[float]:
        return reader.read({AGE: ["u1"]}, HALF_LIFE_COUNT, NOON)["profile"].rows.values["age"].tolist()

    before = read()
    nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    nodes[source].execute_command(
        "MIGRATE", "127.0.0.1", cluster.ports[target], redis_key, 0, 5_000, "AUTH", PASSWORD
    )
    while_moving = read()
    for node in (nodes[target], nodes[source]):
        node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    after = read()

    assert [before, while_moving, after] == [[42.0]] * 3
    assert wire._client.nodes_manager.get_node_from_slot(slot).port == cluster.ports[target]


def test_all_nodes_are_asked_before_any_has_answered(cluster):
    cluster.empty()
    first, second = key_on(cluster, 0), key_on(cluster, 1)

    def answer_first_when_second_was_asked() -> None:
        wait_for(lambda: cluster.node(1).exists(second))
        cluster.node(0).rpush(first, "told")

    answering = threading.Thread(target=answer_first_when_second_was_asked)
    answering.start()
    commands = [["BLPOP", first, "10"], ["SET", second, "asked"]]
    replies = open_wire(cluster.client(20_000)).ask(packed(*commands), len(commands))
    answering.join()

    assert replies == [[first.encode(), b"told"], b"OK"]


def test_a_node_that_does_not_answer_costs_no_connection_to_another(cluster):
    cluster.empty()
    silent, quick = key_on(cluster, 0), key_on(cluster, 1)
    wire = open_wire(cluster.client(20_000))
    wire.ask(packed(["GET", silent], ["GET", quick]), 2)
    with cluster.node(1) as node:
        before = node.info("stats")["total_connections_received"]

        with pytest.raises(StoreUnavailable, match="timed out"):
            wire.ask(packed(["BLPOP", silent, "10"], ["GET", quick]), 2, timeout_s=0.05)
        wire.ask(packed(["GET", quick]), 1)

        assert node.info("stats")["total_connections_received"] == before


def key_on(cluster: Place, position: int) -> str:
    """A key that this node of the cluster holds."""
    nodes, port = cluster.client().nodes_manager, cluster.ports[position]
    return next(
        key for key in map(str, count()) if nodes.get_node_from_slot(key_slot(key.encode())).port == port
    )
