"""The ways to run a runner, and when it looks for jobs."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sqla_jobs import Retry, Snooze
from tests.runner.harness import (
    Kit,
    Task,
    effects,
    ok,
)


async def nothing(job: Any, ctx: Any) -> None:
    """Do nothing."""


HOUR = timedelta(hours=1)


@pytest.mark.parametrize("listen", [True, False])
def test_jobs_are_found_without_a_notify(kit: Kit, listen: bool) -> None:
    """NOTIFY is a hint: a job that sent none is found by the poll."""
    done = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        done.set()

    kit.handle(run)
    running = kit.run(listen=listen)
    kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))
    kit.sql(RAW)

    assert done.wait(10)
    assert running.alive


RAW = (
    "INSERT INTO jobs (kind, queue, channel, priority, lane, state, attempt,"
    " max_attempts, backoff, snoozes, crashes, lease_token, payload, ordered)"
    " VALUES ('task', 'default', '', 0, 0, 'available', 0, 10, 'constant(0)', 0, 0, 0,"
    " '{}', false)"
)


@pytest.mark.wakes
def test_notify_wakes_a_runner_long_before_its_poll(kit: Kit) -> None:
    """With LISTEN a job starts at once though the poll is an hour away."""
    done = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        done.set()

    kit.handle(run)
    running = kit.run(poll=HOUR)
    kit.until(lambda: listening(kit))
    kit.until(lambda: running.runner._plan._claimed_at > 0)
    kit.add()

    assert done.wait(10)


def listening(kit: Kit) -> Any:
    """Return how many connections listen."""
    return kit.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND query LIKE 'LISTEN%'"
    )


def test_scheduled_and_retried_jobs_start_when_due(kit: Kit) -> None:
    """The next due job is waited for exactly, not until the next poll."""
    times: list[float] = []

    async def run(job: Any, ctx: Any) -> None:
        times.append(time.time())
        if ctx.attempt == 1:
            raise Retry(after=timedelta(seconds=0.5))

    kit.handle(run)
    due = datetime.now(UTC) + timedelta(seconds=1)
    (job,) = kit.add(Task(run_at=due))
    kit.run(poll=HOUR)

    kit.until_state(job, "completed")
    assert 0 <= times[0] - due.timestamp() < 1
    assert 0.5 <= times[1] - times[0] < 1.5


def test_job_snoozed_with_its_effects_starts_when_due(kit: Kit) -> None:
    """An outcome that the handler's own transaction writes is noted as well."""
    times: list[float] = []

    async def run(job: Any, ctx: Any) -> Snooze | None:
        times.append(time.time())
        effects(ctx.session, job, "seen")
        return Snooze(after=timedelta(seconds=0.5)) if len(times) == 1 else None

    kit.handle(run)
    (job,) = kit.add()
    kit.run(poll=HOUR)

    kit.until_state(job, "completed")
    assert 0.5 <= times[1] - times[0] < 5


def test_run_one_runs_the_most_urgent_job_only(kit: Kit) -> None:
    """It returns the new state, None when there is nothing to run."""
    kit.handle(nothing)
    low, high = kit.add(Task(priority=1), Task(priority=2))

    assert kit.run_one() == "completed"
    assert (kit.job(low).state, kit.job(high).state) == ("available", "completed")
    assert kit.run_one() == "completed"
    assert kit.run_one() is None


def test_run_until_idle_runs_what_that_makes_due(kit: Kit) -> None:
    """Jobs that jobs enqueue, and retries that are due at once, are run too."""

    async def run(job: Any, ctx: Any) -> None:
        if job.n:
            ctx.session.add(Task(n=job.n - 1))
        if ctx.attempt == 1:
            await ok(ctx.session.commit())
            raise Retry(after=timedelta(0))
        if job.n:
            ctx.session.expunge_all()

    kit.handle(run)
    kit.add(Task(n=2), Task(run_at=datetime.now(UTC) + HOUR))

    kit.drain()

    assert set(kit.states()) == {"completed", "scheduled"}
    assert kit.states().count("completed") >= 3


def test_run_until_idle_returns_soon_after_the_last_job(kit: Kit) -> None:
    """With a long poll too: who waits is a test or a command line."""
    kit.handle(nothing)
    kit.add(Task(), Task())
    started = time.monotonic()

    kit.drain(poll=timedelta(minutes=1), listen=False)

    assert kit.states() == ["completed", "completed"]
    assert time.monotonic() - started < 10


def test_runner_may_run_again(kit: Kit) -> None:
    """Each way to run works after any other, on the same runner."""
    kit.handle(nothing)

    async def use(runner: Any) -> None:
        for _ in range(2):
            kit.add()
            await ok(runner.run_until_idle())
            kit.add()
            await ok(runner.run_one())
            kit.add()
            await ok(runner.start())
            await wait_until_done(kit)
            await ok(runner.stop())

    kit.with_runner(use)

    assert kit.states() == ["completed"] * 6


async def wait_until_done(kit: Kit) -> None:
    """Wait until no job is left, without blocking a loop."""
    done = threading.Event()
    while not done.is_set():
        if set(kit.states()) == {"completed"}:
            done.set()
        elif kit.shell == "aio":
            await asyncio.sleep(0.01)
        else:
            done.wait(0.01)


def test_context_manager_starts_and_stops(kit: Kit) -> None:
    """`with runner:` runs in the background and lets jobs end."""
    kit.handle(nothing)

    async def use(runner: Any) -> None:
        kit.add()
        if kit.shell == "threads":
            with runner:
                await wait_until_done(kit)
        else:
            async with runner:
                await wait_until_done(kit)

    kit.with_runner(use)

    assert kit.states() == ["completed"]


def test_runner_that_runs_refuses_to_run_again(kit: Kit) -> None:
    """A second start, run or run_one beside the first is an error, not two loops."""
    kit.handle(nothing)

    async def use(runner: Any) -> None:
        await ok(runner.start())
        try:
            for verb in (
                runner.start,
                runner.run_until_idle,
                runner.run,
                runner.run_one,
            ):
                with pytest.raises(RuntimeError, match="runs already"):
                    await ok(verb())
        finally:
            await ok(runner.stop())

    kit.with_runner(use)


def test_runner_is_on_record_while_it_runs(kit: Kit) -> None:
    """Its row says who it is and what it takes, and goes when it stops."""
    kit.handle(nothing)
    running = kit.run(name="mine", queues=["a"], concurrency=3)
    kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))

    row = kit.sql("SELECT to_jsonb(r) FROM jobs_runners r")
    assert (row["name"], row["kinds"], row["queues"]) == ("mine", ["task"], {"a": 3})
    running.stop()
    assert kit.sql("SELECT count(*) FROM jobs_runners") == 0
