"""The game day of events: nothing acknowledged is lost or counted twice, whatever is killed and whenever."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from app.adapters.database import batch_database
from app.adapters.feature_tables import FeatureTables
from app.domain.errors import ConfigurationError
from app.gameday.accounts import Accounts, balance, stored_counts
from app.gameday.broker import Broker, find_broker
from app.gameday.senders import Senders, Sent, made_up_events, post
from app.gameday.stack import GamedayFailed, Part, Stack, running_stack, wait_until

USERS, PROPOSITIONS = 500, 200
SETTLE_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. `rate` in events per second."""

    seed: int
    rate: float
    kills: int
    outage_s: float
    repeated: int
    p99_ms: float = 200.0
    drained_within_s: float = 30.0


FULL = Plan(seed=7, rate=300.0, kills=50, outage_s=60.0, repeated=1_000)
SHORT = Plan(seed=7, rate=100.0, kills=5, outage_s=4.0, repeated=200)


@dataclass
class Phase:
    """`recovery_s` is how long after the fault until everything acknowledged was stored and folded."""

    name: str
    broker: str | None
    promise: str
    accounts: Accounts
    statuses: dict[str, int]
    unreachable: int
    places: dict[str, int]
    p99_ms: float | None
    recovery_s: float
    faults: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.accounts.are_right and not self.broken


@dataclass
class Report:
    seed: int
    rate: float
    phases: list[Phase] = field(default_factory=list)

    @property
    def broker(self) -> str | None:
        """What events rested in before PostgreSQL, in the phases that had a broker."""
        return next((phase.broker for phase in self.phases if phase.broker is not None), None)

    @property
    def passed(self) -> bool:
        return bool(self.phases) and all(phase.passed for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        last = [phase.accounts for phase in self.phases]
        return {
            "acknowledged": sum(accounts.acknowledged for accounts in last),
            "lost": sum(accounts.lost for accounts in last),
            "duplicated": sum(accounts.duplicated for accounts in last),
            "counters_equal_replay": all(accounts.counters_equal_replay for accounts in last),
            "passed": self.passed,
            "seed": self.seed,
            "rate": self.rate,
            "broker": self.broker,
            "phases": [{**asdict(phase), "passed": phase.passed} for phase in self.phases],
        }


def run_events_gameday(plan: Plan, folder: Path, with_kafka: bool, say: Callable[[str], None]) -> Report:
    """All phases on one stack under `folder`, and some of them again on one that has a Kafka broker.

    `with_kafka`: with a broker as well, if one is to be had.

    Raises:
        GamedayFailed: a stack did not come up.
    """
    report = Report(plan.seed, plan.rate)
    with _world(folder / "postgres", None) as world:
        for phase in (_kills, _outage, _changing_projectors, _repeats):
            say(f"{phase.__doc__.splitlines()[0]}")
            report.phases.append(phase(plan, world))
    broker = _broker(folder / "kafka", say) if with_kafka else None
    if broker is not None:
        with _world(folder / "kafka", broker) as world:
            for phase in (_kills, _outage):
                say(f"With Kafka before PostgreSQL: {phase.__doc__.splitlines()[0]}")
                report.phases.append(phase(plan, world))
    return report


def _broker(folder: Path, say: Callable[[str], None]) -> Broker | None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return find_broker(folder)[0]
    except ConfigurationError as error:
        say(f"Nothing is tried with a Kafka broker: {error}")
        return None


class World:
    """A running stack with a catalog, and what clients were promised by it in the present phase."""

    def __init__(self, stack: Stack, broker: Broker | None) -> None:
        self.stack = stack
        self.broker = broker
        self.acknowledged: set[str] = set()
        self.seen = Sent()
        self._problems: list[str] = []
        self._database = batch_database(stack.settings())
        self._tables = FeatureTables(self._database)

    @property
    def _broker_name(self) -> str | None:
        return None if self.broker is None else self.broker.name

    @contextmanager
    def load(self, plan: Plan, name: str) -> Iterator[Senders]:
        """Events come in during the block; afterwards all that were due are acknowledged."""
        events = made_up_events(plan.seed, name, USERS, PROPOSITIONS)
        senders = Senders(self.stack.port, events, plan.rate)
        senders.start()
        try:
            yield senders
        finally:
            senders.stop()
            self.note(senders.take())

    def note(self, sent: Sent) -> None:
        self.acknowledged |= sent.acknowledged
        self.seen.statuses += sent.statuses
        self.seen.places += sent.places
        self.seen.latencies_s += sent.latencies_s
        self.seen.unreachable += sent.unreachable

    def settle(self) -> float:
        """Seconds until all that was acknowledged is stored and folded, or until that is given up."""
        try:
            return wait_until(self._is_settled, SETTLE_TIMEOUT_S, "not all was stored and folded in time")
        except GamedayFailed as failed:
            self._problems.append(str(failed))
            return SETTLE_TIMEOUT_S

    def _is_settled(self) -> bool:
        if not self.acknowledged <= stored_counts(self._database).keys():
            return False
        folded_until = self._tables.progress().hindmost()[1]
        with self._tables.rebuild_batch() as batch:
            return not batch.events_after(folded_until, limit=1)

    def close(self) -> None:
        self._database.close()

    def phase(self, name: str, promise: str, recovery_s: float) -> Phase:
        """The end of a phase, when all has settled."""
        seen, self.seen = self.seen, Sent()
        acknowledged, self.acknowledged = self.acknowledged, set()
        problems, self._problems = self._problems, []
        return Phase(
            name=name,
            broker=self._broker_name,
            promise=promise,
            accounts=balance(self.stack.settings(), acknowledged),
            statuses={str(status): count for status, count in sorted(seen.statuses.items())},
            unreachable=seen.unreachable,
            places=dict(seen.places),
            p99_ms=seen.p99_ms,
            recovery_s=recovery_s,
            broken=problems,
        )


@contextmanager
def _world(folder: Path, broker: Broker | None) -> Iterator[World]:
    environment = {}
    if broker is not None:
        environment["KAFKA_BOOTSTRAP_SERVERS"] = broker.address
        environment["KAFKA_OPTIONS"] = json.dumps(dict(broker.client_options))
    try:
        if broker is not None:
            broker.start()
        with running_stack(folder / "stack", environment) as stack:
            if broker is not None:
                stack.run("kafka", "init")
            _import_catalog(stack)
            stack.service.start()
            stack.add_projector()
            stack.wait_until_ready()
            world = World(stack, broker)
            try:
                yield world
            finally:
                world.close()
    finally:
        if broker is not None:
            broker.stop()


def _import_catalog(stack: Stack) -> None:
    path = stack.folder / "propositions.jsonl"
    lines = (
        f'{{"proposition_id": "p{n}", "title": "Proposition {n}", "category": "c{n % 8}"}}\n'
        for n in range(PROPOSITIONS)
    )
    path.write_text("".join(lines))
    stack.run("import", str(path))


def _kills(plan: Plan, world: World) -> Phase:
    """The service, the projector, PostgreSQL and the broker are killed at random moments."""
    chance = random.Random(plan.seed)
    stack, faults = world.stack, {}
    victims: list[Part] = [stack.service, stack.projectors[0], stack.postgres]
    if world.broker is not None:
        if world.broker.is_durable:
            victims.append(world.broker)
        else:  # it keeps nothing, so to kill it proves nothing
            faults[f"{world.broker.name}, not killed"] = 0
    with world.load(plan, "kills"):
        for number in range(plan.kills):
            victim = victims[number % len(victims)] if number < len(victims) else chance.choice(victims)
            time.sleep(chance.uniform(0.2, 2.0))
            victim.kill()
            time.sleep(chance.uniform(0.0, 1.0))
            victim.start()
            faults[victim.name] = faults.get(victim.name, 0) + 1
            if victim is stack.service:
                stack.wait_until_ready()
    recovery_s = world.settle()
    phase = world.phase(
        "kills", "every event with a 202 is stored exactly once; counters equal a replay", recovery_s
    )
    phase.faults = faults
    return phase


def _outage(plan: Plan, world: World) -> Phase:
    """PostgreSQL is down for a while, under load."""
    promise = f"no acknowledged event lost, no 5xx, p99 under {plan.p99_ms:g} ms, drained within {plan.drained_within_s:g} s"
    with world.load(plan, "outage"):
        time.sleep(1.0)
        world.stack.postgres.kill()
        time.sleep(plan.outage_s)
        world.stack.postgres.start()
        back_s = time.monotonic()
        time.sleep(1.0)
    world.settle()
    phase = world.phase("outage", promise, time.monotonic() - back_s)
    phase.faults = {world.stack.postgres.name: 1}
    phase.broken += [
        f"{count} answers with {status}" for status, count in phase.statuses.items() if status >= "500"
    ]
    if phase.unreachable:
        phase.broken.append(f"{phase.unreachable} requests without an answer")
    if phase.p99_ms is None or phase.p99_ms >= plan.p99_ms:
        phase.broken.append(f"p99 {phase.p99_ms} ms")
    if phase.recovery_s >= plan.drained_within_s:
        phase.broken.append(f"drained after {phase.recovery_s:.0f} s")
    return phase


def _changing_projectors(plan: Plan, world: World) -> Phase:
    """Three projectors, one killed and one added in mid-stream."""
    stack = world.stack
    stack.add_projector()
    victim = stack.add_projector()
    with world.load(plan, "projectors"):
        time.sleep(plan.outage_s / 4)
        victim.kill()
        time.sleep(plan.outage_s / 4)
        stack.add_projector()
        time.sleep(plan.outage_s / 4)
    phase = world.phase("projectors", "counters equal a replay", world.settle())
    phase.faults = {victim.name: 1}
    return phase


def _repeats(plan: Plan, world: World) -> Phase:
    """The same events are sent three times."""
    made_up = made_up_events(plan.seed, "repeats", USERS, PROPOSITIONS)
    events = [next(made_up) for _ in range(plan.repeated)]
    connection = HTTPConnection("127.0.0.1", world.stack.port, timeout=30)
    sent = Sent()
    for _ in range(3):
        for first in range(0, len(events), 100):
            status, answer = post(connection, "/log_event", {"events": events[first : first + 100]})
            sent.statuses[status or 0] += 1
            sent.acknowledged.update(one["event_id"] for one in (answer or {}).get("events", ()))
    connection.close()
    world.note(sent)
    phase = world.phase("repeats", "counted once", world.settle())
    if phase.accounts.acknowledged != plan.repeated:
        phase.broken.append(f"{phase.accounts.acknowledged} of {plan.repeated} events were acknowledged")
    return phase


def table_rows(report: Report) -> Iterator[Sequence[str]]:
    """Header and rows of the table that people read."""
    yield (
        "phase",
        "before PostgreSQL",
        "acknowledged",
        "lost",
        "twice",
        "= replay",
        "5xx",
        "p99 ms",
        "settled s",
        "faults",
        "passed",
    )
    for phase in report.phases:
        accounts = phase.accounts
        yield (
            phase.name,
            phase.broker or "-",
            f"{accounts.acknowledged:,}",
            str(accounts.lost),
            str(accounts.duplicated),
            "equal" if accounts.counters_equal_replay else "OTHER",
            str(sum(count for status, count in phase.statuses.items() if status >= "500")),
            "-" if phase.p99_ms is None else f"{phase.p99_ms:.0f}",
            f"{phase.recovery_s:.1f} s",
            ", ".join(f"{name} {count}" for name, count in phase.faults.items()) or "-",
            "yes" if phase.passed else f"NO {'; '.join(phase.broken)}",
        )
