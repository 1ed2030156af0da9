"""How panels look here: each kind once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as formats

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
FULL_WIDTH = 24

GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "#8e8e8e"


@dataclass(frozen=True, slots=True)
class Query:
    """`legend`: what a series is called; labels stand in {{}}. `exemplars`: whether traces are shown as points."""

    expression: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a value is worrying, and where bad; `is_floor`: below instead of above."""

    worrying: float
    bad: float
    is_floor: bool = False

    def steps(self) -> Sequence[tuple[float | None, str]]:
        if self.is_floor:
            return (None, RED), (self.bad, ORANGE), (self.worrying, GREEN)
        return (None, GREEN), (self.worrying, ORANGE), (self.bad, RED)


def figure(
    title: str,
    description: str,
    expression: str,
    unit: str,
    limits: Limits | None = None,
    width: int = 4,
    height: int = 5,
    decimals: int | None = None,
) -> stat.Panel:
    """One number, with its course behind it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(width)
        .height(height)
        .unit(unit)
        .no_value("no data")
        .graph_mode(styles.BigValueGraphMode.AREA)
        .color_mode(styles.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(limits.steps() if limits else ((None, BLUE),)))
        .with_target(_target(Query(expression), "A"))
    )
    return panel if decimals is None else panel.decimals(decimals)


def graph(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    width: int = 8,
    limit: float | None = None,
    is_stacked: bool = False,
    most: float | None = None,
    links: Sequence[dashboard.DashboardLink] = (),
) -> timeseries.Panel:
    """Courses over time. `limit`: an objective or a capacity, as a dashed red line."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(width)
        .height(8)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(40 if is_stacked else 8)
        .show_points(styles.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(styles.LegendDisplayMode.LIST)
            .placement(styles.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions().mode(styles.TooltipDisplayMode.MULTI).sort(styles.SortOrder.DESCENDING)
        )
    )
    if is_stacked:
        panel.stacking(common.StackingConfig().mode(styles.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if limit is not None:
        panel.thresholds(_thresholds(((None, GREEN), (limit, RED)))).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(styles.GraphThresholdsStyleMode.DASHED)
        ).axis_soft_max(limit * 1.2)
    if links:
        panel.data_links(list(links))
    return _with_targets(panel, queries)


def states(
    title: str,
    description: str,
    *queries: Query,
    names: Mapping[int, tuple[str, str]],
    width: int = 12,
    height: int = 8,
) -> statetimeline.Panel:
    """Which state something was in when. `names`: per value its name and colour."""
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(width)
        .height(height)
        .show_value(styles.VisibilityMode.NEVER)
        .mappings(
            [
                models.ValueMap(
                    options={
                        str(value): models.ValueMappingResult(text=text, color=colour, index=index)
                        for index, (value, (text, colour)) in enumerate(names.items())
                    }
                )
            ]
        )
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(styles.LegendDisplayMode.LIST)
            .placement(styles.LegendPlacement.BOTTOM)
        )
    )
    return _with_targets(panel, queries)


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    expression: str
    unit: str
    limits: Limits | None = None
    decimals: int | None = None


def figures_by(
    label: str, title: str, description: str, *columns: Column, width: int = 12, height: int = 6
) -> table.Panel:
    """A table with a row per value of a label, sorted by the first column."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(width)
        .height(height)
        .with_transformation(
            models.DataTransformerConfig(id_val="joinByField", options={"byField": label, "mode": "outer"})
        )
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {f"Time{suffix}": True for suffix in _suffixes(columns)},
                    "renameByName": {f"Value #{_ref(n)}": column.title for n, column in enumerate(columns)},
                },
            )
        )
        .sort_by([common.TableSortByFieldState().display_name(columns[0].title).desc(True)])
    )
    for number, column in enumerate(columns):
        panel.with_target(
            _target(Query(column.expression), _ref(number)).instant().format(formats.PromQueryFormat.TABLE)
        )
        panel.override_by_name(column.title, _column_style(column))
    return panel


def _column_style(column: Column) -> list[models.DynamicConfigValue]:
    style = [models.DynamicConfigValue(id_val="unit", value=column.unit)]
    if column.decimals is not None:
        style.append(models.DynamicConfigValue(id_val="decimals", value=column.decimals))
    if column.limits is not None:
        thresholds = _thresholds(column.limits.steps()).build()
        style.append(models.DynamicConfigValue(id_val="thresholds", value=thresholds))
        cell = {"type": "color-text"}
        style.append(models.DynamicConfigValue(id_val="custom.cellOptions", value=cell))
    return style


def _suffixes(columns: Sequence[Column]) -> Sequence[str]:
    """The first frame's time keeps its name when frames are joined."""
    return ["", *(f" {number}" for number in range(1, len(columns) + 1))]


def _with_targets(panel, queries: Sequence[Query]):
    for number, query in enumerate(queries):
        panel.with_target(_target(query, _ref(number)).range())
    return panel


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(ref).expr(query.expression)
    if query.legend:
        target.legend_format(query.legend)
    if query.exemplars:
        target.exemplar(True)
    return target


def _ref(number: int) -> str:
    return chr(ord("A") + number)


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
    )
