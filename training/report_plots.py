"""The plots of a report."""

import base64
import io
from typing import TYPE_CHECKING

from training.evaluation_report import (
    HEADLINE,
    LOGISTIC,
    MODEL,
    POPULARITY,
    TARGET_PRECISION,
    Report,
)
from training.report_texts import in_order, signed, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_COLUMNS = 15

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


def as_source(figure: "Figure") -> str:
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
    others = [name for name in in_order(report.rankers) if name != MODEL][::-1]
    figure, axes = _figure(5.8, 0.9 + 0.42 * len(others))
    axes.axvline(0.0, color=_SOFT, linewidth=1)
    for height, other in enumerate(others):
        gain = report.paired[f"{MODEL}-{other}"][HEADLINE]
        axes.plot([gain.low, gain.high], [height, height], color=_COLOURS[MODEL], linewidth=3, alpha=0.45)
        axes.plot([gain.mean], [height], "o", color=_COLOURS[MODEL], markersize=7)
        axes.annotate(
            signed(gain.mean),
            (gain.mean, height),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(others)), [f"over {words(other)}" for other in others])
    axes.set_ylim(-0.6, len(others) - 0.3)
    axes.margins(x=0.12)
    axes.tick_params(length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("gain of NDCG@10 per slate, mean and 95 % interval")
    return figure


def _users_plot(report: Report) -> "Figure":
    names = in_order(report.intervals)[::-1]
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
    axes.set_yticks(range(len(names)), map(words, names))
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
        axes.plot(places, lines[""], "o-", color=_COLOURS[name], markersize=4.5, label=words(name))
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
    for name in in_order(report.calibration):
        predicted, observed = (report.calibration[name][rates] for rates in ("predicted", "observed"))
        axes.plot(
            predicted,
            observed,
            "o-",
            color=_COLOURS.get(name, _OTHER_COLOUR),
            markersize=5.5,
            label=words(name),
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
