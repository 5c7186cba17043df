"""Each plain way of a job costs the server what it did; timings are not looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, text

from sqla_jobs.testing._rounds import counting
from tests.counts.limits import MEASURED, excess
from tests.counts.paths import PATHS, Ways

TRIES = 3  # what somebody else on the machine delays comes in smaller batches


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    """Yield the application on a server that nobody else uses."""
    with Ways.start() as ways:
        yield ways


def above_limits(ways: Ways, name: str) -> list[str]:
    """Measure once; return what is too much."""
    found = ways.measure(PATHS[name])
    return excess(name, found, server=ways.counted.server)


@pytest.mark.parametrize("name", PATHS)
def test_costs_no_more_than_it_did(ways: Ways, name: str) -> None:
    """Statements, transactions, round trips, WAL and buffers keep to the table."""
    for _ in range(TRIES):
        above = above_limits(ways, name)
        if not above:
            break

    assert above == []


def test_table_has_the_ways_that_are_measured() -> None:
    """A way that is gone, or new, needs the table to be written anew."""
    assert list(MEASURED) == list(PATHS)


def test_one_statement_more_is_noticed(ways: Ways) -> None:
    """Per job, it breaks the limits of statements, round trips and buffers."""

    def more(session: Any, transaction: Any, connection: Any) -> None:
        connection.execute(text("SELECT count(*) FROM counted_jobs_queues"))

    event.listen(ways.Session, "after_begin", more)
    try:
        for name in ("session.add + commit", "Runner, one row each"):
            above = above_limits(ways, name)
            assert "statements" in above[0]
            assert "round_trips" in above[1]
    finally:
        event.remove(ways.Session, "after_begin", more)


@pytest.mark.parametrize("name", ["session.add + commit", "Runner, one row each"])
def test_bench_counts_what_reaches_the_server(ways: Ways, name: str) -> None:
    """`sqla-jobs bench` counts what SQLAlchemy sends: no job's goes past that."""
    seen = {"statements": 0, "transactions": 0}
    path = PATHS[name]

    def run(ways: Ways, units: int) -> None:
        with counting(seen):
            path.run(ways, units)

    counts = ways.measure(replace(path, run=run, runner=False))

    for what, count in seen.items():
        # What a runner does to each new connection of its own goes past SQLAlchemy.
        there = getattr(counts, what) * path.units
        assert there == pytest.approx(count, abs=path.units / 4), what
