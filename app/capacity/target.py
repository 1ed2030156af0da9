"""What a service is to be sized for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The load at its peak, what machines there are, and how much of them may be used.

    `requests_per_s` are slates that no kept one answers. `events_per_call` is how many events clients send together.
    `utilisation` is the share of a core, and of what one process or log takes, that is planned with; `redis_fill` that
    of a node's memory. `mean_load` is the mean over a day as a share of the peak. A slate is kept for `kept_s`,
    `SUGGEST_CACHE_TTL_S` and a minute. One write of the log to PostgreSQL's disk takes `wal_write_kib`. `postgres_cores`
    is the largest server that can be had.
    """

    users: int
    propositions: int
    requests_per_s: float
    events_per_request: float = 1.0
    events_per_call: float = 10.0
    utilisation: float = 0.6
    mean_load: float = 0.5
    cores_per_pod: int = 4
    spare_pods: int = 1
    kept_s: float = 90.0
    redis_node_gb: float = 32.0
    redis_fill: float = 0.7
    postgres_cores: int = 64
    database_pool_size: int = 5
    wal_write_kib: float = 16.0
    event_days: int = 730
    decision_days: int = 730
    kafka_partition_mb_per_s: float = 10.0
    kafka_hours: float = 24.0
    kafka_replication: int = 3

    @property
    def events_per_s(self) -> float:
        return self.requests_per_s * self.events_per_request
