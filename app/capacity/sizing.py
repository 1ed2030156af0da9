"""How many of everything a target takes, by what things were measured to cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from app.capacity.costs import Costs
from app.capacity.sheet import Sheet, Step
from app.capacity.sheet import number as n
from app.capacity.target import Target
from app.features.slots import ALL_SLOTS

# Up to here a request costs what it does on the benchmark's own catalog.
SMALL_CATALOG = 5_000
MOST_PROCESSES = len(ALL_SLOTS)


@dataclass(frozen=True, slots=True)
class Limit:
    """What cannot grow by adding more of it: one installation takes `most`."""

    name: str
    wanted: float
    most: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.wanted <= self.most


@dataclass(frozen=True, slots=True)
class Capacity:
    """The answer: `needs` by name, how they came about, and whether one installation can do it at all."""

    needs: Mapping[str, float]
    steps: Sequence[Step]
    limits: Sequence[Limit]

    @property
    def installations(self) -> int:
        """How many it takes so that each stays within all limits, with the users divided among them."""
        return max(1, *(ceil(limit.wanted / limit.most) for limit in self.limits))


def size(target: Target, costs: Costs) -> Capacity:
    sheet = Sheet()
    pods, memory_gb = _web(sheet, target, costs)
    processes, projector_limit = _projector(sheet, target, costs)
    redis_needs = _redis(sheet, target, costs)
    postgres_needs, postgres_limits = _postgres(sheet, target, costs, pods, processes)
    needs = {
        "web_pods": pods,
        "web_memory_gb_per_pod": memory_gb,
        "projector_processes": processes,
        **redis_needs,
        **postgres_needs,
        **_kafka(sheet, target, costs, processes),
    }
    return Capacity(needs, sheet.steps, (projector_limit, *postgres_limits))


def _web(sheet: Sheet, t: Target, c: Costs) -> tuple[float, float]:
    """Pods, and the memory of each in GB."""
    sheet.begin("web")
    growth = c.catalog_cost_ratio if t.propositions > SMALL_CATALOG else 1.0
    slates = sheet.add(
        "slates",
        f"{n(t.requests_per_s)} requests/s * {n(c.cpu_ms_per_request)} ms * {n(growth)} for the catalog ÷ 1,000",
        t.requests_per_s * c.cpu_ms_per_request * growth / 1e3,
        "cores",
    )
    calls = sheet.add(
        "calls of /log_event",
        f"{n(t.requests_per_s)} requests/s * {n(t.events_per_request)} events ÷ {n(t.events_per_call)}",
        t.events_per_s / t.events_per_call,
        "calls/s",
    )
    further = t.events_per_call - 1
    events = sheet.add(
        "events",
        f"{n(calls)} calls/s * ({n(c.cpu_ms_per_log_event)} ms + {n(further)} * {n(c.cpu_ms_per_further_event)} ms)"
        " ÷ 1,000",
        calls * (c.cpu_ms_per_log_event + further * c.cpu_ms_per_further_event) / 1e3,
        "cores",
    )
    cores = sheet.add(
        "with room",
        f"({n(slates)} cores + {n(events)} cores) ÷ {n(t.utilisation)}",
        (slates + events) / t.utilisation,
        "cores",
    )
    pods = sheet.add(
        "pods",
        f"⌈{n(cores)} cores ÷ {t.cores_per_pod}⌉ + {t.spare_pods} to spare",
        ceil(cores / t.cores_per_pod) + t.spare_pods,
        "pods",
    )
    memory_gb = sheet.add(
        "memory of a pod",
        f"{t.cores_per_pod} workers * {n(c.largest_catalog_memory_mb_per_worker)} MB ÷ 1,000",
        t.cores_per_pod * c.largest_catalog_memory_mb_per_worker / 1e3,
        "GB",
    )
    return pods, memory_gb


def _projector(sheet: Sheet, t: Target, c: Costs) -> tuple[int, Limit]:
    """The fewest processes whose busiest one keeps up, at most one per slot."""
    all_us, alone_us = 1e6 / c.projector_events_per_s, 1e6 / c.projector_one_slot_events_per_s
    each_us = max(0.0, all_us - alone_us) / (MOST_PROCESSES - 1)

    def further_slots(processes: int) -> int:
        return ceil(MOST_PROCESSES / processes) - 1

    def busiest_us(processes: int) -> float:
        return alone_us + further_slots(processes) * each_us + c.intake_cpu_ms_per_event * 1e3 / processes

    enough = (
        k for k in range(1, MOST_PROCESSES + 1) if t.events_per_s * busiest_us(k) <= t.utilisation * 1e6
    )
    processes = next(enough, MOST_PROCESSES)

    sheet.begin("projector")
    sheet.add("an event, all slots", f"1,000,000 ÷ {n(c.projector_events_per_s)} events/s", all_us, "us")
    sheet.add("one slot", f"1,000,000 ÷ {n(c.projector_one_slot_events_per_s)} events/s", alone_us, "us")
    sheet.add(
        "each further slot", f"({n(all_us)} us - {n(alone_us)} us) ÷ {MOST_PROCESSES - 1}", each_us, "us"
    )
    busiest = sheet.add(
        f"the busiest of {processes}",
        f"{n(alone_us)} us + {further_slots(processes)} * {n(each_us)} us + {n(c.intake_cpu_ms_per_event)} ms * 1,000 ÷ {processes}",
        busiest_us(processes),
        "us",
    )
    sheet.add(
        "its load",
        f"{n(t.events_per_s)} events/s * {n(busiest)} us ÷ 1,000,000",
        t.events_per_s * busiest / 1e6,
        f"of 1; {n(t.utilisation)} is planned",
    )
    most = sheet.add(
        f"most, by {MOST_PROCESSES} processes",
        f"{n(t.utilisation)} * 1,000,000 ÷ {n(busiest_us(MOST_PROCESSES))} us",
        t.utilisation * 1e6 / busiest_us(MOST_PROCESSES),
        "events/s",
    )
    return processes, Limit(f"projector, {MOST_PROCESSES} slots", t.events_per_s, most, "events/s")


def _redis(sheet: Sheet, t: Target, c: Costs) -> Mapping[str, float]:
    sheet.begin("Redis")
    users = sheet.add(
        "users",
        f"{n(t.users)} * {n(c.redis_bytes_per_user)} bytes ÷ 1,000,000,000",
        t.users * c.redis_bytes_per_user / 1e9,
        "GB",
    )
    propositions = sheet.add(
        "propositions",
        f"{n(t.propositions)} * {n(c.redis_bytes_per_proposition)} bytes ÷ 1,000,000,000",
        t.propositions * c.redis_bytes_per_proposition / 1e9,
        "GB",
    )
    kept = sheet.add(
        "kept slates",
        f"{n(t.requests_per_s)} requests/s * {n(t.kept_s)} s * {n(c.redis_bytes_per_kept_slate)} bytes"
        " ÷ 1,000,000,000",
        t.requests_per_s * t.kept_s * c.redis_bytes_per_kept_slate / 1e9,
        "GB",
    )
    memory = sheet.add(
        "memory", f"{n(users)} GB + {n(propositions)} GB + {n(kept)} GB", users + propositions + kept, "GB"
    )
    by_memory = sheet.add(
        "nodes by memory",
        f"⌈{n(memory)} GB ÷ ({n(t.redis_node_gb)} GB * {n(t.redis_fill)})⌉",
        ceil(memory / (t.redis_node_gb * t.redis_fill)),
        "nodes",
    )
    cores = sheet.add(
        "commands",
        f"({n(t.requests_per_s)} requests/s * {n(c.redis_cpu_ms_per_request)} ms"
        f" + {n(t.events_per_s)} events/s * {n(c.redis_cpu_ms_per_event)} ms) ÷ 1,000",
        (t.requests_per_s * c.redis_cpu_ms_per_request + t.events_per_s * c.redis_cpu_ms_per_event) / 1e3,
        "cores",
    )
    by_cores = sheet.add(
        "nodes by cores, one each",
        f"⌈{n(cores)} cores ÷ {n(t.utilisation)}⌉",
        ceil(cores / t.utilisation),
        "nodes",
    )
    nodes = max(by_memory, by_cores)
    sheet.add(
        "lost, and materialized again",
        f"{n(t.users)} users * {n(c.redis_rows_per_user)} rows ÷ {n(c.materialized_rows_per_s)} rows/s ÷ 3,600",
        t.users * c.redis_rows_per_user / c.materialized_rows_per_s / 3_600,
        "hours",
    )
    return {"redis_nodes": nodes, "redis_memory_gb": memory}


def _postgres(
    sheet: Sheet, t: Target, c: Costs, pods: float, processes: int
) -> tuple[Mapping[str, float], Sequence[Limit]]:
    sheet.begin("PostgreSQL")

    def both(per_decision: float, per_event: float, unit: str) -> tuple[float, str]:
        """What decisions and events cost a second, and that as text."""
        return (
            t.requests_per_s * per_decision + t.events_per_s * per_event,
            f"({n(t.requests_per_s)} decisions/s * {n(per_decision)} {unit}"
            f" + {n(t.events_per_s)} events/s * {n(per_event)} {unit})",
        )

    busy_ms, text = both(c.postgres_cpu_ms_per_request, c.postgres_cpu_ms_per_event, "ms")
    cores = sheet.add(
        "cores",
        f"{text} ÷ 1,000 ÷ {n(t.utilisation)}",
        busy_ms / 1e3 / t.utilisation,
        "cores",
    )
    wal_bytes, text = both(c.postgres_wal_bytes_per_decision, c.postgres_wal_bytes_per_event, "bytes")
    wal = sheet.add("write-ahead log", f"{text} ÷ 1,000,000", wal_bytes / 1e6, "MB/s")
    pages, text = both(c.postgres_page_writes_per_decision, c.postgres_page_writes_per_event, "writes")
    pages = sheet.add("pages written", text, pages, "IO/s")
    iops = sheet.add(
        "all writes",
        f"{n(pages)} IO/s + {n(wal)} MB/s * 1,000,000 ÷ ({n(t.wal_write_kib)} KiB * 1,024)",
        pages + wal_bytes / (t.wal_write_kib * 1_024),
        "IO/s",
    )
    seconds = f"86,400 s * {n(t.mean_load)}"
    decisions = sheet.add(
        "decisions of a day",
        f"{n(t.requests_per_s)} decisions/s * {n(c.postgres_bytes_per_decision)} bytes * {seconds} ÷ 1,000,000,000",
        t.requests_per_s * c.postgres_bytes_per_decision * 86_400 * t.mean_load / 1e9,
        "GB",
    )
    events = sheet.add(
        "events and features of a day",
        f"{n(t.events_per_s)} events/s * {n(c.postgres_bytes_per_event)} bytes * {seconds} ÷ 1,000,000,000",
        t.events_per_s * c.postgres_bytes_per_event * 86_400 * t.mean_load / 1e9,
        "GB",
    )
    storage = sheet.add(
        "kept",
        f"({n(decisions)} GB * {t.decision_days} days + {n(events)} GB * {t.event_days} days) ÷ 1,000",
        (decisions * t.decision_days + events * t.event_days) / 1e3,
        "TB",
    )
    connections = sheet.add(
        "connections at most",
        f"({n(pods)} pods * ({t.cores_per_pod} workers + 1 keeper) + {processes} projectors)"
        f" * {t.database_pool_size} connections",
        (pods * (t.cores_per_pod + 1) + processes) * t.database_pool_size,
        "connections",
    )
    most = sheet.add(
        "most, by one log",
        f"{n(t.utilisation)} * {n(c.log_events_per_s)} events/s",
        t.utilisation * c.log_events_per_s,
        "events/s",
    )
    needs = {
        "postgres_cores": cores,
        "postgres_iops": iops,
        "postgres_wal_mb_per_s": wal,
        "postgres_gb_per_day": decisions + events,
        "postgres_tb": storage,
        "postgres_connections": connections,
    }
    return needs, (
        Limit("PostgreSQL, one log of events", t.events_per_s, most, "events/s"),
        Limit("PostgreSQL, one server", cores, t.postgres_cores, "cores"),
    )


def _kafka(sheet: Sheet, t: Target, c: Costs, processes: int) -> Mapping[str, float]:
    sheet.begin("Kafka")
    rate = sheet.add(
        "events",
        f"{n(t.events_per_s)} events/s * {n(c.kafka_bytes_per_event)} bytes ÷ 1,000,000",
        t.events_per_s * c.kafka_bytes_per_event / 1e6,
        "MB/s",
    )
    by_bytes = sheet.add(
        "partitions by bytes",
        f"⌈{n(rate)} MB/s ÷ {n(t.kafka_partition_mb_per_s)} MB/s⌉",
        ceil(rate / t.kafka_partition_mb_per_s),
        "partitions",
    )
    # They cannot be added later without moving users: twice what is needed now.
    partitions = sheet.add(
        f"twice, and at least one for each of {processes} projectors",
        f"2 * {max(by_bytes, processes)} partitions",
        2 * max(by_bytes, processes),
        "partitions",
    )
    disk = sheet.add(
        "disk of all brokers",
        f"{n(rate)} MB/s * 3,600 s * {n(t.kafka_hours)} hours * {n(t.mean_load)} * {t.kafka_replication} copies ÷ 1,000",
        rate * 3_600 * t.kafka_hours * t.mean_load * t.kafka_replication / 1e3,
        "GB",
    )
    return {"kafka_partitions": partitions, "kafka_disk_gb": disk}
