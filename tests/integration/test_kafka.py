"""Against a real broker: see tests/kafka_broker.py. What is acknowledged arrives, and counts once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest
from confluent_kafka import Consumer
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from app import cli
from app.adapters.database import service_database
from app.adapters.event_log import PostgresEventLog
from app.adapters.kafka_client import consumer_config, producer_config
from app.adapters.kafka_event_log import KafkaEventLog
from app.adapters.kafka_intake import KafkaIntake
from app.adapters.kafka_metrics import IntakeMetrics, SenderMetrics
from app.adapters.kafka_sender import KafkaSender, Message
from app.adapters.kafka_topics import KafkaProbe, create_topics, read_lag
from app.bootstrap.projector import build_intake
from app.bootstrap.recording import primary_event_log
from app.bootstrap.web import build_api
from app.domain.errors import ConfigurationError, EventRefused, StoreUnavailable
from app.domain.types import StoredIn
from app.events.message import SCHEMA_HEADER, SCHEMA_VERSION, decode, encode
from app.settings import Settings, load_settings
from tests.builders import CONTEXT_FIELDS, NOON, count, event, query, refusal

ARRIVES_WITHIN_S = 60.0
POLL_S = 0.2


@pytest.fixture
def log(kafka_settings) -> Iterator[KafkaEventLog]:
    log = open_log(kafka_settings)
    yield log
    log.close()


def open_log(settings: Settings, registry: CollectorRegistry | None = None) -> KafkaEventLog:
    return primary_event_log(
        settings, service_database(settings), lambda work: work(), registry or CollectorRegistry()
    )


@pytest.fixture
def intakes() -> Iterator[Callable[..., KafkaIntake]]:
    """Opens members of the group; those that a test leaves behind are closed after it."""
    opened: list[KafkaIntake] = []

    def open_intake(settings: Settings, registry: CollectorRegistry | None = None) -> KafkaIntake:
        opened.append(build_intake(settings, registry or CollectorRegistry()))
        return opened[-1]

    yield open_intake
    for intake in opened:
        intake.close()


def run_until(is_done: Callable[[], object], *intakes: KafkaIntake) -> None:
    deadline_s = time.monotonic() + ARRIVES_WITHIN_S
    while not is_done():
        assert time.monotonic() < deadline_s, "it did not come in time"
        for intake in intakes:
            intake.run_once(POLL_S)


def send(settings: Settings, *messages: Message) -> None:
    """Past the event log, as another program would."""
    sender = KafkaSender(producer_config(settings), 10.0, SenderMetrics(CollectorRegistry()))
    sender.send(messages)
    sender.close()


def message(settings: Settings, value: bytes | None, schema: bytes = SCHEMA_VERSION) -> Message:
    return Message(settings.kafka_events_topic, b"u1", value, [(SCHEMA_HEADER, schema)])


def dead_letters(settings: Settings, wanted: int) -> list:
    reader = Consumer({**consumer_config(settings), "group.id": f"test-{uuid4().hex}"})
    reader.subscribe([settings.kafka_dead_topic])
    try:
        letters = []
        deadline_s = time.monotonic() + ARRIVES_WITHIN_S
        while len(letters) < wanted:
            assert time.monotonic() < deadline_s, f"{len(letters)} of {wanted} dead letters came"
            letters += [m for m in reader.consume(wanted, POLL_S) if m.error() is None]
        return letters
    finally:
        reader.close()


def lag(settings: Settings) -> int:
    return sum(partition.lag for partition in read_lag(settings))


def event_ids(settings: Settings, where: str = "true") -> list[str]:
    return [row[0] for row in query(settings, f"SELECT event_id FROM events WHERE {where} ORDER BY seq")]


def test_an_event_through_kafka_is_stored_as_one_that_went_straight_to_postgres(kafka_settings, log, intakes):
    fields = {
        "user_id": "jürgen 🎈",
        "context": {"page": "größe", "device": "x"},
        "request_id": "r1",
        "position": 3,
        "value": 0.1,
    }
    straight = PostgresEventLog(service_database(kafka_settings), CONTEXT_FIELDS)
    straight.append([event("whole", "conversion", **fields), event("bare", user_id=None)])

    receipt = log.append([event("whole-k", "conversion", **fields), event("bare-k", user_id=None)])
    run_until(lambda: count(kafka_settings, "events") == 4, intakes(kafka_settings))

    assert receipt.stored_in is StoredIn.KAFKA
    assert receipt.recorded_ids == ("whole-k", "bare-k")
    columns = "user_id, event_type, context, context_key, request_id, position, value, occurred_at"
    for name in ("whole", "bare"):
        (before, after) = query(
            kafka_settings, f"SELECT {columns} FROM events WHERE starts_with(event_id, '{name}')"
        )
        assert before == after


def test_an_id_that_is_repeated_within_a_call_is_told_and_sent_once(kafka_settings, log):
    receipt = log.append([event("e1"), event("e1"), event("e2"), event("e1")])

    assert (receipt.recorded_ids, receipt.duplicate_ids) == (("e1", "e2"), ("e1",))
    assert lag(kafka_settings) == 2


def test_nothing_is_nothing(log):
    assert log.append([]).recorded_ids == ()


def test_an_id_that_is_sent_again_counts_once(kafka_settings, log, intakes):
    log.append([event("e1"), event("e2")])
    log.append([event("e2"), event("e3")])

    run_until(lambda: lag(kafka_settings) == 0, intakes(kafka_settings))

    assert sorted(event_ids(kafka_settings)) == ["e1", "e2", "e3"]


def test_events_of_a_user_keep_their_order_on_any_number_of_partitions(kafka_settings, log, intakes):
    users = [f"u{n}" for n in range(6)]
    for number in range(20):
        log.append([event(f"{user}-{number:02}", user_id=user) for user in users])

    run_until(lambda: count(kafka_settings, "events") == 120, intakes(kafka_settings))

    for user in users:
        assert event_ids(kafka_settings, f"user_id = '{user}'") == [f"{user}-{n:02}" for n in range(20)]
    assert sum(partition.end > 0 for partition in read_lag(kafka_settings)) > 1


def test_what_was_acknowledged_survives_a_kill_of_the_broker_under_production(
    kafka_settings, broker, log, intakes
):
    if not broker.is_durable:
        pytest.skip(f"{broker.name} has no log on disk")
    acknowledged: list[str] = []
    failures: list[str] = []
    enough = threading.Event()

    def produce() -> None:
        for number in range(100_000):
            if enough.is_set():
                return
            try:
                acknowledged.extend(log.append([event(f"e{number}", user_id=f"u{number % 7}")]).recorded_ids)
            except StoreUnavailable as error:
                failures.append(str(error))

    producer = threading.Thread(target=produce)
    producer.start()
    run_until(lambda: len(acknowledged) > 50)
    broker.kill()
    run_until(lambda: len(failures) > 0)
    broker.start()
    before = len(acknowledged)
    run_until(lambda: len(acknowledged) > before + 50)
    enough.set()
    producer.join()
    run_until(lambda: set(acknowledged) <= set(event_ids(kafka_settings)), intakes(kafka_settings))

    assert len(event_ids(kafka_settings)) == len(set(event_ids(kafka_settings)))


def test_a_producer_whose_broker_has_lost_its_memory_is_replaced(kafka_settings, broker, log):
    log.append([event("e1")])
    broker.kill()
    broker.start()
    create_topics(kafka_settings)

    def is_recorded() -> bool:
        try:
            return log.append([event("e2")]).recorded_ids == ("e2",)
        except StoreUnavailable:
            return False

    run_until(is_recorded)


def test_a_broker_that_hangs_is_given_up_in_time_and_holds_up_no_greenlet(kafka_settings, broker):
    program = """
import signal; signal.alarm(30)  # should all greenlets be held up for good
import gevent.monkey; gevent.monkey.patch_all()
import gevent
from prometheus_client import CollectorRegistry
from app.adapters.database import service_database
from app.bootstrap.recording import primary_event_log
from app.domain.errors import StoreUnavailable
from app.settings import load_settings
from tests.builders import event
settings = load_settings()
run_aside = gevent.get_hub().threadpool.apply
log = primary_event_log(settings, service_database(settings), run_aside, CollectorRegistry())
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1
gevent.spawn(tick)
print(log.append([event("e1")]).recorded_ids[0], flush=True)
input()
before = ticks
try:
    log.append([event("e2")])
except StoreUnavailable as error:
    print(ticks - before, error)
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KAFKA_TIMEOUT_MS": "4000"},
    )
    assert worker.stdout.readline() == "e1\n"
    broker.pause()
    output, _ = worker.communicate("\n", timeout=30)
    broker.resume()

    ticks, _, text = output.partition(" ")
    assert worker.returncode == 0
    assert int(ticks) > 10
    assert "no acknowledgement in time" in text or "timed out" in text


def test_what_was_stored_before_a_crash_counts_once_though_it_comes_again(kafka_settings, log, intakes):
    class Crash(Exception):
        pass

    class CrashingLog(PostgresEventLog):
        def append(self, events):
            super().append(events)
            raise Crash

    log.append([event("e1"), event("e2")])
    crashing = KafkaIntake(
        consumer_config(kafka_settings),
        kafka_settings.kafka_events_topic,
        kafka_settings.kafka_dead_topic,
        decode,
        CrashingLog(service_database(kafka_settings), CONTEXT_FIELDS),
        KafkaSender(producer_config(kafka_settings), 10.0, SenderMetrics(CollectorRegistry())),
        IntakeMetrics(CollectorRegistry()),
    )
    with pytest.raises(Crash):
        run_until(lambda: False, crashing)
    crashing.close()
    assert count(kafka_settings, "events") == 2
    assert lag(kafka_settings) == 2

    registry = CollectorRegistry()
    run_until(lambda: lag(kafka_settings) == 0, intakes(kafka_settings, registry))

    assert count(kafka_settings, "events") == 2
    assert registry.get_sample_value("propositions_kafka_consumed_total", {"outcome": "duplicate"}) == 2


def test_two_members_share_the_partitions_and_one_takes_over_when_the_other_leaves(
    kafka_settings, log, intakes
):
    def shares() -> list[int]:
        return [len(member.partitions) for member in members]

    members = [intakes(kafka_settings), intakes(kafka_settings)]
    run_until(lambda: sorted(shares()) == [1, 2], *members)
    log.append([event(f"a{n}", user_id=f"u{n}") for n in range(50)])
    run_until(lambda: count(kafka_settings, "events") == 50, *members)
    members.pop().close()
    log.append([event(f"b{n}", user_id=f"u{n}") for n in range(50)])
    run_until(lambda: count(kafka_settings, "events") == 100, *members)

    assert shares() == [3]
    run_until(lambda: lag(kafka_settings) == 0, *members)


def test_a_batch_that_waits_is_given_up_with_its_partition_and_stored_by_who_gets_it(
    kafka_settings, log, intakes, session_broker, monkeypatch
):
    patient = {**session_broker.client_options, "fetch.min.bytes": 100_000}  # all partitions come at once
    monkeypatch.setenv("KAFKA_OPTIONS", json.dumps(patient))
    first, registry = intakes(load_settings()), CollectorRegistry()
    run_until(lambda: len(first.partitions) == 3, first)
    with refused_connections(kafka_settings):
        log.append([event(f"e{n}", user_id=f"u{n}") for n in range(50)])
        run_until(lambda: first.kept_partitions, first)
        second = intakes(kafka_settings, registry)
        run_until(lambda: 0 < len(second.partitions) < 3, first, second)
        assert first.kept_partitions <= first.partitions

    run_until(lambda: lag(kafka_settings) == 0, first, second)

    assert count(kafka_settings, "events") == 50
    assert registry.get_sample_value("propositions_kafka_consumed_total", {"outcome": "recorded"}) > 0


def test_what_is_no_event_goes_to_the_dead_letters_with_the_reason_and_holds_up_nothing(
    kafka_settings, log, intakes
):
    lacking = json.dumps({"event_id": "e0", "event_type": "click"}).encode()
    send(
        kafka_settings,
        message(kafka_settings, b"{"),
        message(kafka_settings, encode(event("e9")), schema=b"9"),
        message(kafka_settings, lacking),
        message(kafka_settings, None),
        message(kafka_settings, encode(event("good"))),
    )
    registry = CollectorRegistry()

    run_until(lambda: lag(kafka_settings) == 0, intakes(kafka_settings, registry))

    assert event_ids(kafka_settings) == ["good"]
    letters = dead_letters(kafka_settings, 4)
    reasons = [dict(letter.headers())["reason"].decode() for letter in letters]
    assert "JSON" in reasons[0]
    assert reasons[1] == "schema version is 9, and 1 is known here"
    assert "occurred_at: Field required" in reasons[2]
    source = dict(letters[2].headers())
    assert source["source_topic"].decode() == kafka_settings.kafka_events_topic
    assert source["source_offset"] == b"2"
    assert 0 <= int(source["source_partition"]) < 3
    assert (letters[2].key(), letters[2].value()) == (b"u1", lacking)
    assert registry.get_sample_value("propositions_kafka_consumed_total", {"outcome": "dead"}) == 4


def test_an_event_that_postgres_refuses_is_buried_alone(kafka_settings, log, intakes):
    query(kafka_settings, "ALTER TABLE events ADD CONSTRAINT no_curse CHECK (proposition_id <> 'cursed')")
    log.append([event(f"e{n}", proposition_id="cursed" if n == 3 else "p1") for n in range(7)])

    run_until(lambda: lag(kafka_settings) == 0, intakes(kafka_settings))

    assert event_ids(kafka_settings) == ["e0", "e1", "e2", "e4", "e5", "e6"]
    (letter,) = dead_letters(kafka_settings, 1)
    reason = dict(letter.headers())["reason"].decode()
    assert "no_curse" in reason and "u1" not in reason


def test_events_that_are_not_kept_any_more_are_counted_and_buried_nowhere(kafka_settings, log, intakes):
    query(kafka_settings, "UPDATE log_heads SET kept_since = %s WHERE name = 'events'", [NOON])
    log.append([event("e1"), event("old", at=NOON - timedelta(days=1)), event("e2")])
    registry = CollectorRegistry()

    run_until(lambda: lag(kafka_settings) == 0, intakes(kafka_settings, registry))

    outcomes = {
        outcome: registry.get_sample_value("propositions_kafka_consumed_total", {"outcome": outcome})
        for outcome in ("recorded", "duplicate", "dropped", "dead")
    }
    assert outcomes == {"recorded": 2, "duplicate": 0, "dropped": 1, "dead": 0}
    assert event_ids(kafka_settings) == ["e1", "e2"]


def test_a_dead_letter_that_is_too_large_goes_without_its_value(
    kafka_settings, intakes, session_broker, monkeypatch
):
    send(kafka_settings, message(kafka_settings, b"x" * 5_000))
    monkeypatch.setenv(
        "KAFKA_OPTIONS", json.dumps({**session_broker.client_options, "message.max.bytes": 3_000})
    )

    run_until(lambda: lag(kafka_settings) == 0, intakes(load_settings()))

    (letter,) = dead_letters(kafka_settings, 1)
    assert letter.value() is None
    assert dict(letter.headers())["source_offset"] == b"0"


class refused_connections:
    """PostgreSQL takes no connections to the database, and ends those that there are."""

    def __init__(self, settings: Settings) -> None:
        self._name = settings.postgres_url.rpartition("/")[2].partition("?")[0]
        self._server = settings.postgres_url.replace(f"/{self._name}", "/postgres")

    def __enter__(self) -> None:
        self._execute(
            f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'",
        )

    def __exit__(self, *_) -> None:
        self._execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")

    def _execute(self, *statements: str) -> None:
        connection = psycopg2.connect(self._server)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        finally:
            connection.close()


def test_while_postgres_is_down_the_batch_is_kept_and_the_group_does_not_change(kafka_settings, log, intakes):
    intake = intakes(kafka_settings)
    log.append([event("before")])
    run_until(lambda: count(kafka_settings, "events") == 1, intake)
    owned = intake.partitions

    with refused_connections(kafka_settings):
        log.append([event("during")])
        run_until(lambda: intake.kept_partitions, intake)
        log.append([event("later")])
        assert [intake.run_once(POLL_S) for _ in range(3)] == [0, 0, 0]
        assert lag(kafka_settings) == 2

    run_until(lambda: lag(kafka_settings) == 0, intake)
    assert event_ids(kafka_settings) == ["before", "during", "later"]
    assert intake.partitions == owned


def test_while_postgres_refuses_whatever_comes_the_batch_is_kept_and_nothing_is_buried(
    kafka_settings, log, intakes
):
    registry = CollectorRegistry()
    intake = intakes(kafka_settings, registry)
    with refusal(kafka_settings, "insufficient_privilege"):
        log.append([event("e1"), event("e2")])
        run_until(lambda: intake.kept_partitions, intake)
        assert [intake.run_once(POLL_S) for _ in range(2)] == [0, 0]

    run_until(lambda: lag(kafka_settings) == 0, intake)

    assert event_ids(kafka_settings) == ["e1", "e2"]
    assert registry.get_sample_value("propositions_kafka_consumed_total", {"outcome": "dead"}) == 0


def test_an_event_that_is_too_large_is_refused_at_once_and_others_are_not(
    kafka_settings, monkeypatch, session_broker
):
    options = {**session_broker.client_options, "message.max.bytes": 2_000}
    monkeypatch.setenv("KAFKA_OPTIONS", json.dumps(options))
    registry = CollectorRegistry()
    log = open_log(load_settings(), registry)

    with pytest.raises(EventRefused, match="larger than Kafka takes"):
        log.append([event("large", context={f"field_{n}": "x" * 200 for n in range(20)})])

    assert log.append([event("small")]).recorded_ids == ("small",)
    failures = {"reason": "MSG_SIZE_TOO_LARGE"}
    assert registry.get_sample_value("propositions_kafka_failures_total", failures) == 1
    log.close()


def test_a_missing_topic_is_an_outage_with_advice(kafka_settings, session_broker, monkeypatch):
    if not session_broker.is_durable:
        pytest.skip(f"{session_broker.name} creates topics that are asked for")
    monkeypatch.setenv("KAFKA_TOPIC_PREFIX", f"test-{uuid4().hex}.")
    settings = load_settings()
    log, probe = open_log(settings), KafkaProbe(settings)

    probe.refresh(5.0)
    with pytest.raises(StoreUnavailable, match="propositions kafka init"):
        log.append([event("e1")])
    with pytest.raises(StoreUnavailable, match="propositions kafka init"):
        read_lag(settings)

    assert "propositions kafka init" in probe.problem
    log.close()


def test_properties_that_kafka_does_not_know_are_a_configuration_error(kafka_settings, monkeypatch):
    monkeypatch.setenv("KAFKA_OPTIONS", '{"no.such.property": 1}')

    with pytest.raises(ConfigurationError, match="KAFKA_OPTIONS are wrong"):
        open_log(load_settings()).append([event("e1")])


def test_topics_are_created_once_and_other_partitions_are_told(kafka_settings, monkeypatch):
    first = CliRunner().invoke(cli.app, ["kafka", "init"])
    monkeypatch.setenv("KAFKA_PARTITIONS", "5")
    other = CliRunner().invoke(cli.app, ["kafka", "init"])
    monkeypatch.setenv("KAFKA_TOPIC_PREFIX", f"test-{uuid4().hex}.")
    new = CliRunner().invoke(cli.app, ["kafka", "init"])

    assert f"{kafka_settings.kafka_events_topic}: exists, partitions: 3" in first.output
    assert "wanted" not in first.output
    assert "5 are wanted; nothing was changed" in other.output
    assert new.output.count("created, partitions:") == 2


def test_the_lag_of_each_partition_can_be_seen(kafka_settings, log, intakes):
    log.append([event(f"e{n}", user_id=f"u{n}") for n in range(50)])
    before = CliRunner().invoke(cli.app, ["kafka", "status"]).output
    registry = CollectorRegistry()
    intake = intakes(kafka_settings, registry)
    run_until(lambda: len(intake.partitions) == 3, intake)
    run_until(lambda: lag(kafka_settings) == 0, intake)
    log.append([event("e1", user_id="u1")])
    intake.report_lag()

    lags = [
        registry.get_sample_value("propositions_kafka_lag", {"partition": str(number)}) for number in range(3)
    ]
    assert sorted(lags) == [0, 0, 1]
    assert before.count("nothing of") == 3
    assert "lag in all: 50" in before
    assert "lag in all: 1" in CliRunner().invoke(cli.app, ["kafka", "status"]).output


def test_the_service_records_to_kafka_and_tells_how_kafka_is(kafka_settings):
    from app.api.factory import create_app

    # The first append after a broker's start takes long, and in the spool the event would be a second time.
    patient = kafka_settings.model_copy(update={"event_primary_timeout_ms": 10_000})
    services, background, registry = build_api(patient)
    client = create_app(patient, services, registry).test_client()

    def health() -> dict:
        return client.get("/health").json["dependencies"]["kafka"]

    assert health() == {"status": "down", "detail": "not asked yet", "breaker": None}
    background.start()
    answer = client.post(
        "/log_event", json={"event_id": "e1", "event_type": "click", "proposition_id": "p1", "user_id": "u1"}
    )
    run_until(lambda: health() == {"status": "up", "detail": "answers", "breaker": None})
    background.stop()

    assert answer.status_code == 202
    assert lag(kafka_settings) == 1
    assert count(kafka_settings, "events") == 0


def test_the_projector_brings_in_what_kafka_has_and_stops_when_told(kafka_settings, log):
    log.append([event("e1")])
    projector = subprocess.Popen(
        [Path(sys.executable).with_name("propositions"), "project", "--follow"], stderr=subprocess.PIPE
    )
    try:
        run_until(lambda: count(kafka_settings, "user_activity") == 1)
        projector.send_signal(signal.SIGTERM)
        _, errors = projector.communicate(timeout=30)
    finally:
        projector.kill()

    assert projector.returncode == 0, errors
    run_until(lambda: lag(kafka_settings) == 0)
