"""Attempts that must end early, and leases that must not."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from sqla_jobs import AttemptInterrupted, constant
from sqla_jobs._store.operate import request_cancel
from tests.runner.harness import LEASE, Job, Kit, Task, effects, ok, take_over, wait_for

HOUR = timedelta(hours=1)


def test_timed_out_task_is_cancelled_and_retried(aio: Kit) -> None:
    """An async handler is cancelled where it waits, and may clean up."""
    kit, cleaned = aio, []

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "undone")
        await ctx.session.flush()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(ctx.cancelled)

    kit.handle(run)
    late = Task(timeout=timedelta(seconds=0.5), backoff=constant(HOUR))
    (job,) = kit.add(late)
    kit.run()

    row = kit.until_state(job, "retryable")
    assert (row.last_error, row.attempt) == ("TimeoutError: timed out after 0.5 s", 1)
    kit.until(lambda: cleaned)
    assert (cleaned, kit.notes()) == ([True], [])


def test_timeout_on_the_last_attempt_discards(kit: Kit) -> None:
    """A timeout is a failed attempt like any other."""

    async def run(job: Any, ctx: Any) -> None:
        await wait_for(threading.Event(), ctx)

    kit.handle(run)
    (job,) = kit.add(Task(timeout=timedelta(seconds=0.3), max_attempts=1))

    kit.drain()

    assert kit.job(job).state == "discarded"


def test_attempt_without_renewals_ends_before_its_lease_does(kit: Kit) -> None:
    """
    When renewals fail the runner interrupts the handler itself, while nobody else
    may take the job yet.
    """
    left: list[timedelta] = []
    reasons: list[str] = []

    async def run(job: Any, ctx: Any) -> None:
        try:
            await wait_for(threading.Event(), ctx)
        except AttemptInterrupted as exc:
            reasons.append(exc.reason)
            raise
        finally:
            left.append(kit.job(job.id).leased_until - kit.sql("SELECT now()"))

    kit.handle(run)
    kit.add(Task(backoff=constant(HOUR)))
    running = kit.run(lease=LEASE)
    heartbeat = kit.until(lambda: running.runner._heartbeat)
    heartbeat.due = list

    kit.until(lambda: left)
    assert timedelta(0) < left[0] < timedelta(seconds=1)
    assert reasons in (["the lease is lost"], [])  # a task is cancelled instead


@pytest.mark.slow
def test_heartbeat_keeps_a_job_longer_than_its_lease(kit: Kit) -> None:
    """A job of twice the lease runs once, though another runner would rescue it."""
    starts: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        starts.append(job.id)
        until = time.monotonic() + 6
        while time.monotonic() < until:
            ctx.raise_if_interrupted()
            await short_wait()
        effects(ctx.session, job, "done")

    kit.handle(run)
    (job,) = kit.add()
    kit.run(lease=LEASE)
    kit.run(lease=LEASE)

    row = kit.until_state(job, "completed")
    assert (len(starts), row.attempt, row.crashes) == (1, 1, 0)
    assert kit.notes() == ["done"]


async def short_wait() -> None:
    """Wait a little, in a thread or on the loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        threading.Event().wait(0.01)
    else:
        await asyncio.sleep(0.01)


@pytest.mark.slow
def test_handler_that_blocks_the_loop_past_its_lease_runs_once(aio: Kit) -> None:
    """The heartbeat has a thread and a loop of its own."""
    kit, starts = aio, []

    async def run(job: Any, ctx: Any) -> None:
        starts.append(job.id)
        threading.Event().wait(4.5)
        effects(ctx.session, job, "done")

    kit.handle(run)
    (job,) = kit.add()
    kit.run(lease=LEASE)
    kit.run(lease=LEASE)

    row = kit.until_state(job, "completed")
    assert (len(starts), row.attempt, row.crashes) == (1, 1, 0)
    assert kit.notes() == ["done"]


@pytest.mark.slow
def test_open_transaction_on_the_job_outlives_the_lease(kit: Kit) -> None:
    """
    An uncommitted change of the job row keeps the heartbeat off the row, and rescuers
    too: the commit is still the holder's.
    """

    async def run(job: Any, ctx: Any) -> None:
        job.tags = ["mine"]
        await ok(ctx.session.flush())
        until = time.monotonic() + 4.5
        while time.monotonic() < until:
            await short_wait()
            ctx.raise_if_interrupted()

    kit.handle(run)
    (job,) = kit.add()
    kit.run(lease=LEASE)
    kit.run(lease=LEASE)

    row = kit.until_state(job, "completed")
    assert (row.attempt, row.crashes, row.tags) == (1, 0, ["mine"])


def test_cancel_is_seen_at_the_next_checkpoint(kit: Kit) -> None:
    """The checkpoint commits, then ends the attempt; the rest is not done."""

    async def run(job: Any, ctx: Any) -> None:
        with kit.Session.begin() as session:
            request_cancel(session, Job, [job.id], reason="enough")
        effects(ctx.session, job, "kept")
        await ok(ctx.checkpoint(cursor=1))
        effects(ctx.session, job, "not reached")

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    row = kit.job(job)
    assert (row.state, row.reason, row.checkpoint) == (
        "cancelled",
        "enough",
        {"cursor": 1},
    )
    assert kit.notes() == ["kept"]


def test_cancel_reaches_a_running_handler_by_the_heartbeat(kit: Kit) -> None:
    """Without any checkpoint the request arrives with the next renewal."""
    running = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        running.set()
        await wait_for(threading.Event(), ctx)

    kit.handle(run)
    (job,) = kit.add()
    kit.run(lease=LEASE)
    assert running.wait(10)

    with kit.Session.begin() as session:
        request_cancel(session, Job, [job], reason="enough")

    row = kit.until_state(job, "cancelled", "completed")
    assert (row.state, row.reason) == ("cancelled", "enough")


def test_lost_lease_reaches_a_running_handler_by_the_heartbeat(kit: Kit) -> None:
    """A holder whose job was taken over learns of it at its next renewal."""
    running, told = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        if running.is_set():
            return
        running.set()
        try:
            await wait_for(threading.Event(), ctx)
        finally:
            told.set()

    kit.handle(run)
    (job,) = kit.add()
    kit.run(lease=LEASE)
    assert running.wait(10)

    take_over(kit, job)

    assert told.wait(5)
    assert (kit.job(job).state, kit.job(job).lease_token) == ("running", 3)


def test_forced_stop_refuses_what_a_thread_commits_later(threads: Kit) -> None:
    """A job handed back at shutdown is no longer its thread's, free or taken."""
    kit, over, ended = threads, threading.Event(), threading.Event()
    caught: list[BaseException] = []

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "early")
        over.wait(20)
        try:
            ctx.session.commit()
        except BaseException as exc:
            caught.append(exc)
            raise
        finally:
            ended.set()

    kit.handle(run)
    (job,) = kit.add()
    running = kit.run()
    kit.until(lambda: kit.job(job).state == "running")
    kit.until(lambda: running.runner._live() and running.runner._live()[0].session)
    running.stop(grace=timedelta(0))
    assert (kit.job(job).state, kit.job(job).attempt) == ("available", 0)

    over.set()

    assert ended.wait(10)
    assert [type(exc) for exc in caught] == [AttemptInterrupted]
    assert kit.notes() == []


def test_draining_runner_claims_nothing_more(kit: Kit) -> None:
    """After a stop no job is taken, however much waits."""
    running, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        running.set()
        await wait_for(go)

    kit.handle(run)
    kit.add(Task(), Task())
    runner = kit.run(concurrency=1)
    assert running.wait(10)

    runner.stop(wait=False)
    go.set()
    runner.join()

    assert sorted(kit.states()) == ["available", "completed"]
    with kit.Session() as session:
        assert session.scalar(select(func.count()).select_from(Job.Runner)) == 0


def test_system_exit_in_a_handler_stops_after_the_others(kit: Kit) -> None:
    """SystemExit releases its job; what runs beside it may end."""
    go = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        started.append(job.id)
        while len(started) < 2:
            await short_wait()
        if job.n == 1:
            raise SystemExit(3)
        await wait_for(go)

    started: list[int] = []
    kit.handle(run)
    kit.add(Task(n=0), Task(n=1))
    running = kit.run(concurrency=2)
    kit.until(lambda: running.runner._stopping)
    go.set()
    running.join()

    assert kit.states() == ["completed", "available"]
