"""An evaluation report for people: one page of HTML that needs nothing else, and a few lines for the terminal."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation import (
    HEADLINE,
    LOGISTIC,
    MODEL,
    POPULARITY,
    RANDOM,
    SHOWN_ORDER,
    TARGET_PRECISION,
    Report,
)
from training.gate import Check
from training.metrics import SLATE_METRICS, Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

TEMPLATES = Path(__file__).parent / "templates"
# In which rankings are told of; others come before the last two.
ORDER = (MODEL, LOGISTIC, "current", "rules", POPULARITY)
LAST = (SHOWN_ORDER, RANDOM)
SHOWN_METRICS = ("ndcg@10", "ndcg@3", "precision@3", "recall@10", "hit_rate@3", "mrr", "auc")
POOLED_METRICS = ("log_loss", "pooled_auc", "calibration_error")
TERMINAL_METRICS = ("ndcg@10", "precision@3", "hit_rate@3", "mrr")
SHOWN_COLUMNS = 15
NOTHING = "-"

_COLOURS = {MODEL: "#1f5fbf", POPULARITY: "#d97706", LOGISTIC: "#0f8b7d"}
_OTHER_COLOUR, _SOFT, _LINE = "#7b8794", "#5d6b7c", "#dfe4ea"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": "#1b2430",
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    # Ids in SVG are drawn at random without it, and two renderings of one report would differ.
    "svg.hashsalt": "report",
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """How the model was made: its parameters by name, and the facts of each part of the data by the part's name."""

    version: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    windows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checks: Sequence[Check] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    value: str
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    cells: tuple[Cell, ...]
    is_model: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    titles: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Figured:
    """One number of the headline; `tone` is "good", "bad" or nothing."""

    title: str
    value: str
    detail: str
    tone: str = ""


def render_html(report: Report, run: RunFacts) -> str:
    """The page. All texts are escaped, and the same report gives the same page."""
    from jinja2 import Environment, FileSystemLoader

    # So that it does not matter whether the report was just made or read from a file.
    report = Report.from_json(report.to_json())
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html").render(
        report=report,
        run=run,
        headline=_headline(report),
        tables=_tables(report, run),
        plots={name: _as_source(figure) for name, figure in figures(report).items()},
    )


def print_report(report: Report, console: "Console") -> None:
    """The table of rankers and the notes."""
    from rich.table import Table as TextTable

    table = TextTable(title=f"{report.slate_count:,} later slates, means and 95 % intervals")
    for title in ("ranker", *TERMINAL_METRICS, f"{MODEL} gains, {HEADLINE}"):
        table.add_column(title)
    for name in _in_order(report.rankers):
        cells = [_interval_cell(report.intervals[name]["all"][metric]) for metric in TERMINAL_METRICS]
        gain = report.paired.get(f"{MODEL}-{name}", {}).get(HEADLINE)
        texts = [f"{cell.value} {cell.interval}".strip() for cell in cells]
        table.add_row(name, *texts, "" if gain is None else _gain_text(gain))
    console.print(table, markup=False)
    for note in report.notes:
        console.print(f"- {note}", markup=False)


def _headline(report: Report) -> list[Figured]:
    interval = report.intervals[MODEL]["all"][HEADLINE]
    figured = [Figured("NDCG@10", _number(interval.mean), f"95 % {_span(interval)}")]
    gain = report.paired.get(f"{MODEL}-{POPULARITY}", {}).get(HEADLINE)
    if gain is not None:
        tone = "good" if gain.low > 0 else "bad" if gain.high < 0 else ""
        figured.append(
            Figured("gain over popularity", _signed(gain.mean), f"95 % {_span(gain, _signed)}", tone)
        )
    precision = report.intervals[MODEL]["all"]["precision@3"]
    figured.append(
        Figured(
            "precision of the top 3",
            _percent(precision.mean),
            f"ceiling {_percent(report.ceiling['precision@3'])}",
        )
    )
    figured.append(Figured("served by the model", _percent(report.coverage["model"]), "of the requests"))
    return figured


def _tables(report: Report, run: RunFacts) -> dict[str, Table]:
    return {
        "rankers": _ranker_table(report),
        "all_metrics": _all_metrics(report),
        "gains": _gain_table(report),
        "users": _user_table(report),
        "propositions": _proposition_table(report),
        "lift": Table(
            ("history hidden", "lift left"),
            tuple(Row(_words(name), (Cell(_percent(lift)),)) for name, lift in report.retained_lift.items()),
        ),
        "contexts": _context_table(report),
        "selective": _selective_table(report),
        "calibration": _calibration_table(report),
        "coverage": Table(
            ("coverage", "share"),
            tuple(
                Row(title, (Cell(_percent(report.coverage[name])),))
                for name, title in (
                    ("requests", "requests with a full slate"),
                    ("model", "requests ranked by the model"),
                    ("catalog", "propositions in some top 10"),
                )
            ),
        ),
        "diversity": _diversity_table(report),
        "windows": _facts_table(run.windows),
        "parameters": Table(
            ("parameter", "value"),
            tuple(Row(str(name), (Cell(_text(value)),)) for name, value in run.parameters.items()),
        ),
    }


def _ranker_table(report: Report) -> Table:
    def row(name: str) -> Row:
        intervals, values = report.intervals[name]["all"], report.rankers[name]["all"]
        cells = [_interval_cell(intervals[metric]) for metric in SHOWN_METRICS]
        return _row(name, [*cells, Cell(_number(values.get("log_loss", math.nan)))])

    titles = ("ranking", *(_title(metric) for metric in SHOWN_METRICS), "log loss")
    return Table(titles, tuple(row(name) for name in _in_order(report.rankers)))


def _all_metrics(report: Report) -> Table:
    metrics = (*SLATE_METRICS, *POOLED_METRICS)
    names = _in_order(report.rankers)
    rows = [
        Row(_title(metric), tuple(Cell(_number(report.rankers[name]["all"].get(metric))) for name in names))
        for metric in metrics
    ]
    return Table(("metric", *map(_words, names)), tuple(rows))


def _gain_table(report: Report) -> Table:
    metrics = ("ndcg@10", "ndcg@3", "precision@3", "hit_rate@3", "mrr")
    rows = [
        Row(
            f"{_words(model)} over {_words(other)}",
            tuple(Cell(_signed(gains[m].mean), _span(gains[m], _signed)) for m in metrics),
            model == MODEL,
        )
        for model in (MODEL, LOGISTIC)
        for other in _in_order(report.rankers)
        if (gains := report.paired.get(f"{model}-{other}"))
    ]
    return Table(("gain", *map(_title, metrics)), tuple(rows))


def _user_table(report: Report) -> Table:
    rows = [
        _row(
            name,
            [
                _interval_cell(report.intervals[name][group][metric])
                for metric in (HEADLINE, "precision@3")
                for group in ("warm", "cold")
            ],
        )
        for name in _in_order(report.intervals)
    ]
    counts = {group: f"{report.slates[group]:,} slates" for group in ("warm", "cold")}
    titles = (
        "users",
        f"NDCG@10, with history ({counts['warm']})",
        f"without ({counts['cold']})",
        "precision@3, with",
        "without",
    )
    return Table(titles, tuple(rows))


def _proposition_table(report: Report) -> Table:
    groups = ("warm_propositions", "cold_propositions")
    rows = [
        _row(name, [Cell(_number(report.segments[group][name][HEADLINE])) for group in groups])
        for name in _in_order(report.rankers)
    ]
    titles = (
        "propositions, NDCG@10",
        f"most shown before ({report.slates[groups[0]]:,} slates)",
        f"most never shown ({report.slates[groups[1]]:,} slates)",
    )
    return Table(titles, tuple(rows))


def _context_table(report: Report) -> Table:
    counts, names = report.slates["context"], _in_order(report.rankers)
    rows = [
        Row(
            context,
            (
                Cell(f"{counts[context]:,}"),
                *(Cell(_number(report.segments["context"][context][name][HEADLINE])) for name in names),
            ),
        )
        for context in sorted(counts, key=lambda context: (-counts[context], context))
    ]
    return Table(("context", "slates", *map(_words, names)), tuple(rows))


def _selective_table(report: Report) -> Table:
    def row(share: str, values: Mapping[str, float]) -> Row:
        model = Cell(
            _percent(values["precision@3"]),
            f"{_percent(values['precision@3_low'])} to {_percent(values['precision@3_high'])}",
        )
        others = (
            "precision@3_of_clicked",
            f"{POPULARITY}_precision@3",
            f"{POPULARITY}_precision@3_of_clicked",
        )
        cells = (
            Cell(f"{values['requests']:,}"),
            model,
            *(Cell(_percent(values.get(name))) for name in others),
        )
        return Row(_percent(float(share)), cells)

    titles = ("answered", "requests", "model", "of those with a click", "popularity", "of those with a click")
    ordered = sorted(report.selective.items(), key=lambda item: float(item[0]))
    return Table(titles, tuple(row(*item) for item in ordered))


def _calibration_table(report: Report) -> Table:
    rows = [
        _row(
            name,
            [
                Cell(_number(report.rankers[name]["all"][metric]))
                for metric in ("calibration_error", "log_loss", "pooled_auc")
            ],
        )
        for name in _in_order(report.calibration)
    ]
    return Table(("ranking", "calibration error", "log loss", "AUC over all candidates"), tuple(rows))


def _diversity_table(report: Report) -> Table:
    metrics = ("distinct_categories@10", "exposure_entropy", "exposure_gini")
    rows = [
        _row(name, [Cell(_number(report.diversity[name][m])) for m in metrics])
        for name in _in_order(report.diversity)
    ]
    return Table(("ranking", "categories per place", "evenness of exposure", "Gini of exposure"), tuple(rows))


def _facts_table(facts: Mapping[str, Mapping[str, Any]]) -> Table:
    titles = list(dict.fromkeys(name for values in facts.values() for name in values))
    rows = [
        Row(part, tuple(Cell(_text(values.get(title))) for title in titles)) for part, values in facts.items()
    ]
    return Table(("data", *map(_words, titles)), tuple(rows))


def _in_order(names: Iterable[str]) -> list[str]:
    def place(name: str) -> int:
        return ORDER.index(name) if name in ORDER else len(ORDER) + (name in LAST and 1 + LAST.index(name))

    return sorted(names, key=lambda name: (place(name), name))


def _row(name: str, cells: Iterable[Cell]) -> Row:
    return Row(_words(name), tuple(cells), name == MODEL)


def _interval_cell(interval: Interval) -> Cell:
    return Cell(
        _number(interval.mean), "" if math.isnan(interval.low) else f"[{_span(interval, joint=', ')}]"
    )


def _span(interval: Interval, format_number=None, joint: str = " to ") -> str:
    format_number = format_number or _number
    return f"{format_number(interval.low)}{joint}{format_number(interval.high)}"


def _gain_text(gain: Interval) -> str:
    return f"{_signed(gain.mean)} [{_span(gain, _signed, ', ')}]"


def _number(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.4f}"


def _signed(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:+.4f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.1%}"


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _title(metric: str) -> str:
    return _words(metric).replace("ndcg", "NDCG").replace("mrr", "MRR").replace("auc", "AUC")


def figures(report: Report) -> dict[str, "Figure"]:
    """The plots by name, as figures of matplotlib; those without data are left out."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        drawn = {
            "gains": _gains_plot(report),
            "users": _users_plot(report),
            "selective": _selective_plot(report) if report.selective else None,
            "reliability": _reliability_plot(report) if report.calibration else None,
            "importance": _importance_plot(report) if report.shap else None,
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _as_source(figure: "Figure") -> str:
    """The figure as the source of an image: SVG, which stays sharp on every screen."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure(width: float, height: float, columns: int = 1):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _gains_plot(report: Report) -> "Figure":
    others = [name for name in _in_order(report.rankers) if name != MODEL][::-1]
    figure, axes = _figure(5.8, 0.9 + 0.42 * len(others))
    axes.axvline(0.0, color=_SOFT, linewidth=1)
    for height, other in enumerate(others):
        gain = report.paired[f"{MODEL}-{other}"][HEADLINE]
        axes.plot([gain.low, gain.high], [height, height], color=_COLOURS[MODEL], linewidth=3, alpha=0.45)
        axes.plot([gain.mean], [height], "o", color=_COLOURS[MODEL], markersize=7)
        axes.annotate(
            _signed(gain.mean),
            (gain.mean, height),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(others)), [f"over {_words(other)}" for other in others])
    axes.set_ylim(-0.6, len(others) - 0.3)
    axes.margins(x=0.12)
    axes.tick_params(length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("gain of NDCG@10 per slate, mean and 95 % interval")
    return figure


def _users_plot(report: Report) -> "Figure":
    names = _in_order(report.intervals)[::-1]
    figure, axes = _figure(5.8, 1.1 + 0.45 * len(names))
    for group, shift, marker, colour in (
        ("warm", 0.13, "o", _COLOURS[MODEL]),
        ("cold", -0.13, "s", _COLOURS[POPULARITY]),
    ):
        for height, name in enumerate(names):
            interval = report.intervals[name][group][HEADLINE]
            heights = [height + shift, height + shift]
            axes.plot([interval.low, interval.high], heights, color=colour, linewidth=3, alpha=0.4)
            label = {"warm": "with history", "cold": "without history"}[group] if not height else None
            axes.plot([interval.mean], heights[:1], marker, color=colour, markersize=6.5, label=label)
    axes.set_yticks(range(len(names)), map(_words, names))
    axes.tick_params(length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("NDCG@10, mean and 95 % interval")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _selective_plot(report: Report) -> "Figure":
    shares = sorted(report.selective, key=float)
    figure, axes = _figure(5.8, 3.8)
    for prefix, name in (("", MODEL), (f"{POPULARITY}_", POPULARITY)):
        rows = [
            report.selective[share] for share in shares if f"{prefix}precision@3" in report.selective[share]
        ]
        if not rows:
            continue
        places = [100 * float(share) for share in shares]
        lines = {
            key: [100 * row[f"{prefix}precision@3{key}"] for row in rows] for key in ("", "_low", "_high")
        }
        axes.fill_between(
            places, lines["_low"], lines["_high"], color=_COLOURS[name], alpha=0.15, linewidth=0
        )
        axes.plot(places, lines[""], "o-", color=_COLOURS[name], markersize=4.5, label=_words(name))
    ceiling = 100 * report.ceiling["precision@3_of_all_requests"]
    axes.axhline(ceiling, color=_SOFT, linestyle=":", label="ceiling, all requests")
    axes.axhline(
        100 * TARGET_PRECISION, color="#b3261e", linestyle="--", linewidth=1, label=f"{TARGET_PRECISION:.0%}"
    )
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("requests answered, surest first (%)")
    axes.set_ylabel("precision of the top 3 (%)")
    figure.legend(loc="outside upper left", ncols=4, fontsize=8.5, columnspacing=1.0, handlelength=1.6)
    return figure


def _reliability_plot(report: Report) -> "Figure":
    figure, axes = _figure(5.0, 4.4)
    axes.plot([0, 1], [0, 1], color=_SOFT, linestyle=":", linewidth=1.2)
    most = 0.0
    for name in _in_order(report.calibration):
        predicted, observed = (report.calibration[name][rates] for rates in ("predicted", "observed"))
        axes.plot(
            predicted,
            observed,
            "o-",
            color=_COLOURS.get(name, _OTHER_COLOUR),
            markersize=5.5,
            label=_words(name),
        )
        most = max(most, *predicted, *observed)
    axes.set_xlim(0, min(1.02, 1.08 * most))
    axes.set_ylim(0, min(1.02, 1.08 * most))
    axes.grid()
    axes.set_axisbelow(True)
    axes.set_xlabel("stated probability of a click")
    axes.set_ylabel("share that was clicked")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def _importance_plot(report: Report) -> "Figure":
    names = sorted(report.shap, key=lambda name: (-report.shap[name], name))[:SHOWN_COLUMNS][::-1]
    figure, pair = _figure(6.4, 1.1 + 0.27 * len(names), columns=2)
    for axes, values, title in (
        (pair[0], report.shap, "mean |contribution|\nto the score (SHAP)"),
        (pair[1], report.importance, "share of the gain\nof all splits"),
    ):
        axes.barh(range(len(names)), [values[name] for name in names], color=_COLOURS[MODEL], height=0.62)
        axes.set_yticks(range(len(names)), map(_shortened, names) if axes is pair[0] else [""] * len(names))
        axes.tick_params(axis="y", length=0, labelsize=8.5)
        axes.tick_params(axis="x", labelsize=8)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_title(title, fontsize=9, loc="left")
    return figure


def _shortened(name: str, most: int = 46) -> str:
    # matplotlib would read what stands between dollars as mathematics.
    text = name if len(name) <= most else f"{name[: most // 2 - 1]}...{name[2 - most // 2 :]}"
    return text.replace("$", r"\$")
