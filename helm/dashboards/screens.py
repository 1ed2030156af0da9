"""Pictures of the dashboards, from their own queries to a Prometheus: for documents, and for machines without Grafana.

python -m helm.dashboards.screens http://localhost:9090 --minutes 60 --to build/dashboards
"""

import argparse
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from helm.dashboards.drawing import INK, PAPER, Frame, draw
from helm.dashboards.panels import FULL_WIDTH
from helm.dashboards.reading import VARIABLES, contents, panels
from helm.dashboards.source import Source

# Of Grafana's grid.
COLUMN_IN, ROW_IN = 0.66, 0.36
TITLE_ROWS = 1.5
GAP_IN = 0.025
DPI, COLOURS = 100, 96


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="of the Prometheus")
    parser.add_argument("--minutes", type=float, default=180.0, help="how much time is shown, up to now")
    parser.add_argument("--window", default="1m", help="of rates; at least four scrapes")
    parser.add_argument("--to", type=Path, default=Path("build/dashboards"), help="folder for the pictures")
    chosen = parser.parse_args()
    now_s, length_s = time.time(), 60 * chosen.minutes
    variables = {**VARIABLES, "__rate_interval": chosen.window, "__range": f"{length_s:.0f}s"}
    write_screens(Source(chosen.url, now_s - length_s, now_s), chosen.to, variables)


def write_screens(source: Source, folder: Path, variables: Mapping[str, str]) -> None:
    """One picture per dashboard."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        (folder / f"{name}.png").write_bytes(screen(source, content, variables))


def screen(source: Source, content: Mapping[str, Any], variables: Mapping[str, str]) -> bytes:
    """A dashboard as a PNG."""
    rows = TITLE_ROWS + max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in content["panels"])
    picture = Figure(figsize=(FULL_WIDTH * COLUMN_IN, rows * ROW_IN), dpi=DPI, facecolor=PAPER)
    _write(picture, -TITLE_ROWS / 2, content["title"], 15)
    for row in content["panels"]:
        if row["type"] == "row":
            _write(picture, row["gridPos"]["y"] + 0.5, row["title"], 11)
    for panel in panels(content, variables):
        draw(_frame(picture, panel.content["gridPos"]), panel, source)
    drawn = BytesIO()
    FigureCanvasAgg(picture).print_png(drawn)
    return _with_few_colours(drawn)


def _write(picture: Figure, row: float, text: str, size: float) -> None:
    height_in = picture.get_figheight()
    y = 1 - (TITLE_ROWS + row) * ROW_IN / height_in
    picture.text(0.006, y, text, color=INK, fontsize=size, va="center")


def _frame(picture: Figure, place: Mapping[str, int]) -> Frame:
    width_in, height_in = place["w"] * COLUMN_IN - 2 * GAP_IN, place["h"] * ROW_IN - 2 * GAP_IN
    left_in = place["x"] * COLUMN_IN + GAP_IN
    bottom_in = picture.get_figheight() - (TITLE_ROWS + place["y"] + place["h"]) * ROW_IN + GAP_IN
    across, up = picture.get_size_inches()
    axes = picture.add_axes((left_in / across, bottom_in / up, width_in / across, height_in / up))
    return Frame(axes, width_in, height_in)


def _with_few_colours(png: BytesIO) -> bytes:
    """The same as a file of a fraction of the size."""
    smaller = BytesIO()
    image = Image.open(png).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


if __name__ == "__main__":
    main()
