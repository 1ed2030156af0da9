"""What things cost, as `make bench` measures it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from app.domain.errors import ConfigurationError


def _measured_by(section: str) -> Any:
    """A cost that this section of the benchmark leaves."""
    return field(metadata={"section": section})


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Named and in units as in the benchmark's `summary.json`; all are positive.

    A request is a `POST /suggest` that no kept slate answers; its decision is logged. `cpu_ms_per_log_event` is that
    of a `POST /log_event` with one event, `cpu_ms_per_further_event` what each further event of its batch adds.
    `catalog_cost_ratio` is how much more a request costs at a million propositions than at a thousand.
    """

    cpu_ms_per_request: float = _measured_by("rows")
    redis_cpu_ms_per_request: float = _measured_by("rows")
    postgres_cpu_ms_per_request: float = _measured_by("rows")
    cpu_ms_per_log_event: float = _measured_by("rows")
    cpu_ms_per_further_event: float = _measured_by("rows")
    catalog_cost_ratio: float = _measured_by("growth")
    largest_catalog_memory_mb_per_worker: float = _measured_by("growth")
    projector_events_per_s: float = _measured_by("projection")
    projector_one_slot_events_per_s: float = _measured_by("projection")
    intake_cpu_ms_per_event: float = _measured_by("projection")
    log_events_per_s: float = _measured_by("projection")
    postgres_cpu_ms_per_event: float = _measured_by("projection")
    redis_cpu_ms_per_event: float = _measured_by("projection")
    kafka_bytes_per_event: float = _measured_by("projection")
    postgres_bytes_per_event: float = _measured_by("projection")
    postgres_wal_bytes_per_event: float = _measured_by("projection")
    postgres_page_writes_per_event: float = _measured_by("projection")
    postgres_bytes_per_decision: float = _measured_by("projection")
    postgres_wal_bytes_per_decision: float = _measured_by("projection")
    postgres_page_writes_per_decision: float = _measured_by("projection")
    redis_bytes_per_kept_slate: float = _measured_by("projection")
    redis_rows_per_user: float = _measured_by("projection")
    redis_bytes_per_user: float = _measured_by("projection")
    redis_bytes_per_proposition: float = _measured_by("projection")
    materialized_rows_per_s: float = _measured_by("materialize")


def read_costs(path: Path) -> Costs:
    """The costs in a file as `make bench` leaves it; what else is in there does not matter.

    Raises:
        ConfigurationError: there is no such file, or it lacks costs; says which, and what measures them.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path} is not there: run `make bench`, or name another file with --costs"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} holds no object of costs")
    lacking = [cost for cost in fields(Costs) if not _is_cost(found.get(cost.name))]
    if lacking:
        raise ConfigurationError("\n".join(f"{path} has no {_how_to_measure(cost)}" for cost in lacking))
    return Costs(**{cost.name: float(found[cost.name]) for cost in fields(Costs)})


def sections() -> Mapping[str, str]:
    """Which section of the benchmark leaves a cost, by its name."""
    return {cost.name: cost.metadata["section"] for cost in fields(Costs)}


def _is_cost(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _how_to_measure(cost: Any) -> str:
    return f"{cost.name}: `make bench ONLY={cost.metadata['section']}` measures it"
