"""Draw the figures of a file: bars of the rates, and lines of the soak."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from tests.benchmarks.matrix import OURS, PEERS, WORKLOADS, Entry, Workload
from tests.benchmarks.results import Results, Spread, Value, percentile, rate
from tests.benchmarks.tables import number

FOLDER = Path("docs/explanation/performance")
COLORS = {OURS: "#3b82f6", "peers": "#e8730c", "no queue": "#8a8a8a"}
GREY = "#808080"  # readable on white and on black: the pictures have no background
SAME_IN_EACH_RUN: Any = {"svg.hashsalt": "bench", "svg.fonttype": "none"}
SOAK = {
    "jobs per second": (("enqueued", "enqueued"), ("rate", "run")),
    "pick-up, ms": (("p50", "p50"), ("p99", "p99")),
    "memory and table, MB": (("memory", "runner"), ("table", "table and indexes")),
    "rows": (("live", "live"), ("dead", "dead")),
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write a PNG and an SVG for each workload that has figures; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in pictures(results):
        written += save(picture, folder / f"bench-{name}")
    return written


def pictures(results: Results) -> Iterator[tuple[str, Picture]]:
    """Yield pictures by name."""
    for workload in WORKLOADS:
        latency = workload.measure == "latency"
        value = percentile("p50") if latency else rate
        if bars := _bars(results, workload, value):
            unit = "ms from COMMIT to the handler, p50" if latency else "per second"
            yield workload.key, _picture(f"{workload.title}: {unit}", bars)
    if results.soak:
        yield "soak", _soak(results.soak)


def save(picture: Picture, path: Path) -> list[Path]:
    """Write *picture* as *path*, PNG and SVG; return both files."""
    made = []
    with mpl.rc_context(SAME_IN_EACH_RUN):
        for ending in ("png", "svg"):
            target = path.with_name(f"{path.name}.{ending}")
            metadata = {"Date": None} if ending == "svg" else None
            picture.savefig(target, dpi=120, transparent=True, metadata=metadata)
            made.append(target)
    return made


Bar = tuple[Entry, Spread]


def _bars(results: Results, workload: Workload, value: Value) -> list[Bar]:
    found = (
        (entry, results.spread(workload.key, entry.key, value))
        for entry in workload.entries
    )
    return [(entry, known) for entry, known in found if known is not None]


def group_of(entry: Entry) -> str:
    """Return which color an entry has."""
    if entry.system == OURS:
        return OURS
    return "peers" if entry.system in PEERS else "no queue"


def _picture(title: str, bars: list[Bar]) -> Picture:
    picture = Picture(figsize=(8, 0.9 + 0.32 * len(bars)), layout="constrained")
    axes = picture.subplots()
    labelled = set()
    for entry, known in bars:
        group = group_of(entry)
        label = None if group in labelled else group
        labelled.add(group)
        ends = [[known.median - known.least], [known.most - known.median]]
        axes.barh(
            entry.name,
            known.median,
            xerr=ends,
            color=COLORS[group],
            ecolor=GREY,
            label=label,
            height=0.7,
        )
        axes.annotate(
            f" {number(known.median)}",
            (max(known.most, known.median), entry.name),
            va="center",
            color=GREY,
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    style(axes, title, grid="x")
    return picture


def style(axes: Axes, title: str, *, grid: Literal["both", "x"] = "both") -> None:
    """Make *axes* readable on a light page and on a dark one."""
    axes.set_title(title, color=GREY, fontsize=10)
    axes.tick_params(colors=GREY, which="both", labelsize=8)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    for spine in axes.spines.values():
        spine.set_color(GREY)
    axes.grid(visible=True, axis=grid, color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7, framealpha=0, labelcolor=GREY)


def _soak(rows: list[dict[str, float]]) -> Picture:
    picture = Picture(figsize=(9, 5.4), layout="constrained")
    minutes = [row["seconds"] / 60 for row in rows]
    grid = picture.subplots(2, 2).flat
    for axes, (title, lines) in zip(grid, SOAK.items(), strict=True):
        for (key, label), color in zip(lines, COLORS.values(), strict=False):
            axes.plot(minutes, [row[key] for row in rows], color=color, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("minutes")
        style(axes, title, grid="x")
    return picture
