"""The budgets of the design, line by line, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.benchmarks.matrix import OURS, workload_of
from tests.benchmarks.results import (
    Figure,
    Results,
    Spread,
    Value,
    paired,
    percentile,
    rate,
)
from tests.benchmarks.tables import (
    NOTHING,
    Sheet,
    best_peer,
    number,
    of_calibration,
    spread,
)

Measure = Callable[[Results], Spread | None]


@dataclass(frozen=True)
class Budget:
    """
    One limit.

    Args:
        work: What it is about.
        what: What is compared with the limit.
        limit: The limit.
        measure: What was measured.
        at_least: Whether the limit is the least that is allowed, or else the most.
    """

    work: str
    what: str
    limit: float
    measure: Measure
    at_least: bool = True

    def met(self, measured: Spread) -> bool:
        """Return whether the median keeps the limit."""
        if self.at_least:
            return measured.median >= self.limit
        return measured.median <= self.limit


def to(workload: str, entry: str, base: str, value: Value = rate) -> Measure:
    """Compare two entries of a workload; *base* may be ``best peer``."""

    def measure(results: Results) -> Spread | None:
        key: str | None = base
        if base == "best peer":
            key = best_peer(results, workload_of(workload))
        of = results.of
        return paired(of(workload, entry), of(workload, key or ""), value)

    return measure


def alone(workload: str, entry: str, value: Value) -> Measure:
    """Take a value of the entry itself."""
    return lambda results: results.spread(workload, entry, value)


def across(workload: str, other: str, entry: str) -> Measure:
    """Compare an entry of a workload with the same entry of another one."""
    return lambda results: paired(results.of(workload, entry), results.of(other, entry))


def inverse(measure: Measure) -> Measure:
    """Make a ratio of rates one of times."""

    def measured(results: Results) -> Spread | None:
        found = measure(results)
        if found is None:
            return None
        return Spread(
            median=1 / found.median,
            least=1 / found.most,
            most=1 / found.least,
            count=found.count,
        )

    return measured


def tail(figure: Figure) -> float | None:
    """Return p99 / p50 of the time from COMMIT to the handler."""
    times = figure.from_commit
    return times["p99"] / times["p50"] if times.get("p50") else None


NO_OP = "no-op async jobs, 1 process"
BESIDE = "beside 1,000,000 {} rows"
ROW = "one domain row per job"
PER_JOB = "per no-op async job"
PICK_UP = "from COMMIT to the handler, idle runner"

BUDGETS: tuple[Budget, ...] = (
    Budget(NO_OP, "/ pgqueuer", 1.2, to("drain-async", OURS, "pgqueuer")),
    Budget(NO_OP, "/ CAL", 0.7, alone("drain-async", OURS, of_calibration)),
    Budget(
        "no-op async jobs, 2 processes",
        "/ pgqueuer's two",
        1.1,
        to("drain-two", OURS, "pgqueuer"),
    ),
    Budget(
        "no-op sync jobs, 100 threads",
        "/ best peer",
        10.0,
        to("drain-sync", OURS, "best peer"),
    ),
    Budget(
        "no-op sync jobs, 100 threads",
        "/ CAL",
        0.4,
        alone("drain-sync", OURS, of_calibration),
    ),
    *(
        Budget(
            BESIDE.format(word),
            "/ empty table",
            0.8,
            to(f"drain-{word}", OURS, f"{OURS}/empty table"),
        )
        for word in ("scheduled", "completed")
    ),
    Budget(
        f"{ROW}, ctx.session, threads",
        "/ bare loop",
        0.7,
        to("effect", OURS, "bare"),
    ),
    Budget(
        f"{ROW}, ctx.session, async",
        "/ bare loop",
        0.7,
        to("effect", f"{OURS}/async", "bare"),
    ),
    Budget(
        f"{ROW}, ctx.session, 2 processes",
        "/ 1 process",
        1.0,
        across("effect-two", "effect", OURS),
    ),
    Budget(
        f"{ROW}, batch handler",
        "/ pgqueuer",
        1.5,
        to("effect", f"{OURS}/batch", "pgqueuer"),
    ),
    Budget(
        "session.add + commit",
        "time / plain 3-column row's",
        1.4,
        inverse(to("enqueue-one", f"{OURS}/session.add", "plain-row")),
        at_least=False,
    ),
    Budget(
        "Core enqueue",
        "/ fastest peer",
        1.0,
        to("enqueue-one", f"{OURS}/Core insert", "best peer"),
    ),
    Budget(
        "bulk enqueue of 20,000",
        "/ pgqueuer",
        1.2,
        to("enqueue-bulk", f"{OURS}/enqueue_many", "pgqueuer"),
    ),
    Budget(
        PICK_UP,
        "p50 / pgqueuer's",
        0.8,
        to("latency", OURS, "pgqueuer", percentile("p50")),
        at_least=False,
    ),
    Budget(
        PICK_UP,
        "p99 / own p50",
        3.0,
        alone("latency", OURS, tail),
        at_least=False,
    ),
    Budget(
        PER_JOB,
        "statements",
        0.01,
        alone("drain-async", OURS, lambda figure: figure.statements),
        at_least=False,
    ),
    Budget(
        PER_JOB,
        "transactions",
        0.01,
        alone("drain-async", OURS, lambda figure: figure.transactions),
        at_least=False,
    ),
    Budget(
        PER_JOB,
        "WAL bytes",
        800.0,
        alone("drain-async", OURS, lambda figure: figure.wal),
        at_least=False,
    ),
    Budget(
        PER_JOB,
        "client CPU / pgqueuer's",
        1.0,
        to("drain-async", OURS, "pgqueuer", lambda figure: figure.client_cpu),
        at_least=False,
    ),
)


def sheet(results: Results) -> Sheet:
    """Return the table of all budgets."""
    rows = tuple(_rows(results))
    columns = ("work", "measured as", "limit", "median (least-most)", "rounds", "")
    return Sheet("Budgets", columns, rows)


def _rows(results: Results) -> Iterator[tuple[str, ...]]:
    for budget in BUDGETS:
        sign = ">=" if budget.at_least else "<="
        limit = f"{sign} {number(budget.limit)}"
        found = budget.measure(results)
        if found is None:
            yield (budget.work, budget.what, limit, NOTHING, "0", "not measured")
            continue
        said = "met" if budget.met(found) else "not met"
        yield (budget.work, budget.what, limit, spread(found), str(found.count), said)
