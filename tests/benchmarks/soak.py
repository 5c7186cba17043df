"""A constant rate of jobs for minutes: what it does to time, memory and table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg

from tests.benchmarks.matrix import OURS, Entry
from tests.benchmarks.measure import Bench
from tests.benchmarks.programs import Program, poll
from tests.benchmarks.results import percentiles
from tests.benchmarks.systems.program import SOAK_TICK, Counter, Options

WINDOW = 30.0  # seconds between two lines
MEGABYTE = 1_000_000
SIZE = (
    "SELECT pg_total_relation_size('jobs')::float8, n_live_tup::float8,"
    " n_dead_tup::float8 FROM pg_stat_user_tables WHERE relname = 'jobs'"
)
Row = dict[str, float]


class Soak:
    """
    Ours: one process that enqueues, one that runs.

    Args:
        rate: Jobs per second; a multiple of 50.
        seconds: How long.
        window: Seconds between two rows.
    """

    def __init__(
        self, bench: Bench, *, rate: int, seconds: float, window: float = WINDOW
    ) -> None:
        self.bench, self.seconds = bench, seconds
        self.window = window
        self.entry = Entry(key=OURS, system=OURS, how="async", kind="soak")
        self.uri = bench.database(self.entry)
        self.size = max(1, round(rate * SOAK_TICK))
        self.count = self.size * int(seconds / SOAK_TICK)
        self.sent = self._counter("sent")
        self.told = self._counter("told")

    def _counter(self, name: str) -> Counter:
        return Counter(self.bench.folder / name, told=self.count)

    def run(self, show: Callable[[Row], None]) -> None:
        """
        Run it; *show* gets a row per window.

        Raises:
            Failed: If one of the two processes does not live through it.
        """
        folder, bench = self.bench.folder, self.bench
        work = Options(self.uri, kind="soak", how="async", counter=str(folder / "told"))
        send = replace(
            work, count=self.count, counter=str(folder / "sent"), size=self.size
        )
        with (
            bench.program(self.entry, "work", work) as worker,
            bench.program(self.entry, "soak", send) as sender,
        ):
            worker.ready().go()
            sender.ready().go()
            for row in self._watch(worker, sender):
                show(row)

    def _watch(self, worker: Program, sender: Program) -> Iterator[Row]:
        start = time.monotonic()
        sent = told = 0
        last = 0.0
        end = self.seconds
        while last < end:
            due = start + min(last + self.window, end)
            while poll(due, 0.1):
                worker.check()
                sender.check()
            now = time.monotonic() - start
            at = (self.sent.runs, self.told.runs)
            row = {
                "seconds": now,
                "enqueued": (at[0] - sent) / (now - last),
                "rate": (at[1] - told) / (now - last),
                "waiting": float(at[0] - at[1]),
                "memory": worker.memory() / MEGABYTE,
                **self.times(sent, at[0]),
                **self.table(),
            }
            sent, told, last = *at, now
            yield row

    def times(self, first: int, last: int) -> Row:
        """Return percentiles of the time from COMMIT to the handler, in ms."""
        sent, told = self.sent.told(first, last), self.told.told(first, last)
        pairs = zip(sent, told, strict=True)
        waits = [1000 * (there - here) for here, there in pairs if here and there]
        return percentiles(waits) if waits else dict.fromkeys(("p50", "p99"), 0.0)

    def table(self) -> Row:
        """Return the size of the table with its indexes, and its rows."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            found = connection.execute(SIZE.encode()).fetchone()
        size, live, dead = found or (0.0, 0.0, 0.0)
        return {"table": size / MEGABYTE, "live": live, "dead": dead}


def row_line(row: Row) -> str:
    """Return a row as text."""
    return (
        f"{row['seconds']:5.0f} s: {row['enqueued']:,.0f}/s enqueued,"
        f" {row['rate']:,.0f}/s run, {row['waiting']:,.0f} waiting;"
        f" pick-up p50 {row['p50']:.1f}, p99 {row['p99']:.1f} ms;"
        f" runner {row['memory']:.0f} MB; table {row['table']:.0f} MB,"
        f" {row['live']:,.0f} live and {row['dead']:,.0f} dead rows"
    )
