"""The game day of serving: slates come in time, whatever is down, slow or lying."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from app.domain.errors import ConfigurationError
from app.gameday.broker import Broker, find_broker
from app.gameday.judging import Moments, Phase, Promise, judge, recovered_after_s
from app.gameday.proxy import Fault
from app.gameday.series import Answer
from app.gameday.serving_faults import (
    DELAY_S,
    OVERLOAD,
    FaultBlock,
    filled_with_garbage,
    frozen,
    killed,
    on_the_way,
    overloaded,
    postgres_of,
    promoted,
    redis_of,
    restarted_empty,
    restarted_with_everything_down,
    way_to_postgres,
    way_to_redis,
    worker_killed,
)
from app.gameday.serving_kafka import KafkaSide
from app.gameday.serving_world import SLOW_S, World, serving_world

LOAD_SHARE = 0.6
# After the limit of a promise it is waited so much longer, to tell how long it does take.
PATIENCE_S = 30.0
# Answers that are still on their way say nothing yet.
ON_THE_WAY_S = 0.3
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """Seconds of everything. `quiet_s` lies between faults: after the one, once all is well, and before the next.
    `load_share` of the capacity is asked for.

    `patience` is how many times as long as promised things may take. A short fault on a machine that its servers, their
    restarts and the load share says little of a hundredth of the slates: there it tells hangs from slowness.
    """

    seed: int
    capacity_s: float
    fault_s: float
    quiet_s: float
    broker_kind: str | None
    load_share: float = LOAD_SHARE
    patience: float = 1.0


FULL = ServingPlan(seed=7, capacity_s=6.0, fault_s=10.0, quiet_s=3.0, broker_kind=None)
# What some seconds tell of the capacity may be half as much again as what there is a minute later.
SHORT = ServingPlan(
    seed=7, capacity_s=2.0, fault_s=2.5, quiet_s=1.0, broker_kind="tansu", load_share=0.4, patience=3.0
)


@dataclass(frozen=True, slots=True)
class Trial:
    name: str
    fault: str
    block: FaultBlock
    promise: Promise


@dataclass
class ServingReport:
    """`answers` and the moments of the phases are on the same clock."""

    seed: int
    capacity_rps: float
    rate: float
    phases: list[Phase] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.phases) and all(phase.passed for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "capacity_rps": self.capacity_rps,
            "rate": self.rate,
            "seed": self.seed,
            "phases": [{**asdict(phase), "passed": phase.passed} for phase in self.phases],
        }


def trials(model: str) -> Sequence[Trial]:
    """All that goes wrong, in this order. `model` is the good one."""
    redis, postgres = Promise(), Promise(dependency="postgres")
    as_it_comes = Promise(is_recovery_only_stated=True)
    return (
        Trial("redis killed", "Redis is killed", killed(redis_of), redis),
        Trial("redis frozen", "Redis is stopped with SIGSTOP", frozen(redis_of), redis),
        Trial(
            "redis slow",
            f"every packet to and from Redis takes {DELAY_S / 2:g} s",
            on_the_way(way_to_redis, Fault.DELAY, DELAY_S / 2),
            redis,
        ),
        Trial(
            "redis cut",
            "every reply of Redis is cut in the middle",
            on_the_way(way_to_redis, Fault.CUT),
            redis,
        ),
        Trial("redis garbage", "Redis replies random bytes", on_the_way(way_to_redis, Fault.GARBAGE), redis),
        Trial("redis empty", "Redis is restarted and has lost everything", restarted_empty, as_it_comes),
        Trial(
            "redis foreign",
            "Redis has garbage under our keys and those of another project; then somebody empties it",
            filled_with_garbage,
            as_it_comes,
        ),
        Trial("postgres killed", "PostgreSQL is killed", killed(postgres_of), postgres),
        Trial("postgres frozen", "PostgreSQL is stopped with SIGSTOP", frozen(postgres_of), postgres),
        Trial(
            "postgres silent",
            "PostgreSQL accepts connections and never replies",
            on_the_way(way_to_postgres, Fault.SILENT),
            postgres,
        ),
        Trial(
            "model corrupt",
            "a model with a damaged file is promoted",
            promoted(lambda world: world.bad_models.corrupt),
            Promise(model=model),
        ),
        Trial(
            "model slow",
            f"a model that takes {SLOW_S * 1e3:g} ms for a slate is promoted",
            promoted(lambda world: world.bad_models.slow),
            Promise(),
        ),
        Trial(
            "worker killed",
            "one of the workers is killed",
            worker_killed,
            Promise(errors_share=0.001, shed_share=1.0),
        ),
        Trial(
            "overload",
            f"{OVERLOAD:g} times the capacity is asked for",
            overloaded,
            Promise(shed_share=1.0, recovery_s=1.0),
        ),
        Trial(
            "all down, restart",
            "PostgreSQL and Redis are killed and the service is restarted without them",
            restarted_with_everything_down,
            redis,
        ),
    )


def run_serving_gameday(
    plan: ServingPlan, folder: Path, with_kafka: bool, say: Callable[[str], None]
) -> ServingReport:
    """All phases on one stack under `folder`.

    `with_kafka`: with a broker that goes away in the last one, if it is to be had.

    Raises:
        GamedayFailed: the stack did not come up.
    """
    say("A stack is made, with a catalog, events and a model.")
    broker = _broker(folder / "kafka", plan.broker_kind, say) if with_kafka else None
    with serving_world(folder, plan.seed, broker) as world:
        world.measure(plan.capacity_s, plan.load_share)
        say(f"It gives {world.capacity_rps:.0f} slates/s; {world.rate:.0f} are asked for.")
        report = ServingReport(plan.seed, world.capacity_rps, world.rate)
        began_s = time.perf_counter()
        world.start_load()
        time.sleep(plan.quiet_s + ON_THE_WAY_S)
        for trial in trials(world.model):
            trial = replace(trial, promise=trial.promise.with_patience(plan.patience))
            say(f"{trial.name}: {trial.fault}")
            phase = _play(plan, world, trial)
            _add_figures(phase, world)
            report.phases.append(phase)
        if broker is not None:
            report.phases.append(_play_kafka(plan, world, KafkaSide(world, broker), say))
        world.stop_load()
        report.answers = world.load.answers(began_s)
    return report


def _play(plan: ServingPlan, world: World, trial: Trial) -> Phase:
    now_s = time.perf_counter()
    moments = Moments(before_s=now_s - plan.quiet_s, began_s=now_s)
    with trial.block(world, moments):
        time.sleep(plan.fault_s)
    moments.over_s = moments.over_s or time.perf_counter()
    ended = world.revive()
    _wait_until_well(plan, world, trial.promise, moments)
    ended += world.revive()
    answers = world.load.answers(moments.before_s)
    phase = judge(trial.name, trial.fault, trial.promise, moments, answers, world.watch.probes)
    phase.broken += [f"{name} has ended" for name in ended]
    return phase


def _wait_until_well(plan: ServingPlan, world: World, promise: Promise, moments: Moments) -> None:
    """Until all has been well for a while, or that is given up; sets when the phase ends."""
    from_s = moments.recovering_from_s
    limit_s = max(from_s, moments.over_s) + promise.recovery_s + PATIENCE_S
    while True:
        time.sleep(POLL_S)
        moments.until_s = time.perf_counter() - ON_THE_WAY_S
        quiet_s = moments.until_s - moments.over_s
        if moments.until_s > limit_s:
            return
        if quiet_s < plan.quiet_s:
            continue
        recovered_s = recovered_after_s(
            from_s, moments.until_s, world.load.answers(from_s), world.watch.probes, promise.dependency
        )
        if recovered_s is not None and from_s + recovered_s <= moments.until_s - plan.quiet_s:
            return


def _add_figures(phase: Phase, world: World) -> None:
    """What is judged of some phases only."""
    if phase.name == "model corrupt" and not world.is_corrupt_refused:
        phase.broken.append("`propositions models promote` did not refuse it")
    if phase.name == "overload":
        asked = [p for p in world.watch.probes if phase.moments.began_s <= p.at_s < phase.moments.over_s]
        unanswered = sum(probe.status != 200 for probe in asked)
        phase.figures = {"probes": len(asked), "probes_unanswered": unanswered}
        if not asked or unanswered:
            phase.broken.append(
                f"{unanswered} of {len(asked)} probes of /health and /metrics were not answered"
            )


def _play_kafka(plan: ServingPlan, world: World, kafka: KafkaSide, say: Callable[[str], None]) -> Phase:
    promise = Promise().with_patience(plan.patience)
    trial = Trial("kafka gone", f"{kafka.broker.name} {kafka.fault}", kafka.gone, promise)
    say(f"{trial.name}: {trial.fault}")
    with kafka.events():
        time.sleep(plan.quiet_s + ON_THE_WAY_S)
        phase = _play(plan, world, trial)
    kafka.judge(phase)
    return phase


def _broker(folder: Path, kind: str | None, say: Callable[[str], None]) -> Broker | None:
    folder.mkdir(parents=True)
    try:
        return find_broker(folder, kind)[0]
    except ConfigurationError as error:
        say(f"Nothing is tried with a Kafka broker: {error}")
        return None
