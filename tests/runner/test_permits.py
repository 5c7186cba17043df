"""Permits of a handler's own: granted, waited for, refused, and always given back."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import pytest

from sqla_jobs import Cancel, Complete, Discard, Retry, Snooze
from sqla_jobs._store.operate import request_cancel
from sqla_jobs.runner.attempt import Interruption
from tests.runner.harness import (
    LEASE,
    Job,
    Kit,
    Task,
    effects,
    ok,
    wait_for,
)

HOUR = timedelta(hours=1)


class Seen:
    """A handler that notes what it ran."""

    def __init__(self, kit: Kit, acquire: Any) -> None:
        self.ran: list[int] = []
        kit.handle(self.run, acquire=acquire)

    async def run(self, job: Any, ctx: Any) -> None:
        """Note the job."""
        self.ran.append(job.n)


@pytest.mark.parametrize("answer", [None, True])
def test_granted_job_runs(kit: Kit, answer: Any) -> None:
    """None and True let it run; what acquire sees is the job."""
    asked: list[int] = []

    async def acquire(job: Any) -> Any:
        asked.append(job.n)
        return answer

    seen = Seen(kit, acquire)
    kit.add(Task(n=5))

    assert kit.run_one() == "completed"
    assert (asked, seen.ran) == ([5], [5])


@pytest.mark.parametrize("way", ["returned", "raised"])
@pytest.mark.parametrize(
    ("answer", "state", "counted"),
    [
        (Snooze("busy", after=HOUR), "scheduled", 0),
        (Retry("later", after=HOUR), "retryable", 1),
        (Cancel("no"), "cancelled", 1),
        (Complete(7), "completed", 1),
        (Discard("never"), "discarded", 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_job_does_not_run(
    kit: Kit, way: str, answer: Any, state: str, counted: int
) -> None:
    """Any outcome may be the answer, returned or raised; a snooze costs no attempt."""

    async def acquire(job: Any) -> Any:
        if way == "raised":
            raise answer
        return answer

    seen = Seen(kit, acquire)
    (job,) = kit.add()

    assert kit.run_one() == state

    row = kit.job(job)
    assert (seen.ran, row.attempt, row.snoozes) == ([], counted, 1 - counted)
    assert row.result == (7 if state == "completed" else None)


def test_false_means_again_in_a_second(kit: Kit) -> None:
    """The attempt is given back, the snooze counted, the lane kept."""

    async def acquire(job: Any) -> bool:
        return False

    seen = Seen(kit, acquire)
    (job,) = kit.add(Task(max_attempts=1))

    assert kit.run_one() == "scheduled"

    row = kit.job(job)
    assert (seen.ran, row.attempt, row.snoozes, row.lane) == ([], 0, 1, 0)
    assert timedelta(0) < row.run_at - row.started_at < timedelta(seconds=5)
    assert kit.attempts(job) == []


@pytest.mark.parametrize("how", ["error", "answer"])
def test_failing_acquire_is_a_failure_with_backoff(kit: Kit, how: str) -> None:
    """So is an answer that means nothing; the handler does not run."""
    told: list[BaseException] = []

    async def acquire(job: Any) -> Any:
        if how == "error":
            raise ValueError("no permits here")
        return "yes"

    seen = Seen(kit, acquire)
    (job,) = kit.add(Task(max_attempts=1))

    assert kit.run_one(on_error=lambda *args: told.append(args[2])) == "discarded"

    row = kit.job(job)
    said = "no permits here" if how == "error" else "returned 'yes'; a permit is None"
    assert said in row.last_error
    assert (seen.ran, len(told), row.attempt) == ([], 1, 1)


class Permit:
    """A context manager for threads and for tasks."""

    def __init__(self, kit: Kit) -> None:
        self.kit, self.log = kit, list[str]()

    def __enter__(self) -> None:
        self.log.append("in")

    def __exit__(self, *exc: object) -> None:
        self.log.append(f"out {self.kit.states()[0]}")

    async def __aenter__(self) -> None:
        self.log.append("in")

    async def __aexit__(self, *exc: object) -> None:
        self.log.append(f"out {self.kit.states()[0]}")


@pytest.mark.parametrize("end", ["returns", "raises", "interrupted", "exits"])
def test_permit_is_held_while_the_job_runs(kit: Kit, end: str) -> None:
    """
    It is released in every case, once the outcome is committed with the effects or
    handed over to be written.
    """
    permit = Permit(kit)

    async def acquire(job: Any) -> Permit:
        permit.log.append("asked")
        return permit

    async def run(job: Any, ctx: Any) -> None:
        permit.log.append("ran")
        effects(ctx.session, job, "kept")
        if end == "raises":
            raise ValueError
        if end == "exits":
            raise SystemExit
        if end == "interrupted":
            await wait_for(threading.Event(), ctx)

    kit.handle(run, acquire=acquire)
    (job,) = kit.add(Task(max_attempts=1, timeout=timedelta(seconds=0.2)))
    if end != "interrupted":
        kit.sql("UPDATE jobs SET timeout = NULL")

    kit.run()
    kit.until(lambda: len(permit.log) == 4)

    assert permit.log[:3] == ["asked", "in", "ran"]
    if end == "returns":
        assert permit.log[3] == "out completed"
    kit.until(lambda: kit.job(job).state != "running")
    assert kit.notes() == (["kept"] if end == "returns" else [])


def test_decorated_generator_is_a_permit(kit: Kit) -> None:
    """What contextlib makes works as well, the async one in tasks."""
    log: list[str] = []

    @contextmanager
    def sync_permit() -> Any:
        log.append("in")
        yield
        log.append("out")

    @asynccontextmanager
    async def async_permit() -> Any:
        log.append("in")
        yield
        log.append("out")

    async def acquire(job: Any) -> Any:
        either = job.n == 0 or kit.shell == "threads"
        return sync_permit() if either else async_permit()

    Seen(kit, acquire)
    kit.add(Task(n=0), Task(n=1))

    kit.drain(concurrency=1)

    assert kit.states() == ["completed"] * 2
    assert log == ["in", "out"] * 2


def test_async_permit_of_a_sync_handler_is_an_error(threads: Kit) -> None:
    """Nothing could enter it: the attempt fails and says so."""

    @asynccontextmanager
    async def permit() -> Any:
        yield

    async def acquire(job: Any) -> Any:
        return permit()

    seen = Seen(threads, acquire)
    (job,) = threads.add(Task(max_attempts=1))

    assert threads.run_one() == "discarded"
    assert "which a sync handler cannot enter" in threads.job(job).last_error
    assert seen.ran == []


def test_permit_that_fails_on_release_changes_no_outcome(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged; the job is what its handler made of it."""

    @contextmanager
    def permit() -> Any:
        yield
        raise ValueError("stuck")

    async def acquire(job: Any) -> Any:
        return permit()

    Seen(kit, acquire)
    (job,) = kit.add()

    with caplog.at_level(logging.ERROR, "sqla_jobs"):
        assert kit.run_one() == "completed"

    assert f"job {job}: its permit could not be released" in caplog.text


def test_waiting_for_a_permit_keeps_the_lease_and_no_connection(kit: Kit) -> None:
    """A job may wait longer than its lease; its session is not open yet."""
    go, engines = threading.Event(), list[Any]()
    kit.on_engine = engines.append

    async def acquire(job: Any) -> None:
        await wait_for(go)

    seen = Seen(kit, acquire)
    (job,) = kit.add(Task(n=3))
    kit.run(lease=LEASE)
    kit.until(lambda: kit.job(job).state == "running")
    first = kit.job(job).leased_until

    kit.until(lambda: kit.job(job).leased_until > first)
    used = engines[0].pool.checkedout()
    go.set()

    assert kit.until_state(job, "completed").attempt == 1
    assert (seen.ran, used) == ([3], 0)


def test_congestion_burns_no_attempt_and_stalls_no_other_queue(kit: Kit) -> None:
    """
    While all slots of one queue wait for permits, another queue goes on; then every
    job runs in its first attempt, and never more than there are permits.
    """
    lock, go = threading.Lock(), threading.Event()
    now, most = [0], [0]

    class One:
        """The only permit."""

        def __enter__(self) -> None:
            now[0] += 1
            most[0] = max(most[0], now[0])

        def __exit__(self, *exc: object) -> None:
            now[0] -= 1
            lock.release()

    async def acquire(job: Any) -> Any:
        if job.queue == "b":
            return None
        await wait_for(go)
        while not lock.acquire(blocking=False):
            await turn(kit)
        return One()

    seen = Seen(kit, acquire)
    slow = kit.add(*[Task(queue="a") for _ in range(8)])
    fast = kit.add(*[Task(queue="b") for _ in range(12)])
    kit.run(queues={"a": 2, "b": 2})

    for one in fast:
        kit.until_state(one, "completed")
    assert {kit.job(one).state for one in slow} == {"running", "available"}
    go.set()
    rows = [kit.until_state(one, "completed") for one in slow]

    assert {(row.attempt, row.snoozes) for row in rows} == {(1, 0)}
    assert (len(seen.ran), most[0]) == (20, 1)


async def turn(kit: Kit) -> None:
    """Let others run."""
    if kit.shell == "threads":
        threading.Event().wait(0.002)
    else:
        await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("why", "state", "counted"),
    [("cancel", "cancelled", 1), ("timeout", "discarded", 1), ("stop", "available", 0)],
)
def test_wait_for_a_permit_ends_like_a_handler(
    kit: Kit, why: str, state: str, counted: int
) -> None:
    """A cancel, the timeout or a forced stop settles the job, which never runs."""
    asked, go, ended = threading.Event(), threading.Event(), threading.Event()

    async def acquire(job: Any) -> None:
        asked.set()
        try:
            await wait_for(go)
        finally:
            ended.set()

    seen = Seen(kit, acquire)
    timeout = timedelta(seconds=2) if why == "timeout" else None
    (job,) = kit.add(Task(timeout=timeout, max_attempts=1))
    running = kit.run(lease=LEASE)
    kit.until(asked.is_set)

    if why == "cancel":
        with kit.Session.begin() as session:
            request_cancel(session, Job, [job])
    if why == "stop":
        running.stop(grace=timedelta(0))

    assert kit.until_state(job, state).attempt == counted
    if kit.shell == "aio":
        assert ended.wait(5)  # the task was cancelled: it waits no longer
    go.set()
    running.stop()
    assert seen.ran == []


def test_attempt_interrupted_before_its_thread_is_free_does_not_run(kit: Kit) -> None:
    """What was settled while it waited for its turn asks for no permit, nor runs."""
    asked: list[int] = []

    async def acquire(job: Any) -> None:
        asked.append(job.n)

    seen = Seen(kit, acquire)
    kit.add(Task(n=1))

    async def use(runner: Any) -> None:
        original = runner._claimed

        def claimed(*args: Any) -> Any:
            attempts = original(*args)
            for attempt in attempts:
                runner._interrupt(attempt, Interruption.LOST)
            return attempts

        runner._claimed = claimed
        await ok(runner.run_one())

    kit.with_runner(use)

    assert (asked, seen.ran) == ([], [])
