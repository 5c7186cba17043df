"""Draw what `growth` measured: ``python -m tests.benchmarks.growth_plots FILE``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks.growth import PARTS, PLOTS
from tests.benchmarks.plots import save, style

Points = Sequence[Mapping[str, Any]]
COLORS = ("#3b82f6", "#e8730c", "#16a34a", "#a855f7")
FIGURES = {"buffers": "buffers per claim", "ms": "ms per claim, with COMMIT"}


def plot_growth(parts: Mapping[str, Points], folder: Path) -> list[Path]:
    """Write a PNG and an SVG per part to *folder*, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, points in parts.items():
        if points:
            written += save(_figure(name, points), folder / f"growth-{name}")
    return written


def _figure(name: str, points: Points) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), FIGURES.items(), strict=True):
        _draw(axes, points, key)
        _log_scale(axes, [point["x"] for point in points])
        axes.set_xlabel(PARTS[name][1])
        style(axes, title)
    return figure


def _draw(axes: Axes, points: Points, key: str) -> None:
    names = list(dict.fromkeys(point["series"] for point in points))
    for color, series in zip(COLORS, names, strict=False):
        for limit, line in ((10, "-"), (100, "--")):
            found = [p for p in points if (p["series"], p["limit"]) == (series, limit)]
            axes.plot(
                [point["x"] for point in found],
                [point[key] for point in found],
                line,
                marker="o",
                markersize=3,
                color=color,
                label=f"{series}, claim of {limit}",
            )


def _log_scale(axes: Axes, values: Iterable[int]) -> None:
    positive = min((value for value in values if value), default=1)
    if 0 in values:
        axes.set_xscale("symlog", linthresh=positive, linscale=0.4)
    else:
        axes.set_xscale("log")
    axes.set_yscale("log")


def main() -> None:
    """Draw the points of a file."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth_plots")
    parser.add_argument("file", type=Path, help="what --json wrote")
    parser.add_argument("folder", type=Path, nargs="?", default=PLOTS)
    args = parser.parse_args()
    parts = json.loads(args.file.read_text())["growth"]
    for path in plot_growth(parts, args.folder):
        print(path)


if __name__ == "__main__":
    main()
