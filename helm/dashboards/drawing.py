"""Each kind of panel, drawn about as Grafana draws it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter, date2num
from matplotlib.ticker import FuncFormatter, MaxNLocator

from helm.dashboards.reading import Panel
from helm.dashboards.source import Source
from helm.dashboards.units import written

INK, FAINT, PAPER, PANEL, EDGE, GRID = "#d8d9da", "#6e7079", "#111217", "#181b1f", "#25272c", "#2c3235"
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2"}
PALETTE = (
    "#73bf69",
    "#f2cc0c",
    "#5794f2",
    "#ff9830",
    "#f2495c",
    "#b877d9",
    "#8ab8ff",
    "#96d98d",
    "#ffb357",
    "#ff7383",
)
TITLE_IN, TIMES_IN, MARGIN_IN = 0.36, 0.25, 0.12
LEGEND_LINE_IN, LEGEND_LINES = 0.18, 3
LINE_IN = 0.24
LETTER_IN = 0.06
SHORT_S = 900.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A panel's place in the picture, measured in inches from its left and its upper edge."""

    axes: Axes
    width_in: float
    height_in: float

    def write(
        self, x_in: float, y_in: float, text: str, size: float, colour: str = INK, side: str = "left"
    ) -> None:
        place = x_in / self.width_in, 1 - y_in / self.height_in
        style = {"color": colour, "fontsize": size, "ha": side, "va": "center"}
        self.axes.text(*place, text, transform=self.axes.transAxes, **style)

    def dash(self, x_in: float, y_in: float, colour: str) -> None:
        left, right = x_in / self.width_in, (x_in + 0.13) / self.width_in
        y = 1 - y_in / self.height_in
        self.axes.plot([left, right], [y, y], color=colour, linewidth=2, transform=self.axes.transAxes)

    def inner(self, left_in: float, top_in: float, bottom_in: float, right_in: float = MARGIN_IN) -> Axes:
        """Axes that leave so much room around them."""
        width, height = self.width_in - left_in - right_in, self.height_in - top_in - bottom_in
        return self.axes.inset_axes(
            (
                left_in / self.width_in,
                bottom_in / self.height_in,
                width / self.width_in,
                height / self.height_in,
            )
        )


def draw(frame: Frame, panel: Panel, source: Source) -> None:
    frame.axes.set(facecolor=PANEL, xticks=(), yticks=(), xlim=(0, 1), ylim=(0, 1), autoscale_on=False)
    for spine in frame.axes.spines.values():
        spine.set_color(EDGE)
    frame.write(MARGIN_IN, 0.18, panel.title, 8.5)
    _KINDS[panel.kind](frame, panel, source)


def _figure(frame: Frame, panel: Panel, source: Source) -> None:
    defaults = panel.content["fieldConfig"]["defaults"]
    middle = frame.width_in / 2, 0.45 * frame.height_in
    courses = source.courses(panel.targets)
    finite = [value for course in courses for value in course.values if math.isfinite(value)]
    if not finite:
        frame.write(*middle, defaults["noValue"], 12, FAINT, "center")
        return
    colour = _colour_at(finite[-1], defaults["thresholds"]["steps"])
    frame.write(
        *middle, written(finite[-1], defaults["unit"], defaults.get("decimals")), 19, colour, "center"
    )
    spark = frame.inner(0, 0.68 * frame.height_in, 0, 0)
    (course,) = courses
    spark.plot(course.times_s, course.values, color=colour, linewidth=1)
    spark.fill_between(course.times_s, course.values, min(finite), color=colour, alpha=0.15, linewidth=0)
    spark.set_xlim(source.from_s, source.to_s)
    spark.axis("off")


def _graph(frame: Frame, panel: Panel, source: Source) -> None:
    defaults = panel.content["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    courses = sorted(source.courses(panel.targets), key=lambda course: course.name)
    colours = [PALETTE[number % len(PALETTE)] for number in range(len(courses))]
    legend = _legend(frame, list(zip([course.name for course in courses], colours, strict=True)))
    axes = _over_time(frame, source, left_in=0.66, bottom_in=legend)
    below: dict[float, float] = {}
    for course, colour in zip(courses, colours, strict=True):
        times = _days(course.times_s)
        values = [value if math.isfinite(value) else math.nan for value in course.values]
        if custom.get("stacking", {}).get("mode") == "normal":
            low = [below.get(time_s, 0.0) for time_s in course.times_s]
            values = [
                base + (0 if math.isnan(more) else more) for base, more in zip(low, values, strict=True)
            ]
            below.update(zip(course.times_s, values, strict=True))
            axes.fill_between(times, low, values, color=colour, alpha=0.45, linewidth=0)
        axes.plot(times, values, color=colour, linewidth=1, clip_on=False)
    if "thresholdsStyle" in custom:
        axes.axhline(
            defaults["thresholds"]["steps"][-1]["value"],
            color=NAMED["red"],
            linewidth=1,
            linestyle=(0, (6, 4)),
        )
    highest = max((value for course in courses for value in course.values if value > 0), default=0.0)
    top = max(axes.get_ylim()[1], custom.get("axisSoftMax", 0)) if highest else custom.get("axisSoftMax", 1)
    axes.set_ylim(0, defaults.get("max", top))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, defaults["unit"])))


def _states(frame: Frame, panel: Panel, source: Source) -> None:
    states = panel.content["fieldConfig"]["defaults"]["mappings"][0]["options"]
    courses = sorted(source.courses(panel.targets), key=lambda course: course.name, reverse=True)
    longest = max((len(course.name) for course in courses), default=0)
    legend = _legend(frame, [(state["text"], _named(state["color"])) for state in states.values()])
    axes = _over_time(frame, source, left_in=MARGIN_IN + 0.1 + LETTER_IN * longest, bottom_in=legend)
    for row, course in enumerate(courses):
        times = _days(course.times_s)
        width = (times[-1] - times[0]) / max(len(times) - 1, 1)
        for time, value in zip(times, course.values, strict=True):
            colour = _named(states[f"{value:.0f}"]["color"])
            axes.broken_barh([(time, width)], (row - 0.4, 0.8), color=colour, linewidth=0)
    axes.set_yticks(range(len(courses)), [course.name for course in courses])
    axes.set_ylim(-0.5, len(courses) - 0.5)


def _table(frame: Frame, panel: Panel, source: Source) -> None:
    label = panel.content["transformations"][0]["options"]["byField"]
    styles = {
        override["matcher"]["options"]: {one["id"]: one["value"] for one in override["properties"]}
        for override in panel.content["fieldConfig"]["overrides"]
    }
    columns = [
        {one.labels.get(label, ""): one.values[0] for one in source.latest(target)}
        for target in panel.targets
    ]
    first_in = 0.34 * frame.width_in
    step_in = (frame.width_in - first_in - MARGIN_IN) / len(columns)
    rights_in = [first_in + step_in * (number + 1) for number in range(len(columns))]
    frame.write(MARGIN_IN, 2 * LINE_IN, label, 8, NAMED["blue"])
    for title, right_in in zip(styles, rights_in, strict=True):
        frame.write(right_in, 2 * LINE_IN, title, 8, NAMED["blue"], "right")
    room = int(frame.height_in / LINE_IN) - 2
    for row, key in enumerate(sorted(columns[0], key=lambda key: -columns[0][key])[:room], start=3):
        frame.write(MARGIN_IN, LINE_IN * row, key, 8)
        for style, column, right_in in zip(styles.values(), columns, rights_in, strict=True):
            frame.write(right_in, LINE_IN * row, *_cell(column.get(key, math.nan), style), "right")


def _cell(value: float, style: Mapping[str, Any]) -> tuple[str, float, str]:
    """Text, size and colour."""
    if not math.isfinite(value):
        return "-", 8, FAINT
    colour = _colour_at(value, style["thresholds"]["steps"]) if "thresholds" in style else INK
    return written(value, style["unit"], style.get("decimals")), 8, colour


_KINDS: Mapping[str, Callable[[Frame, Panel, Source], None]] = {
    "stat": _figure,
    "timeseries": _graph,
    "state-timeline": _states,
    "table": _table,
}


def _over_time(frame: Frame, source: Source, left_in: float, bottom_in: float) -> Axes:
    axes = frame.inner(left_in, TITLE_IN, bottom_in + TIMES_IN)
    axes.set_facecolor(PANEL)
    axes.tick_params(colors=FAINT, labelsize=7, length=0)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlim(*_days((source.from_s, source.to_s)))
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=2, maxticks=max(3, int(frame.width_in))))
    is_short = source.to_s - source.from_s < SHORT_S
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S" if is_short else "%H:%M"))
    return axes


def _legend(frame: Frame, entries: Sequence[tuple[str, str]]) -> float:
    """At the bottom, as far as there is room; returns its height in inches."""
    lines: list[list[tuple[float, str, str]]] = [[]]
    x_in = MARGIN_IN
    for name, colour in entries:
        width_in = 0.3 + LETTER_IN * len(name)
        if x_in + width_in > frame.width_in and lines[-1]:
            if len(lines) == LEGEND_LINES:
                break
            lines.append([])
            x_in = MARGIN_IN
        lines[-1].append((x_in, name, colour))
        x_in += width_in
    for number, line in enumerate(reversed(lines)):
        y_in = frame.height_in - 0.14 - LEGEND_LINE_IN * number
        for x_in, name, colour in line:
            frame.dash(x_in, y_in, colour)
            frame.write(x_in + 0.19, y_in, name, 7)
    return 0.1 + LEGEND_LINE_IN * len(lines)


def _colour_at(value: float, steps: Sequence[Mapping[str, Any]]) -> str:
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return _named(reached[-1]["color"])


def _named(colour: str) -> str:
    return NAMED.get(colour, colour)


def _days(times_s: Sequence[float]) -> Sequence[float]:
    """As matplotlib counts time."""
    return [date2num(0) + time_s / 86_400 for time_s in times_s]
