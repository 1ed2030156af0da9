"""A single Redis, a cluster of three masters, stock Feast on either, and servers that misbehave."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import String

from tests.contract.online_reader.feature_rows import DTYPES, TTL_S
from tests.contract.online_reader.redis_servers import (
    PASSWORD,
    PROJECT,
    Place,
    ScriptedServer,
    free_ports,
    is_whole,
    running_server,
    wait_for,
)


@pytest.fixture(scope="session")
def single(tmp_path_factory) -> Iterator[Place]:
    (port,) = free_ports(1)
    with running_server(tmp_path_factory.mktemp("single"), port):
        yield Place([port], is_cluster=False)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Place]:
    """Three masters that share the slots, without replicas."""
    ports, bus_ports = free_ports(6)[::2], free_ports(3)
    folder = tmp_path_factory.mktemp("cluster")

    def node(position: int):
        options = ["--cluster-enabled", "yes", "--cluster-port", str(bus_ports[position])]
        return running_server(folder / str(position), ports[position], *options)

    with node(0), node(1), node(2):
        place = Place(ports, is_cluster=True)
        for position, (first, last) in enumerate([(0, 5_460), (5_461, 10_922), (10_923, 16_383)]):
            with place.node(position) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                for port, bus_port in zip(ports, bus_ports, strict=True):
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus_port)
        for position in range(3):
            with place.node(position) as client:
                wait_for(lambda client=client: is_whole(client))
        yield place


@pytest.fixture(params=["single", "cluster"])
def place(request) -> Place:
    place: Place = request.getfixturevalue(request.param)
    place.empty()
    return place


@pytest.fixture
def script() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(*connections: Sequence[Any]) -> ScriptedServer:
        servers.append(ScriptedServer(*connections))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def stock(place, tmp_path) -> FeatureStore:
    """Feast as it comes, with a view over all types."""
    options = f",password={PASSWORD}"
    store = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            registry=str(tmp_path / "registry.db"),
            provider="local",
            entity_key_serialization_version=3,
            online_store={
                "type": "redis",
                "redis_type": "redis_cluster" if place.is_cluster else "redis",
                "connection_string": f"127.0.0.1:{place.ports[0]}{options}",
            },
        )
    )
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    view = FeatureView(
        name="all_types",
        entities=[user],
        ttl=timedelta(seconds=TTL_S),
        schema=[Field(name="user_id", dtype=String), *(Field(name=n, dtype=t) for n, t in DTYPES.items())],
        source=FileSource(path=str(tmp_path / "none.parquet"), timestamp_field="event_timestamp"),
    )
    store.apply([user, view])
    return store
