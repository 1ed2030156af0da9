"""What happens to events, and how long they are kept."""

from pydantic import BaseModel, Field


class EventSettings(BaseModel):
    """Taking in, folding and keeping."""

    event_primary_timeout_ms: int = Field(
        100,
        ge=1,
        le=60_000,
        description="Milliseconds that an event waits for PostgreSQL (or Kafka) before it goes to the spool on local "
        "disk.",
    )
    spool_max_bytes: int = Field(
        268_435_456,
        ge=4_096,
        description="Bytes of events that may wait on local disk while PostgreSQL (or Kafka) is down; beyond, events "
        "are refused for now.",
    )

    project_poll_s: float = Field(
        0.2, gt=0, description="Seconds between looks for new events when following."
    )
    project_batch_events: int = Field(5_000, ge=1, description="Events that the projector folds per commit.")
    project_metrics_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port on `HOST` where `propositions project --follow` serves its Prometheus metrics. 0: nowhere.",
    )

    event_retention_days: int = Field(
        730,
        ge=0,
        le=36_500,
        description="Days for which `propositions maintain` keeps events, their ids and the feature rows that "
        "go with them; older events are not taken in any more. 0: for ever.",
    )
    decision_retention_days: int = Field(
        730,
        ge=0,
        le=36_500,
        description="Days for which `propositions maintain` keeps logged decisions. 0: for ever.",
    )
    forgotten_user_days: int = Field(
        365,
        ge=0,
        le=36_500,
        description="Days for which late copies of the events of a forgotten user are recognized and dropped, "
        "wherever they waited. 0: for ever.",
    )
