"""The rounds of ``sqla-jobs bench``: loops in turn, their rates and counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, event

from sqla_jobs.errors import SqlaJobsError
from sqla_jobs.testing._benchmark import GAP_SECONDS, WARM_UP, Loops

PICK_UPS = range(10, 100)  # per round
TABLES = 9  # of the schema, made anew before each loop
BYTES_PER_ROW = 700  # of WAL, about
Loop = Callable[[Loops, int], None]


@dataclass(frozen=True)
class Side:
    """One loop, and what prepares its rows, unmeasured."""

    name: str
    run: Loop
    prepare: Loop | None = None
    drains: bool = False


@dataclass(frozen=True)
class Workload:
    """
    A loop of ours beside a plain one.

    Args:
        key: In the JSON.
        one_by_one: Whether each row is a transaction; a fifth of the rows do then.
        seconds: Of both loops per row, at a server without a way to it; about.
        trips: Of both loops per row, to the server and back; about.
    """

    key: str
    ours: Side
    plain: Side
    one_by_one: bool
    seconds: float
    trips: float

    def rows(self, jobs: int) -> int:
        """Return the rows of one loop."""
        return max(1, jobs // 5) if self.one_by_one else jobs


@dataclass
class Measured:
    """Rows per second by round, and what a row of ours costs the server."""

    workload: Workload
    ours: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    wal: list[float] = field(default_factory=list)
    statements: float = 0.0
    transactions: float = 0.0

    @property
    def ratios(self) -> list[float]:
        """Ours to the plain loop, of each round."""
        return [a / b for a, b in zip(self.ours, self.plain, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def wal_bytes(self) -> float | None:
        """The least of all rounds, for others write too; None if not permitted."""
        return min(self.wal, default=None)


@dataclass
class Report:
    """What `run_rounds` has measured."""

    measured: list[Measured]
    pick_up: list[float] = field(default_factory=list)

    def pick_up_ms(self, share: float) -> float:
        """Return the milliseconds that this *share* of the pick-ups took at most."""
        ordered = sorted(self.pick_up)
        return 1_000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def run_rounds(
    loops: Loops,
    workloads: list[Workload],
    *,
    jobs: int,
    rounds: int,
    advance: Callable[[str], None],
) -> Report:
    """
    Measure each workload *rounds* times, in an order that alternates.

    A round before that counts statements and warms up. *advance* is called with the
    name of what comes next, before each of the `steps`.

    Raises:
        SqlaJobsError: If a drain did not complete its jobs.
    """
    report = Report([Measured(workload) for workload in workloads])
    for number in range(rounds + 1):
        for measured in report.measured:
            advance(measured.workload.ours.name)
            _measure(loops, measured, jobs, number)
        advance("pick-up")
        loops.reset()
        spent = loops.pick_up(_pick_ups(jobs))
        report.pick_up += spent if number else []
    return report


def steps(workloads: list[Workload], rounds: int) -> int:
    """Return how often `run_rounds` advances."""
    return (rounds + 1) * (len(workloads) + 1)


def written(workloads: list[Workload], *, jobs: int, rounds: int) -> int:
    """Return about how many rows all rounds write."""
    of_round = sum(2 * one.rows(jobs) for one in workloads)
    return (rounds + 1) * (of_round + _pick_ups(jobs) + WARM_UP)


def seconds(
    workloads: list[Workload], *, jobs: int, rounds: int, round_trip: float
) -> float:
    """Return about how many seconds all rounds take."""
    of_round = (_pick_ups(jobs) + WARM_UP) * (GAP_SECONDS + 0.005 + 8 * round_trip)
    for one in workloads:
        of_round += one.rows(jobs) * (one.seconds + one.trips * round_trip)
        of_round += 2 * (0.2 + 8 * TABLES * round_trip)
    return (rounds + 1) * of_round


def _pick_ups(jobs: int) -> int:
    return max(PICK_UPS.start, min(PICK_UPS.stop, jobs // 50))


def _measure(loops: Loops, measured: Measured, jobs: int, number: int) -> None:
    count = measured.workload.rows(jobs)
    if number == 0:
        _time(loops, measured.workload.plain, count)
        counts = {"statements": 0, "transactions": 0}
        _time(loops, measured.workload.ours, count, around=counting(counts))
        measured.statements = counts["statements"] / count
        measured.transactions = counts["transactions"] / count
        return
    sides = [(measured.workload.plain, measured.plain)]
    sides.insert(number % 2, (measured.workload.ours, measured.ours))
    for side, rates in sides:
        spent, wal = _time(loops, side, count)
        rates.append(count / spent)
        if wal is not None and rates is measured.ours:
            measured.wal.append(wal / count)


def _time(
    loops: Loops,
    side: Side,
    count: int,
    *,
    around: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - has no state
) -> tuple[float, int | None]:
    """Return the seconds and the bytes of WAL of one loop."""
    loops.reset()
    if side.prepare is not None:
        side.prepare(loops, count)
    before = loops.wal()
    begun = time.perf_counter()
    with around:
        side.run(loops, count)
    spent = time.perf_counter() - begun
    after = loops.wal()
    if side.drains:
        if left := loops.left():
            raise SqlaJobsError(f"{side.name}: {left:,} of {count:,} jobs are left")
        # What starting a runner takes is not a rate's.
        spent -= loops.tables.begun[0] - begun
    return spent, None if before is None or after is None else after - before


@contextmanager
def counting(counts: dict[str, int]) -> Iterator[None]:
    """
    Add what all engines of this process do meanwhile to *counts*.

    What goes past SQLAlchemy, such as a COPY, is not among the statements.
    """

    def executed(connection: Connection, *_: Any) -> None:
        counts["statements"] += 1
        level = connection.get_execution_options().get("isolation_level")
        if level == "AUTOCOMMIT":  # as a runner's claims and outcomes are
            counts["transactions"] += 1

    def committed(_: Any) -> None:
        counts["transactions"] += 1

    event.listen(Engine, "before_cursor_execute", executed)
    event.listen(Engine, "commit", committed)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", executed)
        event.remove(Engine, "commit", committed)


def _fill(name: str) -> Loop:
    return lambda loops, count: loops.fill(name, count)


_PLAIN_DRAIN = Side(
    "claim 100 and DELETE them, no handlers", Loops.drain_plain, Loops.fill_plain
)
WORKLOADS = (
    Workload(
        "add",
        Side("add + commit", Loops.add_jobs),
        Side("the same with a row of three columns", Loops.add_rows),
        one_by_one=True,
        seconds=0.004,
        trips=6,
    ),
    Workload(
        "enqueue_many",
        Side("enqueue_many", Loops.enqueue_jobs),
        Side("INSERT of a list, in one transaction", Loops.insert_rows),
        one_by_one=False,
        seconds=0.0001,
        trips=0.002,
    ),
    Workload(
        "drain_async",
        Side("AsyncRunner, no-op", Loops.drain_async, _fill("async_noop"), drains=True),
        _PLAIN_DRAIN,
        one_by_one=False,
        seconds=0.0006,
        trips=0.2,
    ),
    Workload(
        "drain",
        Side("Runner, no-op", Loops.drain, _fill("noop"), drains=True),
        _PLAIN_DRAIN,
        one_by_one=False,
        seconds=0.0006,
        trips=0.2,
    ),
    Workload(
        "drain_writing",
        Side("Runner, one row each", Loops.drain_writing, _fill("write"), drains=True),
        Side("add + commit of the row, no queue", Loops.add_effects),
        one_by_one=True,
        seconds=0.006,
        trips=5,
    ),
)
