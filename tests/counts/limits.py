"""
What the plain ways of a job cost, and how much more is too much.

Counts of a server, not times: they are the same on a slow machine. Claims and outcomes
are batched by time, though, so a runner's few statements vary a little.
`python -m tests.counts` prints what is measured now; with --write it fills the table.
"""

from __future__ import annotations

from tests.counts.server import Counts

SLACK = 1.1
"""A limit is this many times what was measured, also for bytes and buffers."""

BATCHED = Counts(0.02, 0.02, 0.06, 0, 0)
"""More that each limit of a runner allows: one batch in fifty jobs."""

# What one job, or one claim, was measured to cost: statements without BEGIN and COMMIT,
# transactions, round trips, bytes of WAL, buffers that statements hit or read.
# fmt: off
# Commit 683f028, SQLAlchemy 2.1.9, psycopg 3.3.9.
MEASURED: dict[str, Counts] = {
    "session.add + commit":              Counts( 1.010,  1.000,  3.020,    578,  4.310),
    "session.add + commit, waking":      Counts( 2.000,  1.000,  4.020,    578,  4.310),
    "enqueue() + commit":                Counts( 1.010,  1.000,  3.020,    580,  4.310),
    "add_all of 1,000":                  Counts( 0.002,  0.001,  0.004,    539,  5.631),
    "enqueue_many of 1,000":             Counts( 0.002,  0.001,  0.004,    497,  4.723),
    "AsyncRunner, no-op":                Counts( 0.006,  0.006,  0.018,    706, 20.537),
    "Runner, no-op":                     Counts( 0.032,  0.034,  0.098,    694, 20.630),
    "Runner, one row each":              Counts( 2.240,  1.320,  5.000,    896, 28.360),
    "Runner, one row each, in batches":  Counts( 0.030,  0.020,  0.070,    832, 23.522),
    "claim of 10":                       Counts( 1.000,  1.000,  3.050,  3_278, 76.550),
    "claim of 100":                      Counts( 1.000,  1.000,  3.050, 33_262,    798),
}
# fmt: on


def limits(name: str) -> Counts:
    """Return the most that each count of *name* may be."""
    slack = BATCHED if "Runner" in name else (0,) * len(BATCHED)
    pairs = zip(MEASURED[name], slack, strict=True)
    return Counts(*(SLACK * one + more for one, more in pairs))


def excess(name: str, found: Counts) -> list[str]:
    """Return what of *found* is above its limit."""
    each = zip(Counts._fields, found, MEASURED[name], limits(name), strict=True)
    return [
        f"{name}: {what} {one:,.3f}, was {was:,.3f}, may be {most:,.3f}"
        for what, one, was, most in each
        if one > most
    ]
