"""Compare sqla_jobs with raw loops and with other job queues, in alternating rounds."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tests.benchmarks import budgets, tables
from tests.benchmarks.environments import Environments, NotInstalled
from tests.benchmarks.matrix import SYSTEMS, WORKLOADS, Step, chosen, steps
from tests.benchmarks.measure import Bench
from tests.benchmarks.results import Figure, Results
from tests.benchmarks.server import CALIBRATION_ROWS, Calibration, Server, own_server
from tests.benchmarks.soak import Row, Soak, row_line

REPORTS = ("table", "markdown", "budgets", "plot")
TRIES = 2
SOAK_MINUTES = 10.0
SOAK_RATE = 1_000


def words(value: str) -> list[str]:
    """Return the words of a list with commas."""
    return [word for word in value.split(",") if word]


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    keys = ", ".join(workload.key for workload in WORKLOADS)
    made = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    add = made.add_argument
    add("--rounds", type=int, default=7, help="default 7")
    add("--only", type=words, default=[], help=f"beginnings of: {keys}")
    add("--systems", type=words, default=[], help=", ".join(SYSTEMS))
    add("--scale", type=float, default=1.0, help="of all counts, default 1")
    add("--dsn", help="of a server to use; default: one of its own, with fsync on")
    add("--json", type=Path, help="file that gets, and keeps, every figure")
    kept = os.environ.get("SQLA_JOBS_BENCH_ENVIRONMENTS")
    folder = Path(kept) if kept else Path(tempfile.gettempdir(), "sqla_jobs_bench")
    told = "folder for the peers' environments"
    add("--environments", type=Path, default=folder, help=told)
    add("--soak", action="store_true", help="a constant rate for minutes, no rounds")
    add("--minutes", type=float, default=SOAK_MINUTES, help="of the soak, default 10")
    add("--rate", type=int, default=SOAK_RATE, help="of the soak, jobs per second")
    return made


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Return the checked command line."""
    reader = parser()
    args = reader.parse_args(given)
    args.systems = ["sqla_jobs" if one == "ours" else one for one in args.systems]
    if args.rounds < 1 or args.scale <= 0:
        reader.error("--rounds must be 1 or more and --scale above zero")
    if args.rate < 1 or args.minutes <= 0:
        reader.error("--rate must be 1 or more and --minutes above zero")
    if unknown := set(args.systems) - set(SYSTEMS):
        reader.error(f"unknown systems: {', '.join(sorted(unknown))}")
    if not chosen(args.only, args.systems):
        reader.error(f"nothing to measure: --only {','.join(args.only)}")
    return args


def progress_bar(console: Console) -> Progress:
    """Return a bar that says how long it will take."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"))
    return Progress(*columns, *left, console=console, transient=True)


def measure_all(
    bench: Bench, todo: Sequence[Step], results: Results, progress: Progress
) -> None:
    """Measure figure after figure; what fails twice is left out from then on."""
    failed: dict[str, int] = {}
    bar = progress.add_task("", total=len(todo))
    for step in todo:
        progress.update(bar, description=f"round {step.round + 1}, {step.name}")
        if failed.get(step.name, 0) < TRIES:
            try:
                figure = bench.measure(step)
            except Exception as error:  # noqa: BLE001 - the rest goes on
                again = TRIES if isinstance(error, NotInstalled) else 1
                failed[step.name] = failed.get(step.name, 0) + again
                results.fail(step.workload.key, step.entry.key, str(error))
                progress.console.print(f"[red]failed[/red] {step.name}: {error}")
            else:
                results.facts["systems"] = bench.facts
                results.add(figure)
                progress.console.print(line_of(step, figure), highlight=False)
        progress.advance(bar)


def line_of(step: Step, figure: Figure) -> str:
    """Return a figure in one line."""
    said = [f"round {step.round + 1}  {step.name}:"]
    if figure.rate is not None:
        said.append(f"{figure.rate:,.0f}/s, {figure.of_calibration:.3f} of CAL")
    if figure.from_commit:
        said += [f"{name} {ms:.2f} ms" for name, ms in figure.from_commit.items()]
    if not figure.finished:
        said.append("not finished in time")
    if figure.beyond:
        said.append(f"{figure.beyond} handler runs too many")
    return " ".join(said)


def facts(server: Server) -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "server": server.settings(),
    }


def show(results: Results, console: Console) -> None:
    """Print the tables, and what went wrong."""
    for sheet in tables.sheets(results):
        console.print(tables.rich_table(sheet))
    console.print(tables.NOTE)
    console.print(tables.busy_note(results), style="yellow")
    for line in tables.failures(results):
        console.print(f"failed: {line}", highlight=False, markup=False)


@contextmanager
def bench_of(args: argparse.Namespace, results: Results) -> Iterator[Bench]:
    """Yield what figures need; the server is stopped at the end."""
    with (
        tempfile.TemporaryDirectory() as folder,
        own_server(args.dsn) as server,
    ):
        results.facts |= facts(server)
        rows = max(100, int(CALIBRATION_ROWS * args.scale))
        yield Bench(
            server=server,
            environments=Environments(args.environments),
            calibration=Calibration(server, rows),
            folder=Path(folder),
            run=str(int(time.time())),
            scale=args.scale,
        )


def run(args: argparse.Namespace, results: Results, console: Console) -> None:
    """Measure what is chosen, and print it."""
    picked = chosen(args.only, args.systems)
    todo = list(steps(picked, args.rounds))
    for workload, entries in picked:
        for entry in entries:
            results.forget(workload.key, entry.key)
    console.print(f"{len(todo)} figures in {args.rounds} rounds")
    with bench_of(args, results) as bench, progress_bar(console) as progress:
        measure_all(bench, todo, results, progress)
    show(results, console)


def soak(args: argparse.Namespace, results: Results, console: Console) -> None:
    """Run jobs at a constant rate."""
    results.soak = []

    def show_row(row: Row) -> None:
        results.soak.append(row)
        results.write()
        console.print(row_line(row), highlight=False)

    console.print(f"{args.rate} jobs per second for {args.minutes:g} minutes")
    with bench_of(args, results) as bench:
        Soak(bench, rate=args.rate, seconds=60 * args.minutes).run(show_row)


def report(given: Sequence[str], console: Console) -> None:
    """Print or draw what a file holds."""
    reader = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    reader.add_argument("what", choices=REPORTS)
    reader.add_argument("file", type=Path, help="what --json wrote")
    reader.add_argument("--plots", type=Path, help="folder of the pictures")
    args = reader.parse_args(given)
    results = Results.read(args.file)
    match args.what:
        case "table":
            show(results, console)
        case "budgets":
            console.print(tables.rich_table(budgets.sheet(results)))
        case "markdown":
            print(tables.document(results, budgets.sheet(results)))
        case "plot":
            from tests.benchmarks import plots  # matplotlib is needed for it only

            for path in plots.draw(results, args.plots or plots.FOLDER):
                console.print(path)


def main() -> None:
    """Do what the command line says."""
    given = sys.argv[1:]
    console = Console(width=None if sys.stdout.isatty() else 200)
    if given and given[0] in REPORTS:
        report(given, console)
        return
    args = arguments(given)
    results = Results.opened(args.json)
    try:
        (soak if args.soak else run)(args, results, console)
    except KeyboardInterrupt:
        show(results, console)
        sys.exit("stopped: the figures above are what there was time for")


if __name__ == "__main__":
    main()
