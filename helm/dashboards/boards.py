"""What all dashboards have: variables, links to each other and to logs, and marks where something was changed."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from helm.dashboards.panels import BLUE, DATASOURCE
from helm.dashboards.promql import web

TAG = "propositions"
ALL = models.VariableOption(text="All", value="$__all")

DATASOURCE_VARIABLE = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
KIBANA = (
    dashboard.TextBoxVariable("kibana")
    .label("Kibana")
    .description("Where the links to logs lead")
    .default_value("http://localhost:5601")
)
ID = (
    dashboard.TextBoxVariable("id")
    .label("Request or trace id")
    .description("For the link to the logs of one request: what a client got as X-Request-Id, or a trace id")
    .default_value("")
)


def choice(name: str, label: str, metric: str, of: str) -> dashboard.QueryVariable:
    """A variable with all values of a label of a metric; several may be chosen, and at first all are."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values({metric}, {of})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(ALL)
    )


WEB_VARIABLES = (
    choice("job", "Web job", "propositions_workers", "job"),
    choice("instance", "Web machine", 'propositions_workers{job=~"$job"}', "instance"),
)
PROJECTOR_VARIABLES = (
    choice("projector_job", "Projector job", "propositions_projection_slots", "job"),
    choice("projector", "Projector", 'propositions_projection_slots{job=~"$projector_job"}', "instance"),
)


def logs(title: str, query: str) -> dashboard.DashboardLink:
    """To the lines in Kibana that a KQL query finds, in the time that the dashboard shows."""
    time = "(time:(from:'${__from:date:iso}',to:'${__to:date:iso}'))"
    found = f"(index:logs-propositions,query:(language:kuery,query:'{quote(query, safe=':*${} ')}'))"
    return (
        dashboard.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .icon("doc")
        .target_blank(True)
        .url(f"${{kibana}}/app/discover#/?_g={time}&_a={found}".replace(" ", "%20"))
    )


LOGS_OF_ONE = logs("Logs of the request or trace", 'http.request.id : "${id}" or trace.id : "${id}"')
LOGS_OF_ERRORS = logs("Logs of failed requests", "http.response.status_code >= 500")

_WORKERS_STARTED = f"changes(propositions_started_timestamp_seconds{web()}[1m]) > 0"
_MODEL_LOADED = "sum(increase(propositions_model_loads_total" + web('outcome="loaded"') + "[1m])) > 0"


def board(
    uid: str,
    title: str,
    description: str,
    variables: Sequence,
    rows: Mapping[str, Sequence],
) -> models.Dashboard:
    """A dashboard whose rows have these panels, from left to right."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .variables([DATASOURCE_VARIABLE, *variables, KIBANA, ID])
        .link(
            dashboard.DashboardLink("Dashboards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .keep_time(True)
            .include_vars(True)
        )
        .link(LOGS_OF_ONE)
        .link(LOGS_OF_ERRORS)
        .annotation(_mark("Workers started", _WORKERS_STARTED))
        .annotation(_mark("Model loaded", _MODEL_LOADED))
    )
    for name, panels in rows.items():
        made.with_row(dashboard.Row(name))
        for panel in panels:
            made.with_panel(panel)
    finished = made.build()
    for number, panel in enumerate(finished.panels, start=1):
        panel.id_val = number
    return finished


def _mark(name: str, expression: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color(BLUE)
        .expr(expression)
    )
