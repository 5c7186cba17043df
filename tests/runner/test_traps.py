"""
Traps: what other queues got wrong, each as the behaviour that must hold here.

Every one of these was a bug of a released system, found by running or reading it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from sqla_jobs import (
    JobState,
    LeaseLost,
    checkpoint,
    claim,
    complete,
    fail,
    release,
    renew,
    request_cancel,
    rescue,
    stage,
)
from tests.conformance.factories import at_once
from tests.runner.harness import Effect, Job, Kit, Task, effects, ok, take_over

T = TypeVar("T")
SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=3)
SHORT = {"lease": LEASE, "poll": timedelta(milliseconds=50)}
DAY = timedelta(days=1)


def now() -> datetime:
    """Return about the database's time."""
    return datetime.now(UTC)


def did(kit: Kit, work: Callable[..., T], *args: Any, **options: Any) -> T:
    """Return what *work* does in a committed transaction of its own."""
    with kit.Session.begin() as session:
        return work(session, *args, **options)


def crash(kit: Kit, job_id: int, at: datetime) -> Any:
    """Let a holder take the job and vanish; return what became of it at *at*."""
    (held,) = did(kit, claim, Job, now=at - DAY)
    assert held.job_id == job_id
    (rescued,) = did(kit, rescue, Job, now=at)
    return rescued


# Fences


def test_two_holders_that_complete_leave_one_effect(threads: Kit) -> None:
    """The first holder's writes roll back with its completion."""
    (job_id,) = threads.add()
    (first,) = did(threads, claim, Job, lease=LEASE)
    second = take_over(threads, job_id)

    with threads.Session() as stale:
        stale.add(Effect(job_id=job_id, note="first"))
        stale.flush()
        with pytest.raises(LeaseLost):
            complete(stale, first)
    with threads.Session.begin() as session:
        session.add(Effect(job_id=job_id, note="second"))
        complete(session, second)

    assert (threads.notes(), threads.states()) == (["second"], ["completed"])


@pytest.mark.parametrize("verb", [complete, renew, checkpoint, release, fail])
def test_a_late_verb_is_refused_after_a_takeover(threads: Kit, verb: Any) -> None:
    """Whatever the old holder says, the new one's lease is as it was."""
    (job_id,) = threads.add()
    (first,) = did(threads, claim, Job, lease=LEASE)
    second = take_over(threads, job_id)
    before = threads.job(job_id)

    more = ["too late"] if verb is fail else []
    with pytest.raises(LeaseLost):
        did(threads, verb, first, *more)

    row = threads.job(job_id)
    assert (row.state, row.leased_until) == ("running", before.leased_until)
    did(threads, complete, second)


def test_six_claimers_never_share_a_retried_job(threads: Kit) -> None:
    """A job that waited out its backoff is staged and claimed by one of them."""
    threads.add()

    def look() -> int:
        did(threads, stage, Job)
        return len(did(threads, claim, Job))

    for _ in range(50):
        assert sum(at_once([look] * 6)) == 1
        threads.sql("UPDATE jobs SET state = 'retryable', lane = 1, run_at = now()")


def test_a_checkpoint_a_takeover_and_a_touch_of_the_job_is_refused(kit: Kit) -> None:
    """After a commit the row reloads with the new holder's token; it is not used."""
    taken: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        await ok(ctx.checkpoint(step=1))
        taken.append(take_over(kit, job.id))
        await ok(ctx.session.refresh(job))
        assert job.lease_token == taken[0].token
        job.tags = ["touched"]
        effects(ctx.session, job, "late")

    kit.handle(run)
    (job_id,) = kit.add()

    kit.run_one()

    row = kit.job(job_id)
    assert (row.state, row.tags, kit.notes()) == ("running", None, [])
    did(kit, complete, taken[0])


# Crashes


def test_a_crash_before_the_first_heartbeat_is_rescued(threads: Kit) -> None:
    """The lease is set by the claim itself."""
    (job_id,) = threads.add()

    rescued = crash(threads, job_id, now() + 2 * DAY)

    assert (rescued.state, rescued.attempt) == (JobState.AVAILABLE, 1)


def test_a_crash_on_the_last_attempt_ends_the_job(threads: Kit) -> None:
    """It is discarded, not left running for ever."""
    (job_id,) = threads.add(Task(max_attempts=1))

    crash(threads, job_id, now() + 2 * DAY)

    row = threads.job(job_id)
    assert (row.state, row.reason) == ("discarded", "attempts used up")


def test_a_crash_loop_ends(threads: Kit) -> None:
    """A job that kills whoever runs it is discarded as poison."""
    (job_id,) = threads.add(Task(max_attempts=1_000))

    states = [crash(threads, job_id, now() + 2 * n * DAY).state for n in (1, 2, 3)]

    assert states == [JobState.AVAILABLE, JobState.AVAILABLE, JobState.DISCARDED]
    assert threads.job(job_id).reason == "poison: 3 crashes"


def test_a_crash_after_a_failure_keeps_the_count(threads: Kit) -> None:
    """No rescue resets the attempts."""
    (job_id,) = threads.add(Task(max_attempts=3))
    (held,) = did(threads, claim, Job)
    did(threads, fail, held, "no")
    did(threads, stage, Job)

    assert crash(threads, job_id, now() + 2 * DAY).attempt == 2
    assert crash(threads, job_id, now() + 4 * DAY).state is JobState.DISCARDED


def test_a_checkpoint_on_the_last_attempt_makes_no_job_immortal(threads: Kit) -> None:
    """A crash after it ends the job."""
    (job_id,) = threads.add(Task(max_attempts=1))
    (held,) = did(threads, claim, Job)
    did(threads, checkpoint, held, {"n": 1})

    (rescued,) = did(threads, rescue, Job, now=now() + DAY)

    assert (rescued.state, threads.job(job_id).attempt) == (JobState.DISCARDED, 1)


# Leases


def test_a_renewed_lease_outlives_its_first_expiry(threads: Kit) -> None:
    """It is one lease: nobody else's look fails or takes the job."""
    (job_id,) = threads.add()
    start = now()
    (held,) = did(threads, claim, Job, lease=LEASE, now=start)
    did(threads, renew, held, lease=LEASE, now=start + 2 * SECOND)
    between = start + 4 * SECOND

    assert did(threads, rescue, Job, now=between) == []
    assert did(threads, claim, Job, now=between) == []
    (rescued,) = did(threads, rescue, Job, now=start + 6 * SECOND)
    assert rescued.job_id == job_id


@pytest.mark.slow
@pytest.mark.parametrize("writes", [False, True])
def test_a_handler_that_blocks_longer_than_the_lease_runs_once(
    kit: Kit, writes: bool
) -> None:
    """
    Heartbeats need neither its thread nor its loop; and while it writes its job, as
    before a checkpoint's commit, nobody can take the locked row.
    """
    ran: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append(job.id)
        if writes:
            job.tags = ["written"]
            await ok(ctx.session.flush())
        time.sleep(4.5)  # noqa: ASYNC251 - a loop that hangs is the point

    kit.handle(run)
    (job_id,) = kit.add()
    kit.run(**SHORT)
    kit.run(**SHORT)

    row = kit.until_state(job_id, "completed")
    assert (len(ran), row.attempt, row.crashes) == (1, 1, 0)
    assert row.tags == (["written"] if writes else None)


def test_a_retrys_delay_counts_from_the_failure(threads: Kit) -> None:
    """Neither the attempt's start nor a lease that was pushed far moves it."""
    (job_id,) = threads.add()
    start = now()
    (held,) = did(threads, claim, Job, lease=LEASE, now=start)
    did(threads, renew, held, lease=timedelta(hours=5), now=start)
    failed = start + timedelta(hours=1)

    did(threads, fail, held, "no", retry_after=SECOND, now=failed)

    assert threads.job(job_id).run_at == failed + SECOND


# Cancelling, unknown kinds, the database


def test_a_cancelled_running_job_that_fails_stays_cancelled(kit: Kit) -> None:
    """No retry brings it back."""

    async def run(job: Any, ctx: Any) -> None:
        asked = did(kit, request_cancel, Job, [job.id], reason="enough")
        assert asked.requested == (job.id,)
        raise ValueError("failed meanwhile")

    kit.handle(run)
    (job_id,) = kit.add()

    kit.drain()

    row = kit.job(job_id)
    assert (row.state, row.reason, row.attempt) == ("cancelled", "enough", 1)


def test_jobs_of_unknown_kinds_are_left_alone(kit: Kit) -> None:
    """A deploy in the wrong order costs them no attempt, and hinders no others."""

    async def run(job: Any, ctx: Any) -> None: ...

    kit.handle(run)
    kit.sql("INSERT INTO jobs (kind) SELECT 'tomorrows' FROM generate_series(1, 50)")
    kit.add()

    kit.drain()

    states = kit.states()
    assert (states.count("available"), states.count("completed")) == (50, 1)
    assert kit.sql("SELECT sum(attempt) FROM jobs WHERE kind = 'tomorrows'") == 0


def test_a_runner_survives_the_end_of_its_connections(kit: Kit) -> None:
    """It looks again as soon as the database lets it."""
    done = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        done.set()

    kit.handle(run)
    running = kit.run()
    kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))
    end = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    for _ in range(3):
        kit.until(lambda: kit.sql(end))
        kit.engine.dispose()  # the test's own connections are among them
    kit.add()

    assert done.wait(20)
    assert running.alive


def test_queue_and_channel_names_may_have_200_bytes(kit: Kit) -> None:
    """No wake-up channel, index or identifier is made of them."""
    name = "ü'\" *%" * 28 + "abcd"
    assert len(name.encode()) == 200
    done = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        done.set()

    kit.handle(run)
    kit.run(queues=[name], poll=timedelta(seconds=60))
    kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))
    kit.add(Task(queue=name, channel=name))

    assert done.wait(20)


def test_a_handler_that_fails_in_its_flush_leaves_only_the_failure(kit: Kit) -> None:
    """No half of its effects is kept, and the failure is on record."""

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "good")
        ctx.session.add(Effect(job_id=None))
        await ok(ctx.session.flush())

    kit.handle(run)
    (job_id,) = kit.add(Task(max_attempts=1))

    kit.drain()

    row = kit.job(job_id)
    assert (row.state, kit.notes()) == ("discarded", [])
    assert "null value in column" in row.last_error


def test_enqueueing_leaves_the_connections_search_path_alone(threads: Kit) -> None:
    """What the application's later statements mean does not change."""
    engine = create_engine(threads.dsn, pool_size=1, max_overflow=0)
    with Session(engine) as session:
        session.execute(text("SET search_path = pg_catalog, public"))
        session.commit()
        session.add(Task())
        session.flush()
        during = session.scalar(text("SHOW search_path"))
        session.commit()
        after = session.scalar(text("SHOW search_path"))
    engine.dispose()

    assert (during, after) == ("pg_catalog, public",) * 2
