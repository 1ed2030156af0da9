"""Plots of the results, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display

from matplotlib import pyplot

PERCENTILES = ("p50", "p90", "p99", "p99.9")


def plot_all(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """`results` as in results.json."""
    paths = []
    if rows := results.get("rows"):
        paths += [_throughput(folder, rows), _latency(folder, rows)]
    if growth := results.get("growth"):
        paths.append(_growth(folder, growth))
    return paths


def _throughput(folder: Path, rows: Mapping[str, Any]) -> Path:
    figure, axes = pyplot.subplots(figsize=(9, 4))
    titles = [row["title"] for row in rows.values()]
    bars = axes.barh(titles, [row["rps"] for row in rows.values()], color="tab:blue")
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("requests per second, closed loop, 2 workers (median)")
    return _save(figure, folder / "throughput.png")


def _latency(folder: Path, rows: Mapping[str, Any]) -> Path:
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for name, row in rows.items():
        for (load, loop), line in zip(row["open_loops"].items(), ("--", "-"), strict=False):
            latencies = [loop["latency_ms"][p] for p in PERCENTILES]
            color = f"C{list(rows).index(name)}"
            axes.plot(PERCENTILES, latencies, line, marker="o", color=color, label=f"{name}, {load}")
    axes.set_yscale("log")
    axes.set_ylabel("latency from the moment due, ms")
    axes.set_title("open loop at a share of each one's own throughput")
    axes.legend(fontsize="small", ncols=2)
    return _save(figure, folder / "latency.png")


def _growth(folder: Path, growth: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    figure, all_axes = pyplot.subplots(1, len(growth), figsize=(4 * len(growth), 3.5), squeeze=False)
    for axes, (name, points) in zip(all_axes[0], growth.items(), strict=True):
        counting = [point for point in points if point["cpu_ms"] is not None and not point["problem"]]
        axes.plot([p["size"] for p in counting], [p["cpu_ms"] for p in counting], marker="o")
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(name)
    all_axes[0][0].set_ylabel("CPU of the service, ms per request")
    return _save(figure, folder / "growth.png")


def _save(figure, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
