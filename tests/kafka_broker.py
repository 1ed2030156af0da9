"""One real broker per test process, and a line at the end of the run that says which.

`TEST_BROKER=kafka` or `TEST_BROKER=tansu` insists on one; else it is Apache Kafka where Java and Maven
are at hand, and Tansu from its wheel elsewhere.
"""

import json
import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from app.adapters.kafka_topics import create_topics
from app.gameday.broker import Broker, find_broker, running
from app.settings import Settings, load_settings

_USED = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def session_broker(tmp_path_factory, pytestconfig) -> Iterator[Broker]:
    found, reason = find_broker(tmp_path_factory.mktemp("broker"), os.environ.get("TEST_BROKER"))
    pytestconfig.stash[_USED] = f"{found.name}" + (f", because {reason}" if reason else "")
    with running(found):
        yield found


@pytest.fixture
def broker(session_broker) -> Iterator[Broker]:
    """A broker that the test may pause, kill and start."""
    yield session_broker
    session_broker.kill()
    session_broker.start()


@pytest.fixture
def kafka_settings(settings, session_broker, monkeypatch) -> Settings:
    """Settings for a migrated database, and a broker with topics of three partitions for this test alone."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", session_broker.address)
    monkeypatch.setenv("KAFKA_OPTIONS", json.dumps(session_broker.client_options))
    monkeypatch.setenv("KAFKA_TOPIC_PREFIX", f"test-{uuid4().hex}.")
    monkeypatch.setenv("KAFKA_GROUP", f"test-{uuid4().hex}")
    monkeypatch.setenv("KAFKA_PARTITIONS", "3")
    configured = load_settings()
    create_topics(configured)
    return configured


def pytest_sessionfinish(session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["broker"] = session.config.stash.get(_USED, None)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    used = getattr(node, "workeroutput", {}).get("broker")
    if used is not None:
        node.config.stash[_USED] = used


def pytest_terminal_summary(terminalreporter, config) -> None:
    used = config.stash.get(_USED, None)
    if used is not None:
        terminalreporter.write_line(f"Kafka tests ran against {used}")
