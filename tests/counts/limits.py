"""
What the plain ways of a job cost, and how much more is too much.

Counts of a server, not times: they are the same on a slow machine. Claims and outcomes
are batched by time, though, so a runner's few statements vary a little.
`python -m tests.counts` prints what is measured now; with --write it fills the table.
Another version of the server reads other buffers, so there these are not compared.
"""

from __future__ import annotations

from tests.counts.paths import PATHS
from tests.counts.server import Counts

SLACK = 1.1
"""A limit is this many times what was measured, also for bytes and buffers."""

BATCHES = 10
"""More statements, each a transaction, that a runner may send in a whole run."""

# What one job, or one claim, was measured to cost: statements without BEGIN and COMMIT,
# transactions, round trips, bytes of WAL, buffers that statements hit or read.
# fmt: off
# Commit fa3ebed, SQLAlchemy 2.1.9, psycopg 3.3.9.
POSTGRESQL = 18
MEASURED: dict[str, Counts] = {
    "session.add + commit":              Counts( 1.010,  1.000,  3.020,    578,  4.310),
    "session.add + commit, waking":      Counts( 2.000,  1.000,  4.020,    578,  4.310),
    "enqueue() + commit":                Counts( 1.010,  1.000,  3.020,    580,  4.310),
    "add_all of 1,000":                  Counts( 0.002,  0.001,  0.004,    539,  5.631),
    "enqueue_many of 1,000":             Counts( 0.002,  0.001,  0.004,    497,  4.723),
    "AsyncRunner, no-op":                Counts( 0.006,  0.006,  0.007,    704, 23.351),
    "Runner, no-op":                     Counts( 0.046,  0.052,  0.056,    695, 21.990),
    "Runner, one row each":              Counts( 2.210,  1.310,  4.510,    837, 24.670),
    "Runner, one row each, in batches":  Counts( 0.032,  0.022,  0.052,    827, 23.394),
    "claim of 10":                       Counts( 1.000,  1.000,  3.050,  3_278, 76.550),
    "claim of 100":                      Counts( 1.000,  1.000,  3.050, 33_262,    798),
}
# fmt: on


def limits(name: str) -> Counts:
    """Return the most that each count of *name* may be."""
    path, most = PATHS[name], Counts(*(SLACK * one for one in MEASURED[name]))
    if not path.runner:
        return most
    more = BATCHES / path.units
    return most.plus(Counts(more, more, 3 * more, 0, 0))


def excess(name: str, found: Counts, *, server: int) -> list[str]:
    """Return what of *found* is above its limit, on that major version of a server."""
    if server != POSTGRESQL:
        found = found._replace(buffers=0)
    each = zip(Counts._fields, found, MEASURED[name], limits(name), strict=True)
    return [
        f"{name}: {what} {one:,.3f}, was {was:,.3f}, may be {most:,.3f}"
        for what, one, was, most in each
        if one > most
    ]
