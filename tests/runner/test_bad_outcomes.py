"""One job's trouble stays its own: no outcome may stop the others, or the runner."""

from __future__ import annotations

import asyncio
import signal
import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from sqla_jobs import Snooze, constant, custom
from sqla_jobs.runner.signals import stop_on_signals
from tests.runner.harness import Job, Kit, Task, effects, ok, wait_for

HOUR = timedelta(hours=1)


def refuse(attempt: int) -> timedelta:
    """Fail, as a user's backoff function may."""
    raise ZeroDivisionError(attempt)


class Careless(Job, kind="careless", backoff=custom(refuse)):
    """A job whose backoff function raises."""


async def nothing(job: Any, ctx: Any) -> None:
    """Do nothing."""


async def fails(job: Any, ctx: Any) -> None:
    """Fail."""
    raise ValueError("the handler's own")


@pytest.mark.parametrize("how", ["raises", "text"])
def test_broken_backoff_fails_the_job_and_frees_the_slot(kit: Kit, how: str) -> None:
    """A backoff that cannot be used delays the retry by the default one, no more."""
    kit.handle(fails, Careless)
    kit.handle(nothing, Task)
    bad, _ = kit.add(Careless(), Task(priority=-1))
    if how == "text":
        kit.sql("UPDATE jobs SET backoff = 'bogus' WHERE id = :i", i=bad)

    kit.run(concurrency=1)
    kit.until(lambda: kit.states() == ["retryable", "completed"])

    row = kit.job(bad)
    assert row.attempt == 1
    assert "the handler's own" in row.last_error
    assert row.run_at > row.started_at + timedelta(seconds=0.5)


def test_outcome_the_database_refuses_fails_its_job_only(kit: Kit) -> None:
    """An outcome that no row can hold is a failure of its job; batch mates settle."""

    async def run(job: Any, ctx: Any) -> None:
        if job.n == 1:
            raise Snooze(after=timedelta.max)

    kit.handle(run)
    ids = kit.add(*[Task(n=n, backoff=constant(HOUR)) for n in range(4)])

    kit.run()

    kit.until(lambda: set(kit.states()) == {"completed", "retryable"})
    row = kit.job(ids[1])
    assert (row.state, row.attempt) == ("retryable", 1)
    assert "out of range" in row.last_error


def test_attempt_that_holds_its_row_delays_no_other_outcome(threads: Kit) -> None:
    """
    A thread that timed out with the job's row locked keeps its own outcome waiting,
    not those of the others; it is written once the thread lets go.
    """
    kit, holds, over = threads, threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        if job.n == 1:
            job.tags = ["locked"]
            ctx.session.flush()
            holds.set()
            await wait_for(over)

    kit.handle(run)
    late = Task(n=1, timeout=timedelta(seconds=2), backoff=constant(HOUR))
    (locked,) = kit.add(late)
    running = kit.run()
    assert holds.wait(10)
    kit.until(lambda: running.runner._plan.unsettled)

    others = kit.add(Task(), Task())
    for other in others:
        kit.until_state(other, "completed")
    assert kit.job(locked).state == "running", kit.job(locked).last_error
    over.set()

    row = kit.until_state(locked, "retryable")
    assert (row.tags, row.attempt) == (None, 1)


def test_row_locked_by_somebody_else_delays_no_other_outcome(kit: Kit) -> None:
    """An operator's open transaction keeps the outcome of that job waiting alone."""
    started, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        if job.n == 1:
            started.set()
            await wait_for(go)

    kit.handle(run)
    (locked,) = kit.add(Task(n=1))
    running = kit.run()
    assert started.wait(10)
    with kit.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET tags = '[\"x\"]'"))
        go.set()
        kit.until(lambda: running.runner._plan.unsettled)
        for other in kit.add(Task(), Task()):
            kit.until_state(other, "completed")

    assert kit.until_state(locked, "completed").tags == ["x"]


def test_cancelled_run_hands_its_jobs_back(aio: Kit) -> None:
    """Who cancels the task of `run` gets the jobs handed back, none left leased."""
    kit, stuck = aio, threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "undone")
        await ok(ctx.session.flush())
        started.set()
        await wait_for(stuck)

    kit.handle(run)
    (job,) = kit.add()
    started = threading.Event()

    async def main() -> None:
        async with kit.async_runner({}) as runner:
            task = asyncio.create_task(runner.run())
            await wait_for(started)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())

    row = kit.job(job)
    assert (row.state, row.attempt, kit.notes()) == ("available", 0, [])


def test_signal_may_arrive_while_the_runner_holds_its_lock(threads: Kit) -> None:
    """A signal interrupts the main thread anywhere: its handler waits for nothing."""
    kit, go = threads, threading.Event()
    kit.handle(nothing)
    runner = kit.make()

    def stop() -> None:
        runner._signalled()
        go.set()

    with stop_on_signals(stop):
        with runner._lock:
            signal.raise_signal(signal.SIGTERM)

        assert go.wait(10)
    assert runner._stopping


def test_run_one_after_a_stop_runs_as_ever(kit: Kit) -> None:
    """A runner that was stopped can be used again, and drains no more."""
    kit.handle(checkpoints)

    async def use(runner: Any) -> Any:
        await ok(runner.start())
        await ok(runner.stop())
        kit.add()
        return await ok(runner.run_one())

    assert kit.with_runner(use) == "completed"


async def checkpoints(job: Any, ctx: Any) -> None:
    """Commit midway, which ends the attempt if the runner drains."""
    await ok(ctx.checkpoint(cursor=1))


class Rude(BaseException):
    """Not an Exception, as those of some frameworks."""


@pytest.mark.parametrize("error", [Rude, asyncio.CancelledError])
def test_unknown_base_exception_is_a_counted_failure(
    kit: Kit, error: type[BaseException]
) -> None:
    """
    A BaseException of the handler's own is counted: handed back uncounted, the job
    would come again at once, for ever.
    """

    async def run(job: Any, ctx: Any) -> None:
        raise error

    kit.handle(run)
    (job,) = kit.add(Task(max_attempts=2))

    kit.drain()

    row = kit.job(job)
    assert (row.state, row.attempt) == ("discarded", 2)
    assert error.__name__ in row.last_error


def test_task_cancelled_by_somebody_else_is_handed_back(aio: Kit) -> None:
    """Who cancels the tasks of the loop ends attempts that did not fail."""
    kit, runs = aio, []

    async def run(job: Any, ctx: Any) -> None:
        runs.append(ctx.attempt)
        if len(runs) == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(1)

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    assert (runs, kit.job(job).state, kit.attempts(job)) == ([1, 1], "completed", [])


def test_run_one_waits_for_a_row_that_somebody_writes(kit: Kit) -> None:
    """The state that it returns is the written one."""
    locked, written = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        holder.start()
        await wait_for(locked)

    def hold() -> None:
        with kit.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET tags = '[]'"))
            locked.set()
            written.wait(1)

    holder = threading.Thread(target=hold)
    kit.handle(run)
    kit.add()

    assert kit.run_one() == "completed"
    holder.join()


def test_thread_of_an_earlier_run_takes_no_slot_of_a_later_one(threads: Kit) -> None:
    """What a forced stop could not wait for is forgotten, however it ends."""
    kit, over, ended = threads, threading.Event(), threading.Event()
    started = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        if job.n == 1:
            started.set()
            over.wait(20)
            ended.set()

    async def use(runner: Any) -> Any:
        kit.add(Task(n=1))
        runner.start()
        assert started.wait(10)
        runner.stop(grace=timedelta(0))
        kit.sql("DELETE FROM jobs")
        with runner:
            kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))
            over.set()
            assert ended.wait(10)
            kit.add()
            kit.until(lambda: kit.states() == ["completed"])
        return runner._plan

    kit.handle(run)

    assert kit.with_runner(use).running == 0


def test_runner_that_fails_itself_hands_its_jobs_back(kit: Kit) -> None:
    """An error that is no outage ends `run`, which raises it, but loses no job."""
    started, stuck = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        started.set()
        await wait_for(stuck, ctx)

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    kit.handle(run)
    (job,) = kit.add()
    running = kit.run()
    assert started.wait(10)
    running.runner._swept = broken

    with pytest.raises(RuntimeError, match="a bug"):
        running.join()

    running.error = None
    assert (kit.job(job).state, kit.job(job).attempt) == ("available", 0)
