"""How full everything is: gauges that have to be looked for, set every few seconds beside the requests.

All are of living workers only. Where each worker has a part of a whole, `/metrics` shows the sum; where all look at
the same thing, what one of them saw last.
"""

from functools import partial

from prometheus_client import CollectorRegistry, Gauge


class SaturationMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        parts = partial(Gauge, registry=registry, multiprocess_mode="livesum")
        worst = partial(Gauge, registry=registry, multiprocess_mode="livemax")
        shared = partial(Gauge, registry=registry, multiprocess_mode="livemostrecent")
        self.requests_in_progress = parts("propositions_requests_in_progress", "Requests under way.")
        self.rankings_waiting = parts(
            "propositions_rankings_waiting", "Suggestions that wait for their turn to be ranked."
        )
        self.event_loop_lag_s = worst(
            "propositions_event_loop_lag_seconds",
            "How late the last request of a round of the event loop was handled, the worst of the last seconds.",
        )
        self.decision_queue_length = parts(
            "propositions_decision_queue_length", "Decisions that wait to be stored."
        )
        self.decision_queue_capacity = parts(
            "propositions_decision_queue_capacity", "How many decisions may wait, over all workers."
        )
        self.connections_in_use = parts(
            "propositions_pool_connections_in_use", "Connections in use.", ["pool"]
        )
        self.connections_limit = parts(
            "propositions_pool_connections_limit", "How many connections there may be.", ["pool"]
        )
        self.model_active = parts(
            "propositions_model_active", "Workers that serve with this version of the model.", ["version"]
        )
        self.model_trained_at_s = shared(
            "propositions_model_trained_timestamp_seconds", "When the active model was trained."
        )
        self.catalog_propositions = shared(
            "propositions_catalog_propositions", "Propositions in the snapshot."
        )
        self.snapshot_age_s = shared(
            "propositions_snapshot_age_seconds",
            "Time since the keeper last found the snapshot current or renewed it.",
        )
        self.spool_capacity_bytes = shared(
            "propositions_spool_capacity_bytes", "Bytes of events that may wait on local disk."
        )
        self.workers = parts("propositions_workers", "Workers alive.")
        self.resident_bytes = parts(
            "propositions_worker_resident_bytes", "Resident memory of all workers together."
        )
        self.open_descriptors = worst(
            "propositions_worker_open_descriptors", "Open file descriptors, the most of all workers."
        )
        self.descriptors_limit = worst(
            "propositions_worker_descriptors_limit", "How many file descriptors a worker may open."
        )
        self.memory_limit_bytes = shared(
            "propositions_memory_limit_bytes", "Memory that this machine or container has."
        )
        self.disk_free_bytes = shared(
            "propositions_disk_free_bytes", "Free space of the disk with the data folder."
        )
        self.disk_size_bytes = shared("propositions_disk_size_bytes", "Size of that disk.")
        self.started_at_s = worst(
            "propositions_started_timestamp_seconds", "When the youngest worker started."
        )
