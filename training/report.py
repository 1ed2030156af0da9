"""An evaluation report for people: one page of HTML that needs nothing else, and a few lines for the terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation_report import HEADLINE, LOGISTIC, MODEL, POPULARITY, Report
from training.gate import Check
from training.metrics import SLATE_METRICS, Interval
from training.report_plots import as_source, figures
from training.report_texts import gain_text, in_order, number, percent, signed, span, text, title, words

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_METRICS = ("ndcg@10", "ndcg@3", "precision@3", "recall@10", "hit_rate@3", "mrr", "auc")
POOLED_METRICS = ("log_loss", "pooled_auc", "calibration_error")
TERMINAL_METRICS = ("ndcg@10", "precision@3", "hit_rate@3", "mrr")


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
        plots={name: as_source(figure) for name, figure in figures(report).items()},
    )


def print_report(report: Report, console: "Console") -> None:
    """The table of rankers and the notes."""
    from rich.table import Table as TextTable

    table = TextTable(title=f"{report.slate_count:,} later slates, means and 95 % intervals")
    for header in ("ranker", *TERMINAL_METRICS, f"{MODEL} gains, {HEADLINE}"):
        table.add_column(header)
    for name in in_order(report.rankers):
        cells = [_interval_cell(report.intervals[name]["all"][metric]) for metric in TERMINAL_METRICS]
        gain = report.paired.get(f"{MODEL}-{name}", {}).get(HEADLINE)
        texts = [f"{cell.value} {cell.interval}".strip() for cell in cells]
        table.add_row(name, *texts, "" if gain is None else gain_text(gain))
    console.print(table, markup=False)
    for note in report.notes:
        console.print(f"- {note}", markup=False)


def _headline(report: Report) -> list[Figured]:
    interval = report.intervals[MODEL]["all"][HEADLINE]
    figured = [Figured("NDCG@10", number(interval.mean), f"95 % {span(interval)}")]
    gain = report.paired.get(f"{MODEL}-{POPULARITY}", {}).get(HEADLINE)
    if gain is not None:
        tone = "good" if gain.low > 0 else "bad" if gain.high < 0 else ""
        figured.append(Figured("gain over popularity", signed(gain.mean), f"95 % {span(gain, signed)}", tone))
    precision = report.intervals[MODEL]["all"]["precision@3"]
    figured.append(
        Figured(
            "precision of the top 3",
            percent(precision.mean),
            f"ceiling {percent(report.ceiling['precision@3'])}",
        )
    )
    figured.append(Figured("served by the model", percent(report.coverage["model"]), "of the requests"))
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
            tuple(Row(words(name), (Cell(percent(lift)),)) for name, lift in report.retained_lift.items()),
        ),
        "contexts": _context_table(report),
        "selective": _selective_table(report),
        "calibration": _calibration_table(report),
        "coverage": Table(
            ("coverage", "share"),
            tuple(
                Row(title, (Cell(percent(report.coverage[name])),))
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
            tuple(Row(str(name), (Cell(text(value)),)) for name, value in run.parameters.items()),
        ),
    }


def _ranker_table(report: Report) -> Table:
    def row(name: str) -> Row:
        intervals, values = report.intervals[name]["all"], report.rankers[name]["all"]
        cells = [_interval_cell(intervals[metric]) for metric in SHOWN_METRICS]
        return _row(name, [*cells, Cell(number(values.get("log_loss", math.nan)))])

    titles = ("ranking", *(title(metric) for metric in SHOWN_METRICS), "log loss")
    return Table(titles, tuple(row(name) for name in in_order(report.rankers)))


def _all_metrics(report: Report) -> Table:
    metrics = (*SLATE_METRICS, *POOLED_METRICS)
    names = in_order(report.rankers)
    rows = [
        Row(title(metric), tuple(Cell(number(report.rankers[name]["all"].get(metric))) for name in names))
        for metric in metrics
    ]
    return Table(("metric", *map(words, names)), tuple(rows))


def _gain_table(report: Report) -> Table:
    metrics = ("ndcg@10", "ndcg@3", "precision@3", "hit_rate@3", "mrr")
    rows = [
        Row(
            f"{words(model)} over {words(other)}",
            tuple(Cell(signed(gains[m].mean), span(gains[m], signed)) for m in metrics),
            model == MODEL,
        )
        for model in (MODEL, LOGISTIC)
        for other in in_order(report.rankers)
        if (gains := report.paired.get(f"{model}-{other}"))
    ]
    return Table(("gain", *map(title, metrics)), tuple(rows))


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
        for name in in_order(report.intervals)
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
        _row(name, [Cell(number(report.segments[group][name][HEADLINE])) for group in groups])
        for name in in_order(report.rankers)
    ]
    titles = (
        "propositions, NDCG@10",
        f"most shown before ({report.slates[groups[0]]:,} slates)",
        f"most never shown ({report.slates[groups[1]]:,} slates)",
    )
    return Table(titles, tuple(rows))


def _context_table(report: Report) -> Table:
    counts, names = report.slates["context"], in_order(report.rankers)
    rows = [
        Row(
            context,
            (
                Cell(f"{counts[context]:,}"),
                *(Cell(number(report.segments["context"][context][name][HEADLINE])) for name in names),
            ),
        )
        for context in sorted(counts, key=lambda context: (-counts[context], context))
    ]
    return Table(("context", "slates", *map(words, names)), tuple(rows))


def _selective_table(report: Report) -> Table:
    def row(share: str, values: Mapping[str, float]) -> Row:
        model = Cell(
            percent(values["precision@3"]),
            f"{percent(values['precision@3_low'])} to {percent(values['precision@3_high'])}",
        )
        others = (
            "precision@3_of_clicked",
            f"{POPULARITY}_precision@3",
            f"{POPULARITY}_precision@3_of_clicked",
        )
        cells = (
            Cell(f"{values['requests']:,}"),
            model,
            *(Cell(percent(values.get(name))) for name in others),
        )
        return Row(percent(float(share)), cells)

    titles = ("answered", "requests", "model", "of those with a click", "popularity", "of those with a click")
    ordered = sorted(report.selective.items(), key=lambda item: float(item[0]))
    return Table(titles, tuple(row(*item) for item in ordered))


def _calibration_table(report: Report) -> Table:
    rows = [
        _row(
            name,
            [
                Cell(number(report.rankers[name]["all"][metric]))
                for metric in ("calibration_error", "log_loss", "pooled_auc")
            ],
        )
        for name in in_order(report.calibration)
    ]
    return Table(("ranking", "calibration error", "log loss", "AUC over all candidates"), tuple(rows))


def _diversity_table(report: Report) -> Table:
    metrics = ("distinct_categories@10", "exposure_entropy", "exposure_gini")
    rows = [
        _row(name, [Cell(number(report.diversity[name][m])) for m in metrics])
        for name in in_order(report.diversity)
    ]
    return Table(("ranking", "categories per place", "evenness of exposure", "Gini of exposure"), tuple(rows))


def _facts_table(facts: Mapping[str, Mapping[str, Any]]) -> Table:
    titles = list(dict.fromkeys(name for values in facts.values() for name in values))
    rows = [
        Row(part, tuple(Cell(text(values.get(title))) for title in titles)) for part, values in facts.items()
    ]
    return Table(("data", *map(words, titles)), tuple(rows))


def _row(name: str, cells: Iterable[Cell]) -> Row:
    return Row(words(name), tuple(cells), name == MODEL)


def _interval_cell(interval: Interval) -> Cell:
    return Cell(number(interval.mean), "" if math.isnan(interval.low) else f"[{span(interval, joint=', ')}]")
