"""The table "what happens when", one test per line, up to the shutdown."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from sqla_jobs import (
    AttemptInterrupted,
    Cancel,
    Complete,
    Discard,
    LeaseLost,
    Retry,
    Snooze,
    constant,
)
from sqla_jobs._store.claim import claim
from sqla_jobs._store.operate import request_cancel
from sqla_jobs._store.verbs import complete, fail
from tests.runner.harness import (
    LEASE,
    Job,
    Kit,
    Task,
    effects,
    ok,
    take_over,
    wait_for,
)

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        ("value", "completed"),
        (Complete(1), "completed"),
        (Retry(after=HOUR), "retryable"),
        (Snooze(after=HOUR), "scheduled"),
        (Cancel("no"), "cancelled"),
        (Discard("never"), "discarded"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_returned_outcome_commits_the_handlers_writes(
    kit: Kit, outcome: Any, state: str
) -> None:
    """Whatever a handler returns commits in one transaction with its writes."""

    async def run(job: Any, ctx: Any) -> Any:
        effects(ctx.session, job, "kept")
        ctx.state["seen"] = True
        return outcome

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    row = kit.job(job)
    assert (row.state, kit.notes(), row.checkpoint) == (state, ["kept"], {"seen": True})
    assert kit.sql("SELECT count(DISTINCT xmin::text) FROM effects") == 1
    same = "SELECT (SELECT xmin::text FROM effects) = (SELECT xmin::text FROM jobs)"
    assert kit.sql(same)


@pytest.mark.parametrize(
    ("outcome", "state", "counted"),
    [
        (ValueError("no"), "retryable", 1),
        (Retry(after=HOUR), "retryable", 1),
        (Snooze(after=HOUR), "scheduled", 0),
        (Cancel("no"), "cancelled", 1),
        (Discard("never"), "discarded", 1),
        (Complete(5), "completed", 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_raised_outcome_rolls_back_the_writes_since_the_last_commit(
    kit: Kit, outcome: Any, state: str, counted: int
) -> None:
    """
    Raising undoes what came after the last commit, on the job row too; the outcome is
    recorded nevertheless.
    """

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "before")
        await ok(ctx.session.commit())
        effects(ctx.session, job, "after")
        job.tags = ["changed"]
        ctx.state["lost"] = True
        await ok(ctx.session.flush())
        raise outcome

    kit.handle(run)
    (job,) = kit.add(Task(backoff=constant(HOUR)))

    kit.drain()

    row = kit.job(job)
    assert (row.state, row.attempt, kit.notes()) == (state, counted, ["before"])
    assert (row.tags, row.checkpoint) == (None, None)
    assert row.result == (5 if state == "completed" else None)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_only_exceptions_are_failures(kit: Kit, error: type[BaseException]) -> None:
    """KeyboardInterrupt and SystemExit hand the job back and stop the runner."""

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "undone")
        raise error

    kit.handle(run)
    (job,) = kit.add()

    kit.run(concurrency=1).join()

    row = kit.job(job)
    assert (row.state, row.attempt, row.last_error) == ("available", 0, None)
    assert (kit.notes(), kit.attempts(job)) == ([], [])


def test_retry_is_exact_and_discards_on_the_last_attempt(kit: Kit) -> None:
    """Retry counts, goes by its own time and not by the backoff, and ends discarded."""
    when = datetime.now(UTC) + timedelta(days=300)

    async def run(job: Any, ctx: Any) -> None:
        raise Retry("later", at=when)

    kit.handle(run)
    first, last = kit.add(Task(), Task(max_attempts=1))

    kit.drain()

    row = kit.job(first)
    assert (row.state, row.run_at, row.attempt) == ("retryable", when, 1)
    assert (row.lane, row.last_error) == (1, "later")
    row = kit.job(last)
    assert (row.state, row.attempt, row.reason) == ("discarded", 1, "later")
    assert row.finished_at is not None


def test_snooze_gives_the_attempt_back_and_keeps_the_lane(kit: Kit) -> None:
    """Snooze costs no attempt, is counted as a snooze, and keeps the lane."""
    when = datetime.now(UTC) + HOUR

    async def run(job: Any, ctx: Any) -> None:
        if job.crashes == 0 and job.lane == 0 and job.n == 1:
            raise Retry(after=timedelta(0))
        raise Snooze(at=when)

    kit.handle(run)
    fresh, retried = kit.add(Task(), Task(n=1))

    kit.drain()

    row = kit.job(fresh)
    assert (row.state, row.attempt, row.snoozes, row.lane) == ("scheduled", 0, 1, 0)
    assert row.run_at == when
    row = kit.job(retried)
    assert (row.state, row.attempt, row.snoozes, row.lane) == ("scheduled", 1, 1, 1)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (None, "completed"),
        (ValueError("no"), "cancelled"),
        (Retry(after=HOUR), "cancelled"),
        (Snooze(after=HOUR), "cancelled"),
        (Discard("never"), "discarded"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_cancel_requested_while_running_loses_against_success_only(
    kit: Kit, outcome: Any, state: str
) -> None:
    """After a cancel request a success wins; failure, Retry and Snooze cancel."""
    running, asked = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        running.set()
        await wait_for(asked)
        if outcome is not None:
            raise outcome

    kit.handle(run)
    (job,) = kit.add()
    kit.run()
    assert running.wait(10)

    with kit.Session.begin() as session:
        found = request_cancel(session, Job, [job], reason="not wanted")
    asked.set()

    assert found.requested == (job,)
    row = kit.until_state(job, "completed", "cancelled", "discarded")
    assert row.state == state


@pytest.mark.parametrize("what", ["lost", "cancelled", "timed out"])
def test_interrupted_attempt_gets_a_base_exception_and_a_closed_session(
    kit: Kit, what: str
) -> None:
    """
    Context and session raise AttemptInterrupted, which `except Exception` cannot hide;
    who swallows it is refused at every later flush and commit.
    """
    running, over = threading.Event(), threading.Event()
    raised: list[str] = []

    async def run(job: Any, ctx: Any) -> None:
        running.set()
        await ignoring_cancellation(wait_for(over))
        await ok(until_cancelled(ctx))
        for use in uses_of(job, ctx):
            try:
                await ok(use())
            except Exception:  # noqa: BLE001
                raised.append("hidden")
            except AttemptInterrupted as exc:
                raised.append(exc.reason)

    kit.handle(run)
    timeout = timedelta(seconds=1) if what == "timed out" else None
    (job,) = kit.add(Task(timeout=timeout, max_attempts=2, backoff=constant(HOUR)))
    kit.run(lease=LEASE)
    assert running.wait(10)

    if what == "lost":
        take_over(kit, job)
    if what == "cancelled":
        with kit.Session.begin() as session:
            request_cancel(session, Job, [job])
    over.set()

    kit.until(lambda: len(raised) == 5)
    words = {"lost": "lost", "cancelled": "cancel", "timed out": "timed out"}
    assert all(words[what] in reason for reason in raised), raised
    if what != "lost":
        kit.until_state(job, "cancelled" if what == "cancelled" else "retryable")
    assert kit.notes() == []


def uses_of(job: Any, ctx: Any) -> list[Any]:
    """Return what a stubborn handler tries after its interruption."""

    def write() -> Any:
        effects(ctx.session, job, "too late")
        return ctx.session.flush()

    def begin() -> Any:
        return ctx.session.execute(select(1))

    def commit() -> Any:
        return ctx.session.commit()

    return [ctx.raise_if_interrupted, ctx.checkpoint, write, begin, commit]


async def ignoring_cancellation(waiting: Any) -> None:
    """Wait as a handler would that swallows even the cancellation of its task."""
    try:
        await waiting
    except asyncio.CancelledError:
        return


async def until_cancelled(ctx: Any) -> None:
    """Wait until the context says that the attempt must end."""
    while not ctx.cancelled:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            threading.Event().wait(0.005)
        else:
            try:
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                continue


def test_lost_lease_in_a_verb_is_an_ordinary_exception(kit: Kit) -> None:
    """The low-level verbs raise LeaseLost, an Exception."""
    (job,) = kit.add()
    with kit.Session.begin() as session:
        (old,) = claim(session, Job)
    take_over(kit, job)

    with kit.Session() as session:
        for verb in (complete, lambda s, c: fail(s, c, "no")):
            with pytest.raises(LeaseLost, match="no longer holds") as caught:
                verb(session, old)
            assert isinstance(caught.value, Exception)


def test_timed_out_thread_is_settled_at_once_and_keeps_its_slot(threads: Kit) -> None:
    """A thread cannot be killed: its attempt ends at once, its slot when it returns."""
    kit, over, started = threads, threading.Event(), []
    closed: list[bool] = []

    async def run(job: Any, ctx: Any) -> None:
        started.append(job.id)
        if len(started) == 1:
            over.wait(20)  # deaf to its context
            closed.append(ctx.cancelled)
            effects(ctx.session, job, "too late")

    kit.handle(run)
    job, other = kit.add(
        Task(timeout=timedelta(seconds=1), backoff=constant(HOUR)), Task(priority=-1)
    )
    kit.run(concurrency=1)

    row = kit.until_state(job, "retryable")
    assert row.last_error == "TimeoutError: timed out after 1 s"
    assert (kit.job(other).state, started) == ("available", [job])
    over.set()
    kit.until_state(other, "completed")
    assert (closed, kit.notes()) == ([True], [])
    assert kit.job(job).state == "retryable"


def test_shutdown_drains_then_hands_back_uncounted(kit: Kit) -> None:
    """
    A stop lets jobs end within the grace, ends attempts at their next checkpoint, then
    hands the rest back with the attempt not counted.
    """
    go, stuck = threading.Event(), threading.Event()
    running: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        running.append(job.id)
        if job.n == 2:
            await wait_for(stuck, ctx)
        await wait_for(go)
        if job.n == 1:
            effects(ctx.session, job, "part")
            await ok(ctx.checkpoint(cursor=1))
            effects(ctx.session, job, "not reached")

    kit.handle(run)
    ends, checkpoints, hangs, _ = kit.add(*[Task(n=n) for n in range(3)], Task(n=3))
    runner = kit.run(concurrency=3)
    kit.until(lambda: len(running) == 3)

    runner.stop(grace=timedelta(seconds=1), wait=False)
    go.set()
    runner.join()

    assert kit.states() == ["completed", "available", "available", "available"]
    row = kit.job(checkpoints)
    assert (row.attempt, row.checkpoint, kit.notes()) == (0, {"cursor": 1}, ["part"])
    assert (kit.job(hangs).attempt, kit.job(ends).attempt) == (0, 1)
    assert kit.attempts(hangs) == []


def test_second_signal_hands_back_now(kit: Kit) -> None:
    """A second signal does not wait for the grace."""
    running, stuck = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        running.set()
        await wait_for(stuck, ctx)

    kit.handle(run)
    (job,) = kit.add()
    runner = kit.run(grace=HOUR)
    assert running.wait(10)

    runner.signal()
    runner.signal()
    runner.join()

    assert (kit.job(job).state, kit.job(job).attempt) == ("available", 0)
