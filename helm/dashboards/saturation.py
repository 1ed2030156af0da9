"""What runs out, and what keeps workers from answering."""

from helm.dashboards.panels import Query, graph
from helm.dashboards.promql import or_zero, rate, ratio, web


def saturation():
    pools = ratio(
        "propositions_pool_connections_in_use" + web(), "propositions_pool_connections_limit" + web()
    )
    queue = ratio(
        "propositions_decision_queue_length" + web(), "propositions_decision_queue_capacity" + web()
    )
    memory = ratio("propositions_worker_resident_bytes" + web(), "propositions_memory_limit_bytes" + web())
    open_files = ratio(
        "propositions_worker_open_descriptors" + web(), "propositions_worker_descriptors_limit" + web()
    )
    free = ratio("propositions_disk_free_bytes" + web(), "propositions_disk_size_bytes" + web())
    changes = rate("propositions_breaker_changes_total" + web('state="opened"'), by="dependency")
    return (
        _gauge(
            "Lag of the event loop",
            "How long requests wait before a worker so much as sees them, the worst of a machine's workers. From an eighth of the "
            "deadline on (10 ms) slates are ranked by the rules, from half of it on (40 ms) requests are shed: add workers or machines.",
            Query("propositions_event_loop_lag_seconds" + web(), "{{instance}}"),
            unit="s",
            limit=0.04,
        ),
        _gauge(
            "Requests under way, and waiting",
            "Under way in all workers, and suggestions that wait for their turn to be ranked. If few wait and many are under way, a "
            "store is slow.",
            Query("propositions_requests_in_progress" + web(), "under way {{instance}}"),
            Query("propositions_rankings_waiting" + web(), "wait for their turn {{instance}}"),
            unit="none",
        ),
        _gauge(
            "Shed requests",
            "Refused with 503 because they would have waited too long.",
            Query(
                or_zero(rate("propositions_requests_shed_total" + web(), by="route"), "route", "/suggest"),
                "{{route}}",
            ),
            unit="reqps",
        ),
        _gauge(
            "Breakers that opened",
            "Per second. One that opens again and again has a dependency that is slow rather than down.",
            Query(or_zero(changes, "dependency"), "{{dependency}}"),
            unit="ops",
        ),
        _gauge(
            "Connections in use",
            "Share of each pool, over all workers of a machine. At 100 % requests wait for a free one, or go without.",
            Query(pools, "{{pool}} {{instance}}"),
            unit="percentunit",
            limit=0.9,
        ),
        _gauge(
            "Decisions that wait to be stored",
            "Share of the queue. When it is full, decisions are dropped and training has less to learn from; nobody waits for it.",
            Query(queue, "{{instance}}"),
            unit="percentunit",
            limit=0.9,
        ),
        _gauge(
            "Memory",
            "Of all workers together, as a share of what the machine or container has. What they share counts for each.",
            Query(memory, "{{instance}}"),
            unit="percentunit",
            limit=0.85,
        ),
        _gauge(
            "Open descriptors",
            "Of the worker that has the most, as a share of what it may open: files and connections.",
            Query(open_files, "{{instance}}"),
            unit="percentunit",
            limit=0.8,
        ),
        _gauge(
            "Disk in use",
            "Share of the disk with DATA_DIR. On a full one events have no spool to go to when PostgreSQL is down, and snapshots stay "
            "as they are.",
            Query(f"1 - {free}", "{{instance}}"),
            unit="percentunit",
            limit=0.95,
        ),
        _gauge(
            "Workers",
            "Alive, by machine. One that is gone is started again within seconds.",
            Query("propositions_workers" + web(), "{{instance}}"),
            unit="none",
        ),
        _gauge(
            "Since the youngest worker started",
            "Falls to zero when a worker starts. Nobody deployed anything? Then look into the logs for why it died.",
            Query("time() - propositions_started_timestamp_seconds" + web(), "{{instance}}"),
            unit="s",
        ),
        _gauge(
            "Age of the snapshot",
            "Since the keeper last found catalog, counters and keys current. Over some seconds it hangs or cannot reach PostgreSQL: "
            "changed propositions and revoked keys go unnoticed.",
            Query("propositions_snapshot_age_seconds" + web(), "{{instance}}"),
            unit="s",
            limit=60,
        ),
    )


def _gauge(title: str, description: str, *queries: Query, unit: str, limit: float | None = None):
    return graph(title, description, *queries, unit=unit, limit=limit, width=6)
