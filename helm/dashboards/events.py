"""Does what users do arrive, is any of it lost, and how late does it count?"""

from grafana_foundation_sdk.models import dashboard as models

from helm.dashboards.boards import LOGS_OF_ERRORS, PROJECTOR_VARIABLES, WEB_VARIABLES, board
from helm.dashboards.objectives import FRESHNESS_S, HTTP, failures, requests
from helm.dashboards.panels import Limits, Query, figure, graph
from helm.dashboards.promql import (
    NOW,
    WINDOW,
    increase,
    or_zero,
    projector,
    quantile,
    rate,
    ratio,
    web,
)

SLOTS = 9
_EVENTS = "propositions_events_total"
_UNREADABLE = "propositions_spool_unreadable_bytes_total"


def events() -> models.Dashboard:
    return board(
        "propositions-events",
        "Events pipeline",
        "From the request to the feature: does what users do arrive, is any of it lost, and how late does it count?",
        [*WEB_VARIABLES, *PROJECTOR_VARIABLES],
        {
            "Is anything lost or late": _now(),
            "Taking events": _intake(),
            "Spool and Kafka: what waits": _waiting(),
            "From event to feature": _projection(),
            "Losses": _losses(),
        },
    )


def _now():
    spool = ratio("propositions_spool_bytes" + web(), "propositions_spool_capacity_bytes" + web())
    return (
        figure(
            "Events not taken",
            "Share of the requests to /log_event answered with a 5xx, or shed, in the last five minutes. Lost, unless clients send them "
            "again.",
            ratio(failures("/log_event", NOW), requests("/log_event", NOW)),
            "percentunit",
            Limits(0.001, 0.01),
            decimals=2,
        ),
        figure(
            "Spool in use",
            "Of the machine with the fullest. Above zero PostgreSQL (or Kafka) did not take events; at 100 % they are refused.",
            f"max({spool})",
            "percentunit",
            Limits(0.001, 0.5),
            decimals=1,
        ),
        figure(
            "Kafka's lag",
            "Messages that have still to be brought into PostgreSQL. They are safe, but count for nothing yet.",
            or_zero("sum(propositions_kafka_lag" + projector() + ")"),
            "short",
            Limits(10_000, 100_000),
            decimals=0,
        ),
        figure(
            "Projector's delay",
            "Age of the oldest event that is known to wait to be folded into features.",
            "max(propositions_projection_delay_seconds" + projector() + ")",
            "s",
            Limits(5, 60),
        ),
        figure(
            "Freshness, p95",
            "95 of 100 events counted in the online store this long after their receipt. Objective: a second.",
            quantile(0.95, "propositions_freshness_seconds", projector(), window=NOW),
            "s",
            Limits(FRESHNESS_S, 5),
        ),
        figure(
            "Slots that are folded",
            f"Of {SLOTS}. Fewer: no projector runs for the rest, whose features stand still.",
            "sum(propositions_projection_slots" + projector() + ")",
            "none",
            Limits(SLOTS, SLOTS, is_floor=True),
            decimals=0,
        ),
    )


def _intake():
    return (
        graph(
            "Events by outcome and place",
            "Per second. `spool` instead of `postgres` or `kafka`: the primary log is down or slow. Rejected ones are wrong in themselves.",
            Query(rate(_EVENTS + web(), by="outcome, stored_in"), "{{outcome}} {{stored_in}}"),
            unit="ops",
            is_stacked=True,
        ),
        graph(
            "Recorded events by type",
            "Per second. One type that stops while the others go on: a client no longer sends it.",
            Query(rate("propositions_event_types_total" + web(), by="event_type"), "{{event_type}}"),
            unit="ops",
            is_stacked=True,
        ),
        graph(
            "Rejected and repeated",
            "Share of events that were rejected for what is in them, or were there already. Repeats are harmless; many of them say that "
            "clients time out.",
            Query(
                ratio(or_zero(rate(_EVENTS + web('outcome="rejected"'))), rate(_EVENTS + web())), "rejected"
            ),
            Query(
                ratio(or_zero(rate(_EVENTS + web('outcome="duplicate"'))), rate(_EVENTS + web())), "repeated"
            ),
            unit="percentunit",
        ),
        graph(
            "Latency of POST /log_event",
            "Of good answers. An event waits for its commit; from EVENT_PRIMARY_TIMEOUT_MS (100 ms) on it goes to the spool.",
            *(
                Query(quantile(q, HTTP, web('url_rule="/log_event"', 'status="202"')), f"p{100 * q:g}")
                for q in (0.5, 0.95, 0.99)
            ),
            unit="s",
            limit=0.1,
        ),
        graph(
            "Requests with events that failed",
            "Share of the requests to /log_event answered with a 5xx, or shed.",
            Query(ratio(failures("/log_event", WINDOW), requests("/log_event", WINDOW)), "not taken"),
            unit="percentunit",
            links=[LOGS_OF_ERRORS],
        ),
        graph(
            "Breaker before the event log",
            "0 closed, 1 half open, 2 open: events go to the spool.",
            Query(
                "max by (instance) (propositions_breaker_state" + web('dependency="events"') + ")",
                "{{instance}}",
            ),
            unit="none",
            most=2,
        ),
    )


def _waiting():
    return (
        graph(
            "Events in the spool",
            "On each machine's disk. They drain by themselves when PostgreSQL (or Kafka) is back; if they do not, look at the logs of "
            "the drain.",
            Query("propositions_spool_events" + web(), "{{instance}}"),
            unit="short",
            width=6,
        ),
        graph(
            "Bytes in the spool",
            "The dashed line is where events are refused (SPOOL_MAX_BYTES).",
            Query("propositions_spool_bytes" + web(), "{{instance}}"),
            Query("min(propositions_spool_capacity_bytes" + web() + ")", "room"),
            unit="bytes",
            width=6,
        ),
        graph(
            "Drained",
            "Events per second that got from the spool to where they belong.",
            Query(rate("propositions_spool_drained_total" + web(), by="instance"), "{{instance}}"),
            unit="ops",
            width=6,
        ),
        graph(
            "Decisions that wait to be stored",
            "They are no events and may be dropped: training has less to learn from then.",
            Query("propositions_decision_queue_length" + web(), "{{instance}}"),
            unit="short",
            width=6,
        ),
        graph(
            "Kafka: lag by partition",
            "Messages that have still to be brought into PostgreSQL. One partition alone: its projector is gone, or a message holds it up.",
            Query(
                or_zero("max by (partition) (propositions_kafka_lag" + projector() + ")", "partition"),
                "{{partition}}",
            ),
            unit="short",
            width=6,
        ),
        graph(
            "Kafka: messages done with",
            "Per second. `dead` ones could not be read and lie in the topic for dead letters.",
            Query(
                or_zero(rate("propositions_kafka_consumed_total" + projector(), by="outcome"), "outcome"),
                "{{outcome}}",
            ),
            unit="ops",
            width=6,
        ),
        graph(
            "Kafka: waiting for acknowledgement",
            "Messages of web workers. Steadily above zero: brokers are slow or gone.",
            Query(
                or_zero("sum by (instance) (propositions_kafka_queued" + web() + ")", "instance"),
                "{{instance}}",
            ),
            unit="short",
            width=6,
        ),
        graph(
            "Kafka: not acknowledged",
            "Per second, by reason. These events went to the spool.",
            Query(
                or_zero(rate("propositions_kafka_failures_total" + web(), by="reason"), "reason"),
                "{{reason}}",
            ),
            unit="ops",
            width=6,
        ),
    )


def _projection():
    freshness, batches = "propositions_freshness_seconds", "propositions_projection_batch_seconds"
    return (
        graph(
            "Folded events",
            "Per second, by part: counters, and what is visited together.",
            Query(rate("propositions_projected_events_total" + projector(), by="part"), "{{part}}"),
            unit="ops",
            width=6,
        ),
        graph(
            "Delay",
            "Age of the oldest event that is known to wait, of the hindmost projector.",
            Query("max by (part) (propositions_projection_delay_seconds" + projector() + ")", "{{part}}"),
            unit="s",
            width=6,
        ),
        graph(
            "Freshness of counters",
            "From the receipt of an event to the feature that counts it in the online store. Objective: a second.",
            *(
                Query(quantile(q, freshness, projector('part="counters"')), f"p{100 * q:g}")
                for q in (0.5, 0.95, 0.99)
            ),
            unit="s",
            limit=FRESHNESS_S,
            width=6,
        ),
        graph(
            "Freshness of co-visitation",
            "The same for users' last interactions and what is visited together, which are folded twice a second.",
            *(
                Query(quantile(q, freshness, projector('part="covisits"')), f"p{100 * q:g}")
                for q in (0.5, 0.95, 0.99)
            ),
            unit="s",
            width=6,
        ),
        graph(
            "Time of a batch, p95",
            "From its begin to its rows in both stores. Near a second at little load: PostgreSQL or Redis is slow.",
            Query(quantile(0.95, batches, projector(), by="part"), "{{part}}"),
            unit="s",
            width=6,
        ),
        graph(
            "Batches",
            "Per second, by part.",
            Query(rate(f"{batches}_count" + projector(), by="part"), "{{part}}"),
            unit="ops",
            width=6,
        ),
        graph(
            "Slots by projector",
            f"All together {SLOTS}. When a projector dies the others take over its slots within a second.",
            Query("sum by (instance) (propositions_projection_slots" + projector() + ")", "{{instance}}"),
            unit="none",
            is_stacked=True,
            limit=SLOTS,
            width=6,
        ),
        graph(
            "Rebuilds",
            "Replays of the whole log in the last hour. They follow an import of history, or a command.",
            Query(increase("propositions_rebuilds_total" + projector(), window="1h"), "replays"),
            unit="none",
            width=6,
        ),
    )


def _losses():
    return (
        graph(
            "Bytes of the spool that are no events",
            "In the last hour. `torn`: never acknowledged, no loss. `damaged` and `refused` were acknowledged and lie in spool/aside/.",
            Query(or_zero(increase(_UNREADABLE + web(), by="kind", window="1h"), "kind"), "{{kind}}"),
            unit="bytes",
        ),
        graph(
            "Dead letters",
            "Messages in the last hour that could not be read, and those that did not even reach the topic for them.",
            Query(
                or_zero(
                    increase("propositions_kafka_consumed_total" + projector('outcome="dead"'), window="1h")
                ),
                "dead",
            ),
            Query(
                or_zero(increase("propositions_kafka_failures_total" + projector(), window="1h")),
                "not acknowledged",
            ),
            unit="none",
        ),
        graph(
            "Dropped decisions",
            "In the last hour, because their queue was full: PostgreSQL is slow or down.",
            Query(increase("propositions_decisions_dropped_total" + web(), window="1h"), "dropped"),
            unit="none",
        ),
    )
