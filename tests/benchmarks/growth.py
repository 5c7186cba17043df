"""
Measure claims beside ever more rows: ``python -m tests.benchmarks.growth --quick``.

Buffers are counted by the server and hardly vary; milliseconds do, on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from sqla_jobs._core.limits import NO_FEATURES, Features
from sqla_jobs._store.features import read_queues
from tests.benchmarks.growth_kit import TABLES, Bed, open_bed

PLOTS = Path("docs/explanation/performance")
LIMITS = (10, 100)
STEPS = 10  # points under the held snapshot


@dataclass(frozen=True, slots=True)
class Sizes:
    """How far it goes."""

    rows: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000)
    channels: Sequence[int] = (1, 10, 100, 1_000, 10_000)
    claimers: Sequence[int] = (1, 2, 4, 8, 16)
    backlog: int = 100_000  # where something else grows
    snapshot: int = 100_000  # jobs that run while the snapshot is held
    minutes: float = 0.0
    rounds: int = 7


QUICK = Sizes((1_000, 10_000), (1, 100), (1, 4), 10_000, 5_000)


@dataclass(frozen=True, slots=True)
class Case:
    """
    A state of the database, and the claims that are measured in it.

    Args:
        x: What grows.
        prepare: Brings the database into that state.
    """

    series: str
    x: int
    prepare: Callable[[Bed], None]
    claimers: int = 1
    queues: Mapping[str, int] | None = None
    features: Callable[[Bed], Features] = field(default=lambda bed: NO_FEATURES)


def backlog(sizes: Sizes) -> Iterator[Case]:
    """More and more available jobs; the runner names its queue, or takes from all."""

    def prepare(bed: Bed, rows: int) -> None:
        bed.clear()
        bed.fill(rows)
        bed.vacuum()

    ways: dict[str, Mapping[str, int] | None] = {
        "all queues": None,
        "one queue": {"default": 100},
    }
    for series, queues in ways.items():
        for rows in sizes.rows:
            yield Case(series, rows, partial(prepare, rows=rows), queues=queues)


def beside(sizes: Sizes) -> Iterator[Case]:
    """2,000 available jobs beside more and more that are scheduled, or completed."""

    def prepare(bed: Bed, state: str, rows: int) -> None:
        bed.clear()
        if rows:
            bed.fill(rows, state=state)
        bed.vacuum()
        bed.fill(2_000)
        bed.analyze()

    for state in ("scheduled", "completed"):
        for rows in (0, *sizes.rows):
            yield Case(state, rows, partial(prepare, state=state, rows=rows))


def channels(sizes: Sizes) -> Iterator[Case]:
    """As many jobs in more and more channels: plain, ordered and fair ones."""

    def prepare(bed: Bed, series: str, count: int) -> None:
        bed.clear()
        bed.fill(sizes.backlog, channels=count, ordered=series == "ordered")
        if series == "fair":
            bed.make_fair("default")
        bed.vacuum()

    features: dict[str, Callable[[Bed], Features]] = {
        "plain": lambda bed: NO_FEATURES,
        "ordered": lambda bed: Features(ordered=True),
        "fair": _read_features,
    }
    for series, read in features.items():
        for count in sizes.channels:
            made = partial(prepare, series=series, count=count)
            yield Case(series, count, made, features=read)


def _read_features(bed: Bed) -> Features:
    with bed.sessions() as session:
        return Features(queues=read_queues(session, TABLES))


def claimers(sizes: Sizes) -> Iterator[Case]:
    """More and more claims that start at the same time, from one queue."""

    def prepare(bed: Bed) -> None:
        bed.clear()
        bed.fill(sizes.backlog)
        bed.vacuum()

    for count in sizes.claimers:
        yield Case("at once", count, prepare, claimers=count)


def snapshot(sizes: Sizes) -> Iterator[Case]:
    """Jobs run while somebody holds a snapshot: no row that dies can be removed."""
    step = sizes.snapshot // STEPS

    def begin(bed: Bed) -> None:
        bed.clear()
        # What runs, as much again, and what the measured claims take.
        bed.fill(2 * sizes.snapshot + STEPS * 2 * (sizes.rounds + 1) * sum(LIMITS))
        bed.vacuum()
        bed.hold()

    def go_on(bed: Bed) -> None:
        until = time.monotonic() + 60 * sizes.minutes / STEPS
        bed.work(step)
        time.sleep(max(0.0, until - time.monotonic()))

    yield Case("one queue", 0, begin, queues={"default": 100})
    for number in range(1, STEPS + 1):
        # Two versions of a job's row are dead once it is completed.
        dead = 2 * step * number
        yield Case("one queue", dead, go_on, queues={"default": 100})
        yield Case("all queues", dead, lambda bed: None)


PARTS: dict[str, tuple[Callable[[Sizes], Iterator[Case]], str]] = {
    "backlog": (backlog, "available jobs"),
    "beside": (beside, "scheduled or completed jobs beside"),
    "channels": (channels, "channels"),
    "claimers": (claimers, "claims at once"),
    "snapshot": (snapshot, "dead rows under a held snapshot"),
}
"""What is measured, and what grows there."""


def measure(bed: Bed, case: Case, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield a point per size of a claim."""
    case.prepare(bed)
    for limit in LIMITS:
        cost = bed.cost(
            limit,
            rounds=sizes.rounds,
            claimers=case.claimers,
            queues=case.queues,
            features=case.features(bed),
        )
        point = {"series": case.series, "x": case.x, "limit": limit}
        yield {**point, **cost.asdict()}


Points = list[dict[str, Any]]


class Report:
    """The points so far: in the file, if there is one, before the next are measured."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.parts: dict[str, Points] = {}
        if path is not None and path.exists():
            self.parts = json.loads(path.read_text())["growth"]

    def begin(self, part: str) -> None:
        """Forget an earlier measurement of *part*."""
        self.parts[part] = []

    def add(self, part: str, points: Points) -> None:
        """Add points and write the file."""
        self.parts[part] += points
        if self._path is not None:
            self._path.write_text(json.dumps({"growth": self.parts}, indent=1) + "\n")


def run(bed: Bed, sizes: Sizes, report: Report, names: Sequence[str]) -> list[str]:
    """Measure the parts and return what failed; the others go on."""
    failed, columns = [], (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, MofNCompleteColumn(), transient=True) as progress:
        for name in names:
            cases = list(PARTS[name][0](sizes))
            bar = progress.add_task(name, total=len(cases))
            report.begin(name)
            try:
                for case in cases:
                    text = f"{name}: {case.series}, {case.x:,}"
                    progress.update(bar, description=text)
                    report.add(name, list(measure(bed, case, sizes)))
                    progress.advance(bar)
            except Exception as exc:  # noqa: BLE001 - of one part: the rest goes on
                failed.append(f"{name}: {type(exc).__name__}: {exc}")
    return failed


def show(console: Console, name: str, points: Points) -> None:
    """Print a part as a table."""
    table = Table(title=f"claims by {PARTS[name][1]}")
    heads = (PARTS[name][1], "claim of", "jobs", "buffers", "ms", "server ms")
    table.add_column("series")
    for head in heads:
        table.add_column(head, justify="right")
    for point in points:
        table.add_row(
            point["series"],
            f"{point['x']:,}",
            str(point["limit"]),
            f"{point['rows']:g}",
            f"{point['buffers']:,.0f}",
            f"{point['ms']:.1f}",
            f"{point['server_ms']:.1f}",
        )
    console.print(table)


def budgets(parts: Mapping[str, Points]) -> Iterator[tuple[str, float, float]]:
    """Yield the budgets that the points speak of: what, the limit, the figure."""
    tens = {
        name: [p for p in points if p["limit"] == 10] for name, points in parts.items()
    }
    for state in ("scheduled", "completed"):
        found = [p for p in tens.get("beside", []) if p["series"] == state]
        if found:
            ratio = found[-1]["buffers"] / found[0]["buffers"]
            what = (
                f"beside {found[-1]['x']:,} {state} rows, buffers by an empty table's"
            )
            yield what, 1.1, ratio
    for series in ("one queue", "all queues"):
        found = [p for p in tens.get("snapshot", []) if p["series"] == series]
        at = next((p for p in found if p["x"] >= 100_000), found[-1] if found else None)
        if at:
            what = f"{at['x']:,} dead rows, {series}: buffers of a claim of 10"
            yield what, 150, at["buffers"]


def show_budgets(console: Console, parts: Mapping[str, Points]) -> None:
    """Print the budgets, met or not."""
    for what, limit, figure in budgets(parts):
        verdict = "met" if figure <= limit else "NOT met"
        console.print(
            f"{what}: {figure:,.2f}, at most {limit:g}: {verdict}", soft_wrap=True
        )


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas")
    parser.add_argument("--rounds", type=int, default=7, help="1 to 8, default 7")
    parser.add_argument("--minutes", type=float, default=0, help="hold the snapshot")
    parser.add_argument("--json", type=Path, help="file; other parts in it stay")
    parser.add_argument("--plots", type=Path, nargs="?", const=PLOTS, help="folder")
    parser.add_argument("--dsn", help="a server with pg_stat_statements, to create in")
    args = parser.parse_args()
    args.parts = [name for name in PARTS if name in args.only.split(",")]
    unknown = {*args.only.split(",")} - {*PARTS}
    if unknown or not 1 <= args.rounds <= 8:
        parser.error(f"--only takes {', '.join(PARTS)}; --rounds 1 to 8")
    return args


def main() -> None:
    """Measure what is asked for, print it, write it."""
    args, console = arguments(), Console()
    given = QUICK if args.quick else Sizes()
    sizes = replace(given, minutes=args.minutes, rounds=args.rounds)
    report = Report(args.json)
    # Vacuumed by hand, before each case: else the figures depend on when it comes.
    with open_bed(args.dsn, autovacuum=False) as bed:
        failed = run(bed, sizes, report, args.parts)
    for name in args.parts:
        show(console, name, report.parts[name])
    show_budgets(console, report.parts)
    if args.plots:
        from tests.benchmarks.growth_plots import plot_growth

        plot_growth(report.parts, args.plots)
    for line in failed:
        console.print(f"failed: {line}", style="red", markup=False, soft_wrap=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
