"""Print jobs per second beside plain loops, in alternating rounds of one run."""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import text

from sqla_jobs.testing import PostgresServer
from tests.benchmarks.workloads import WORKLOADS, Bench, Side, Workload, timed


@dataclass
class Measured:
    """The rates of a workload's rounds, and what a job of ours cost the server."""

    workload: Workload
    ours: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    statements: float = 0.0
    transactions: float = 0.0
    wal_bytes: float = 0.0

    def ratio(self) -> float:
        """Return the median of the paired ratios."""
        pairs = zip(self.ours, self.plain, strict=True)
        return statistics.median(a / b for a, b in pairs)


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, default 3")
    parser.add_argument("--scale", type=float, default=1.0, help="of rows, default 1")
    parser.add_argument("--only", default="", help="workloads with this in their name")
    parser.add_argument("--dsn", default=os.environ.get("SQLA_JOBS_BENCH_DSN"))
    args = parser.parse_args()
    if args.rounds < 1 or args.scale <= 0:
        parser.error("--rounds must be 1 or more and --scale above zero")
    return args


def measure(bench: Bench, side: Side, count: int) -> tuple[float, tuple[int, int, int]]:
    """Return rows per second, and statements, transactions and WAL bytes."""
    bench.reset()
    if side.prepare is not None:
        side.prepare(bench, count)
    before = counters(bench)
    seconds = timed(lambda: side.run(bench, count))
    after = counters(bench)
    if side.drains and bench.leftovers():
        sys.exit(f"{side.name}: {bench.leftovers()} jobs were not completed")
    spent = tuple(b - a for a, b in zip(before, after, strict=True))
    return count / seconds, (spent[0], spent[1], spent[2])


def counters(bench: Bench) -> tuple[int, int, int]:
    """Return the server's statements, commits and WAL position."""
    with bench.engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        row = connection.execute(
            text(
                "SELECT (SELECT coalesce(sum(calls), 0)::bigint FROM"
                " pg_stat_statements), (SELECT sum(xact_commit)::bigint FROM"
                " pg_stat_database),"
                " (pg_current_wal_insert_lsn() - '0/0')::bigint"
            )
        ).one()
        return int(row[0]), int(row[1]), int(row[2])


def run(bench: Bench, args: argparse.Namespace, progress: Progress) -> list[Measured]:
    """Measure every workload, ours and the plain loop in turn."""
    chosen = [w for w in WORKLOADS if args.only in w.name]
    bar = progress.add_task("rounds", total=args.rounds * len(chosen))
    results = [Measured(workload) for workload in chosen]
    for _ in range(args.rounds):
        for result in results:
            workload = result.workload
            progress.update(bar, description=workload.name)
            count = max(1, int(workload.count * args.scale))
            rate, _spent = measure(bench, workload.plain, count)
            result.plain.append(rate)
            rate, spent = measure(bench, workload.ours, count)
            result.ours.append(rate)
            result.statements, result.transactions, result.wal_bytes = (
                number / count for number in spent
            )
            progress.advance(bar)
    return results


def show(results: list[Measured], console: Console) -> None:
    """Print the table."""
    table = Table(title="rows or jobs per second, medians")
    for name in ("workload", "sqla_jobs", "beside", "ratio", "spread"):
        table.add_column(name, justify="left" if name == "workload" else "right")
    for name in ("stmts/job", "tx/job", "WAL B/job"):
        table.add_column(name, justify="right")
    for result in results:
        workload = result.workload
        ratios = sorted(a / b for a, b in zip(result.ours, result.plain, strict=True))
        table.add_row(
            workload.name,
            f"{workload.ours.name}: {statistics.median(result.ours):,.0f}",
            f"{workload.plain.name}: {statistics.median(result.plain):,.0f}",
            f"{result.ratio():.2f}",
            f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
            f"{result.statements:.3f}",
            f"{result.transactions:.3f}",
            f"{result.wal_bytes:,.0f}",
        )
    console.print(table)
    console.print("ratio: sqla_jobs / the plain loop, median of the paired rounds")


def main() -> None:
    """Run the benchmark on a server of its own, with fsync on."""
    args = arguments()
    logging.getLogger("sqla_jobs").setLevel(logging.ERROR)
    console = Console(width=None if sys.stdout.isatty() else 150)
    with ExitStack() as stack:
        dsn = args.dsn
        if dsn is None:
            server = PostgresServer(
                fsync="on",
                synchronous_commit="on",
                full_page_writes="on",
                shared_buffers="512MB",
                max_wal_size="4GB",
                shared_preload_libraries="pg_stat_statements",
            )
            dsn = stack.enter_context(server).dsn
        bench = Bench(dsn)
        with bench.engine.begin() as connection:
            connection.execute(
                text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            )
        with Progress(console=console, transient=True) as progress:
            results = run(bench, args, progress)
        show(results, console)
        bench.engine.dispose()


if __name__ == "__main__":
    main()
