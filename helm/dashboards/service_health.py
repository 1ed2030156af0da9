"""Are users hurt, since when, by what?"""

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from helm.dashboards.boards import LOGS_OF_ERRORS, WEB_VARIABLES, board
from helm.dashboards.objectives import (
    AVAILABILITY,
    HTTP,
    SLATE_S,
    SLATES_IN_TIME,
    SLOW_PAGE_BURN,
    failures,
    late_slates,
    requests,
    slates,
)
from helm.dashboards.panels import (
    FULL_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Column,
    Limits,
    Query,
    figure,
    figures_by,
    graph,
    states,
)
from helm.dashboards.promql import NOW, WINDOW, or_zero, quantile, rate, ratio, ratio_or_zero, shares, web
from helm.dashboards.saturation import saturation

SUGGEST, LOG_EVENT = "/suggest", "/log_event"
OBJECTIVE_WINDOW = "$objective_window"
OBJECTIVE_VARIABLE = (
    dashboard.CustomVariable("objective_window")
    .label("Objectives over")
    .values("1d,7d,30d")
    .current(models.VariableOption(text="30d", value="30d"))
)
QUANTILES = (0.5, 0.95, 0.99)
BREAKER_STATES = {0: ("closed", GREEN), 1: ("half open", ORANGE), 2: ("open", RED)}
ALERT_STATES = {0: ("quiet", GREY), 1: ("fires", RED)}

_SLATES_TOTAL = "propositions_slates_total"
_ALERTS = 'ALERTS{alertstate="firing",severity!="info"}'


def service_health() -> models.Dashboard:
    return board(
        "propositions-service",
        "Service health",
        "Are users hurt, since when, and by what? Rate, errors, latency and saturation of the web workers.",
        [*WEB_VARIABLES, OBJECTIVE_VARIABLE],
        {
            "Are users hurt": _now(),
            "Since when, by what": _causes(),
            "Objectives": _objectives(),
            "Requests": _requests(),
            "Saturation": saturation(),
        },
    )


def _now():
    without_model = rate(_SLATES_TOTAL + web('level=~"2|3"'), window=NOW)
    return (
        figure(
            "Slates answered",
            "Share of the requests for slates that got one in the last five minutes; the others were answered with a 5xx, or shed "
            "because there was too much to do. Objective: 99.9 %.",
            f"1 - {ratio(failures(SUGGEST, NOW), requests(SUGGEST, NOW))}",
            "percentunit",
            Limits(AVAILABILITY, 0.99, is_floor=True),
            decimals=2,
        ),
        figure(
            "p99 of slates",
            "Of a hundred slates, 99 came faster in the last five minutes. Objective: 100 ms. Ranking itself stops at "
            "SUGGEST_DEADLINE_MS (80 ms): what is slower has waited; see the lag of the event loop below.",
            quantile(0.99, HTTP, web('url_rule="/suggest"', 'status="200"'), window=NOW),
            "s",
            Limits(0.08, SLATE_S),
        ),
        figure(
            "Slates without the model",
            "Share of slates by the rules (level 2) or the static list (level 3). Users see something, but less that suits them. "
            "Breakers, and the dashboard on ranking, say why.",
            ratio(or_zero(without_model), rate(_SLATES_TOTAL + web(), window=NOW)),
            "percentunit",
            Limits(0.01, 0.1),
            decimals=2,
        ),
        figure(
            "Events not taken",
            "Share of the requests to /log_event answered with a 5xx, or shed. These events are lost unless clients send them "
            "again. The dashboard on events has the rest.",
            ratio(failures(LOG_EVENT, NOW), requests(LOG_EVENT, NOW)),
            "percentunit",
            Limits(0.001, 0.01),
            decimals=2,
        ),
        figure(
            "Requests",
            "Answered per second, without those for health. If it falls and nothing else is red, look at what lies before the "
            "service: balancer, DNS, clients.",
            rate(f"{HTTP}_count" + web('url_rule!~"/health.*"'), window=NOW),
            "reqps",
        ),
        figure(
            "Alerts that fire",
            "Without those that are for information only.",
            or_zero(f"count({_ALERTS})"),
            "none",
            Limits(1, 3),
            decimals=0,
        ),
    )


def _causes():
    errors = rate("propositions_request_errors_total" + web('route="/suggest"', 'status=~"5.."'), by="reason")
    shed = rate("propositions_requests_shed_total" + web('route="/suggest"'))
    without_model = rate(_SLATES_TOTAL + web('level=~"2|3"'), by="level")
    everything = requests(SUGGEST, WINDOW)
    return (
        graph(
            "What went wrong with requests for slates",
            "Share of the requests for slates: failed with a 5xx, shed, late (over 100 ms), or ranked without the model. What rises "
            "first is where to begin. Blue marks: workers started, a model was loaded.",
            Query(shares(or_zero(errors, "reason"), everything), "failed: {{reason}}"),
            Query(ratio(or_zero(shed), everything), "shed"),
            Query(ratio(late_slates(WINDOW), everything), "late"),
            Query(
                shares(or_zero(without_model, "level", "2"), everything), "without the model: level {{level}}"
            ),
            unit="percentunit",
            width=12,
            links=[LOGS_OF_ERRORS],
        ),
        states(
            "Alerts",
            "Which alerts fired when. Each has a section in docs/runbooks.md: what it means, what to check, what to do.",
            Query(
                or_zero(f"sum by (alertname) ({_ALERTS}) > bool 0", "alertname", "none"),
                "{{alertname}}",
            ),
            names=ALERT_STATES,
            width=6,
        ),
        states(
            "Breakers",
            "The worst of all workers, by dependency. An open breaker says which dependency is down or slow, and since when.",
            Query("max by (dependency) (propositions_breaker_state" + web() + ")", "{{dependency}}"),
            names=BREAKER_STATES,
            width=6,
        ),
    )


def _objectives():
    failed = ratio(failures(SUGGEST, OBJECTIVE_WINDOW), requests(SUGGEST, OBJECTIVE_WINDOW))
    late = ratio(late_slates(OBJECTIVE_WINDOW), slates(OBJECTIVE_WINDOW))
    windows = ("5m", "1h", "6h")
    budget, late_budget = 1 - AVAILABILITY, 1 - SLATES_IN_TIME
    burning = "How many times as fast as allowed errors happen. At 14.4 in both 5 minutes and an hour the budget of a month is "
    burning += "gone in two days, at 6 in five: that wakes somebody. 1 just uses it up."
    return (
        figure(
            "Answered",
            "Share of the requests for slates that got one, over the time chosen above. Objective: 99.9 %.",
            f"1 - {failed}",
            "percentunit",
            Limits(AVAILABILITY, AVAILABILITY, is_floor=True),
            width=3,
            height=8,
            decimals=3,
        ),
        figure(
            "Budget of failures left",
            "Of the 0.1 % of requests for slates that may fail in the time chosen above, the share that has not failed yet.",
            f"1 - {failed} / {budget:.3f}",
            "percentunit",
            Limits(0.5, 0, is_floor=True),
            width=3,
            height=8,
            decimals=1,
        ),
        figure(
            "In time",
            "Share of slates within 100 ms, over the time chosen above. Objective: 99 %.",
            f"1 - {late}",
            "percentunit",
            Limits(SLATES_IN_TIME, SLATES_IN_TIME, is_floor=True),
            width=3,
            height=8,
            decimals=2,
        ),
        figure(
            "Budget of lateness left",
            "Of the 1 % of slates that may take longer than 100 ms in the time chosen above, the share that has not been used.",
            f"1 - {late} / {late_budget:.2f}",
            "percentunit",
            Limits(0.5, 0, is_floor=True),
            width=3,
            height=8,
            decimals=1,
        ),
        graph(
            "How fast the budgets are used",
            burning,
            *(
                Query(
                    f"{ratio(failures(SUGGEST, window), requests(SUGGEST, window))} / {budget:.3f}",
                    f"failures, {window}",
                )
                for window in windows
            ),
            *(
                Query(f"{ratio(late_slates(window), slates(window))} / {late_budget:.2f}", f"late, {window}")
                for window in windows
            ),
            unit="none",
            width=12,
            limit=SLOW_PAGE_BURN,
        ),
    )


def _requests():
    count, errors = f"{HTTP}_count", "propositions_request_errors_total" + web()
    answered, answered_now = (
        rate(count + web(), by="url_rule"),
        rate(count + web(), by="url_rule", window=NOW),
    )
    failed = rate(count + web('status=~"5.."'), by="url_rule")
    failed_now = rate(count + web('status=~"5.."'), by="url_rule", window=NOW)
    return (
        graph(
            "Requests by route",
            "Answered per second. What is shed is not in here; see saturation.",
            Query(answered, "{{url_rule}}"),
            unit="reqps",
            is_stacked=True,
        ),
        graph(
            "Errors by reason",
            "Answers from 400 on per second, by the title of the problem. 4xx are the callers' (a new client? an expired key?), 5xx "
            "are ours: a click on a series leads to their logs.",
            Query(
                or_zero(rate(errors, by="status, route, reason"), "reason"), "{{status}} {{route}} {{reason}}"
            ),
            Query(or_zero(rate("flask_http_request_exceptions_total" + web())), "unhandled: a bug of ours"),
            unit="reqps",
            is_stacked=True,
            links=[LOGS_OF_ERRORS],
        ),
        graph(
            "Failed by route",
            "Share of each route's answers that were a 5xx.",
            Query(ratio_or_zero(failed, answered), "{{url_rule}}"),
            unit="percentunit",
            links=[LOGS_OF_ERRORS],
        ),
        _latency("POST /suggest", web('url_rule="/suggest"', 'status="200"')),
        _latency("POST /log_event", web('url_rule="/log_event"', 'status="202"')),
        graph(
            "p99 of other routes",
            "Catalog, users, health. They ask PostgreSQL, and may be slow while slates are fast.",
            Query(
                quantile(0.99, HTTP, web('url_rule!~"/suggest|/log_event"'), by="url_rule"), "{{url_rule}}"
            ),
            unit="s",
        ),
        figures_by(
            "url_rule",
            "Routes now",
            "Of the last five minutes.",
            Column("Requests", answered_now, "reqps"),
            Column("Failed", ratio_or_zero(failed_now, answered_now), "percentunit", Limits(0.001, 0.01)),
            *(
                Column(
                    f"p{100 * q:g}",
                    quantile(q, HTTP, web(), by="url_rule", window=NOW),
                    "s",
                    Limits(0.08, SLATE_S),
                )
                for q in QUANTILES
            ),
            width=FULL_WIDTH,
        ),
    )


def _latency(route: str, selector: str):
    return graph(
        f"Latency of {route}",
        "Of good answers. The dashed line is the objective for the p99, 100 ms. Points are requests that were traced: a click leads "
        "to the logs with their trace id.",
        *(
            Query(quantile(q, HTTP, selector), f"p{100 * q:g}", exemplars=q == QUANTILES[-1])
            for q in QUANTILES
        ),
        unit="s",
        limit=SLATE_S,
    )
