"""What interrupts a batch: cancels, timeouts, a stop, somebody else."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest

from sqla_jobs import AttemptInterrupted
from sqla_jobs._store.operate import request_cancel
from sqla_jobs.runner.attempt import Interruption
from sqla_jobs.runner.workers import Tasks
from tests.runner.harness import LEASE, Job, Kit, Task, effects, ok, wait_for

HOUR = timedelta(hours=1)
WIDE = {"concurrency": 200}


def tasks(count: int, **values: Any) -> list[Task]:
    """Return jobs numbered from 0."""
    return [Task(n=n, **values) for n in range(count)]


@pytest.mark.read_committed("its transaction locks the job elsewhere")
def test_cancelled_job_leaves_its_batch(kit: Kit) -> None:
    """It ends cancelled, its writes are undone; the others run alone."""
    sizes: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        sizes.append(len(jobs))
        for job in jobs:
            effects(ctx.session, job, f"job {job.n}")
        await ok(ctx.session.flush())
        if len(jobs) > 1:
            with kit.Session.begin() as session:
                request_cancel(session, Job, [jobs[1].id])
            await wait_for(threading.Event(), ctx)

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(3))
    kit.run(**WIDE, lease=LEASE)

    for one in ids:
        kit.until_state(one, "completed", "cancelled")
    assert kit.states() == ["completed", "cancelled", "completed"]
    assert sorted(kit.notes()) == ["job 0", "job 2"]
    assert sizes == [3, 1, 1]


def test_interrupted_job_without_writes_does_not_disturb_its_batch(kit: Kit) -> None:
    """Where nothing was written there is nothing to undo: the others are done."""
    sizes: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        sizes.append(len(jobs))
        assert not ctx.cancelled
        ctx._attempts[1].interrupt(Interruption.CANCELLED)
        assert ctx.cancelled
        with pytest.raises(AttemptInterrupted):
            ctx.raise_if_interrupted()

    kit.handle(run_many, many=True)
    kit.add(*tasks(3))

    kit.drain(**WIDE)

    assert kit.states() == ["completed", "cancelled", "completed"]
    assert sizes == [3]


def test_timeout_counts_anew_for_a_job_that_runs_alone(kit: Kit) -> None:
    """The time that its batch and the jobs before it took is not its own."""
    ends: list[Any] = []
    attempts: list[Any] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        if len(jobs) > 1:
            attempts.extend(ctx._attempts)
            ends.extend(one.ends_at for one in attempts)
            raise ValueError
        ends.append([one.ends_at for one in attempts])

    kit.handle(run_many, many=True)
    kit.add(*tasks(2, timeout=HOUR))

    kit.drain(**WIDE)

    first, second, while_first_ran, while_second_ran = ends
    assert first == second
    assert while_first_ran[0] > first
    assert while_first_ran[1] is None
    assert while_second_ran[1] > first


def test_timeout_of_a_batch_is_one_of_each_of_its_jobs(kit: Kit) -> None:
    """They are retried, one attempt counted; the batch cannot commit any more."""

    async def run_many(jobs: Any, ctx: Any) -> None:
        for job in jobs:
            effects(ctx.session, job, "late")
        await wait_for(threading.Event(), ctx)

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(3, timeout=timedelta(seconds=0.3), max_attempts=1))

    kit.drain(**WIDE)

    assert kit.states() == ["discarded"] * 3
    assert kit.notes() == []
    for one in ids:
        assert "timed out after 0.3 s" in kit.job(one).last_error


def test_forced_stop_hands_a_whole_batch_back(kit: Kit) -> None:
    """Uncounted, and what it wrote is undone."""
    started = threading.Event()

    async def run_many(jobs: Any, ctx: Any) -> None:
        for job in jobs:
            effects(ctx.session, job, "undone")
        await ok(ctx.session.flush())
        started.set()
        await wait_for(threading.Event(), ctx)

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(3))
    running = kit.run(**WIDE)
    assert started.wait(20)

    running.stop(grace=timedelta(0))

    rows = [kit.job(one) for one in ids]
    assert [(row.state, row.attempt) for row in rows] == [("available", 0)] * 3
    assert kit.notes() == []


def test_batch_may_end_during_the_grace(kit: Kit) -> None:
    """A graceful stop waits for it, and it commits."""
    started, go = threading.Event(), threading.Event()

    async def run_many(jobs: Any, ctx: Any) -> None:
        for job in jobs:
            effects(ctx.session, job, "kept")
        started.set()
        await wait_for(go, ctx)

    kit.handle(run_many, many=True)
    kit.add(*tasks(3))
    running = kit.run(**WIDE)
    assert started.wait(20)

    running.stop(wait=False)
    go.set()
    running.join()

    assert (kit.states(), kit.notes()) == (["completed"] * 3, ["kept"] * 3)


def test_system_exit_hands_a_whole_batch_back(kit: Kit) -> None:
    """It is nobody's failure: no job runs alone, the runner stops."""
    sizes: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        sizes.append(len(jobs))
        raise SystemExit

    kit.handle(run_many, many=True)
    ids = kit.add(*tasks(3))

    kit.run(**WIDE).join()

    rows = [kit.job(one) for one in ids]
    assert [(row.state, row.attempt) for row in rows] == [("available", 0)] * 3
    assert sizes == [3]


def test_batch_cancelled_by_somebody_else_is_handed_back(aio: Kit) -> None:
    """A task that other code cancels is not a failure of its jobs."""
    sizes: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        sizes.append(len(jobs))
        if len(sizes) == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    aio.handle(run_many, many=True)
    ids = aio.add(*tasks(3))

    aio.drain(**WIDE)

    rows = [aio.job(one) for one in ids]
    assert [(row.state, row.attempt) for row in rows] == [("completed", 1)] * 3
    assert sizes == [3, 3]


async def cancelled_twice() -> int:
    """Return how often a task is cancelled when two of its attempts are interrupted."""
    attempts: list[Any] = [Mock(ended=False), Mock(ended=False)]
    running = Tasks("test")
    task = running.start(asyncio.Event().wait(), attempts)
    await asyncio.sleep(0)
    for attempt in attempts:
        running.cancel(attempt)
    await asyncio.wait([task])
    return task.cancelling()


def test_task_of_a_batch_is_cancelled_once() -> None:
    """A second cancel would disturb what the first one makes it clean up."""
    assert asyncio.run(cancelled_twice()) == 1
