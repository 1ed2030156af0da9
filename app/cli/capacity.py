"""`propositions capacity`: what a load takes, by what `make bench` measured."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.capacity.sheet import number
from app.capacity.target import Target

if TYPE_CHECKING:
    from app.capacity.sizing import Capacity, Limit

COSTS = Path("build/bench/summary.json")
_DEFAULT: dict[str, Any] = {field.name: field.default for field in fields(Target)}

commands = typer.Typer()


def _option(help_text: str, **limits: Any) -> Any:
    return typer.Option(help=help_text, **limits)


@commands.command()
def capacity(
    users: Annotated[int, _option("Users that are known.", min=1)],
    propositions: Annotated[int, _option("Propositions in the catalog.", min=1)],
    requests_per_s: Annotated[float, _option("Slates a second at the peak that are ranked anew.", min=0.001)],
    events_per_request: Annotated[
        float, _option("Events that come of a slate, on average.", min=0)
    ] = _DEFAULT["events_per_request"],
    events_per_call: Annotated[float, _option("Events that clients send in one request.", min=1)] = _DEFAULT[
        "events_per_call"
    ],
    utilisation: Annotated[
        float, _option("Share of cores, and of what one process takes, to plan with.", min=0.01, max=1)
    ] = _DEFAULT["utilisation"],
    mean_load: Annotated[
        float, _option("Mean over a day as a share of the peak.", min=0.01, max=1)
    ] = _DEFAULT["mean_load"],
    cores_per_pod: Annotated[int, _option("Cores, and workers, of a web pod.", min=1)] = _DEFAULT[
        "cores_per_pod"
    ],
    spare_pods: Annotated[int, _option("Web pods that may be lost.", min=0)] = _DEFAULT["spare_pods"],
    kept_s: Annotated[
        float, _option("Seconds that a slate stays in Redis: SUGGEST_CACHE_TTL_S and 60.", min=0)
    ] = _DEFAULT["kept_s"],
    redis_node_gb: Annotated[float, _option("Memory of a Redis node in GB.", min=0.1)] = _DEFAULT[
        "redis_node_gb"
    ],
    redis_fill: Annotated[float, _option("Share of that to be filled.", min=0.01, max=1)] = _DEFAULT[
        "redis_fill"
    ],
    postgres_cores: Annotated[
        int, _option("Cores of the largest PostgreSQL that you can have.", min=1)
    ] = _DEFAULT["postgres_cores"],
    database_pool_size: Annotated[int, _option("DATABASE_POOL_SIZE.", min=1)] = _DEFAULT[
        "database_pool_size"
    ],
    wal_write_kib: Annotated[
        float, _option("KiB of its log that count as one write to its disk.", min=1)
    ] = _DEFAULT["wal_write_kib"],
    event_days: Annotated[int, _option("EVENT_RETENTION_DAYS.", min=1)] = _DEFAULT["event_days"],
    decision_days: Annotated[int, _option("DECISION_RETENTION_DAYS.", min=1)] = _DEFAULT["decision_days"],
    kafka_partition_mb_per_s: Annotated[
        float, _option("MB a second that one partition is to take.", min=0.1)
    ] = _DEFAULT["kafka_partition_mb_per_s"],
    kafka_hours: Annotated[float, _option("Hours for which brokers keep events.", min=1)] = _DEFAULT[
        "kafka_hours"
    ],
    kafka_replication: Annotated[int, _option("KAFKA_REPLICATION.", min=1)] = _DEFAULT["kafka_replication"],
    installations: Annotated[
        int, _option("Independent installations that the users are divided among; figures are of one.", min=1)
    ] = 1,
    costs: Annotated[
        Path, _option("What things cost: the summary that `make bench` leaves.", dir_okay=False)
    ] = COSTS,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compute what a load takes: web pods, projectors, Redis, PostgreSQL and Kafka, with the arithmetic."""
    given = locals()  # options are named as the target's fields
    from app.capacity.costs import read_costs
    from app.capacity.sizing import size

    target = Target(
        **{
            **{name: given[name] for name in _DEFAULT},
            "users": ceil(users / installations),
            "requests_per_s": requests_per_s / installations,
        }
    )
    measured = read_costs(costs)
    answer = size(target, measured)
    if as_json:
        typer.echo(json.dumps(_as_object(target, answer, installations), indent=2))
    else:
        for line in _as_text(answer, installations):
            typer.echo(line)


def _as_object(target: Target, answer: "Capacity", installations: int) -> dict[str, Any]:
    return {
        "target": asdict(target),
        "installations": installations,
        "needs": answer.needs,
        "steps": [asdict(step) for step in answer.steps],
        "limits": [{**asdict(limit), "holds": limit.holds} for limit in answer.limits],
        "installations_needed": installations * answer.installations,
    }


def _as_text(answer: "Capacity", installations: int) -> Iterator[str]:
    if installations > 1:
        yield f"one of {installations} installations"
    width = max(len(step.name) for step in answer.steps)
    for part, steps in groupby(answer.steps, lambda step: step.part):
        yield part
        for step in steps:
            yield f"  {step.name:<{width}}  {step.arithmetic} = {number(step.value)} {step.unit}"
    yield "limits of one installation"
    for limit in answer.limits:
        yield f"  {limit.name:<{width}}  {_judged(limit)}"
    if answer.installations > 1:
        yield f"too much for one installation: divide the users among {installations * answer.installations}"


def _judged(limit: "Limit") -> str:
    verdict = "holds" if limit.holds else "TOO MUCH"
    return f"{number(limit.wanted)} of {number(limit.most)} {limit.unit}: {verdict}"
