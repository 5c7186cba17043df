"""The primary dies, or becomes a standby, and runners go on by themselves."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from tests.failover.pair import Pair
from tests.runner.harness import LEASE, Kit, Task, effects, ok

pytestmark = pytest.mark.slow
JOBS = 40
MINUTE = timedelta(minutes=1)


def work(kit: Kit) -> None:
    """Make handlers leave one effect before and one after a checkpoint."""

    async def run(job: Any, ctx: Any) -> None:
        if "first" not in ctx.state:
            effects(ctx.session, job, "first")
            await ok(ctx.checkpoint(first=True))
        effects(ctx.session, job, "last")

    kit.handle(run)


def done(kit: Kit) -> int:
    """Return how many jobs are completed."""
    return kit.states().count("completed")


def once_each(kit: Kit) -> bool:
    """Return whether each step of each job took effect exactly once."""
    return Counter(kit.notes()) == {"first": JOBS, "last": JOBS}


@pytest.mark.parametrize("kit", ["threads", "aio-asyncpg"], indirect=True)
def test_runners_go_on_with_the_promoted_standby(kit: Kit, pair: Pair) -> None:
    """What was committed is there, nothing happens twice, and nobody restarts."""
    work(kit)
    kit.add(*[Task(n=n) for n in range(JOBS)])
    running = kit.run(concurrency=2, poll=MINUTE, lease=LEASE)
    kit.until(lambda: done(kit) >= 5)
    finished = {n for n, state in enumerate(kit.states()) if state == "completed"}

    pair.fail_over()

    now = {n for n, state in enumerate(kit.states()) if state == "completed"}
    assert finished <= now
    # A claim may have been committed without an answer: its jobs wait for a rescue.
    other = kit.run(lease=LEASE)
    kit.until(lambda: done(kit) == JOBS)
    other.stop()
    assert once_each(kit)
    heard = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    kit.until(lambda: kit.sql(heard))
    (new,) = kit.add()
    kit.until_state(new, "completed")
    assert running.alive
    running.stop()
    pair.rebuild()


@pytest.mark.parametrize("kit", ["threads"], indirect=True)
def test_lost_commits_take_effects_and_outcomes_with_them(kit: Kit, pair: Pair) -> None:
    """
    An asynchronous standby may lack the last commits; their jobs run again, and the
    effects of the lost runs are gone too.
    """
    work(kit)
    kit.add(*[Task(n=n) for n in range(JOBS)])
    pair.rebuild(synchronous=False)
    pair.cut()
    running = kit.run(concurrency=4)
    kit.until(lambda: done(kit) == JOBS)
    assert once_each(kit)
    running.stop()

    pair.fail_over()

    assert (done(kit), kit.notes()) == (0, [])
    kit.run(concurrency=4)
    kit.until(lambda: done(kit) == JOBS)
    assert once_each(kit)
    pair.rebuild()


@pytest.mark.parametrize("kit", ["threads", "aio-asyncpg"], indirect=True)
def test_connections_to_a_demoted_primary_are_dropped(kit: Kit, pair: Pair) -> None:
    """
    A name that still leads to the old primary gives connections that live and refuse
    to write; when it leads to the new one, the runner's pools follow.
    """
    work(kit)
    leads_to = [pair.primary]
    kit.engine_options = kit.connecting(lambda: leads_to[0].url)
    engines: list[Any] = []
    kit.on_engine = engines.append
    running = kit.run(concurrency=2)
    kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))

    old, before = pair.primary, len(pair.primary.log)
    pair.switch_over()
    kit.until(lambda: "in a read-only transaction" in old.log[before:])
    opened: list[int] = []
    for engine in (running.control_engine, *engines):
        event.listen(engine, "connect", lambda *_: opened.append(1))
    leads_to[0] = pair.primary
    (job,) = kit.add()

    kit.until_state(job, "completed")
    assert opened
    running.stop()
    pair.join(synchronous=True)
