"""
Traps: what other queues got wrong, each as the behaviour that must hold here.

Every one of these was a bug of a released system, found by running or reading it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from sqla_jobs import (
    HoldExpired,
    JobState,
    LeaseLost,
    checkpoint,
    claim,
    complete,
    confirm_hold,
    enqueue,
    fail,
    release,
    renew,
    request_cancel,
    requeue,
    rescue,
    set_queue,
    stage,
)
from sqla_jobs._store.holds import expire_holds
from sqla_jobs.handlers import Handler
from sqla_jobs.models import job_tables
from tests.conformance.factories import at_once, freed_when_awaited
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


@pytest.mark.read_committed("nobody tries again after a conflict")
def test_six_claimers_never_share_a_retried_job(threads: Kit) -> None:
    """A job that waited out its backoff is staged and claimed by one of them."""
    threads.add()

    def look() -> int:
        did(threads, stage, Job)
        return len(did(threads, claim, Job))

    for _ in range(20):
        assert sum(at_once([look] * 6)) == 1
        threads.sql("UPDATE jobs SET state = 'retryable', lane = 1, run_at = now()")


@pytest.mark.read_committed("its transaction locks the job elsewhere")
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
        time.sleep(3.8)  # noqa: ASYNC251 - a loop that hangs is the point

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


@pytest.mark.direct("ends the runner's connections, which are not its own there")
def test_a_runner_survives_the_end_of_its_connections(kit: Kit) -> None:
    """It looks again as soon as the database lets it."""
    done = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        done.set()

    kit.handle(run)
    here = "FROM pg_stat_activity WHERE datname = current_database()"
    others = kit.sql(f"SELECT array_agg(pid) {here}")  # of fixtures, which stay
    running = kit.run()
    kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))
    new = f"{here} AND pid <> ALL (:others) AND pid <> pg_backend_pid()"
    end = f"SELECT count(pg_terminate_backend(pid)) {new}"
    for _ in range(3):
        kit.until(lambda: kit.sql(end, others=others))
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


# Congestion, floods and fairness


def test_congestion_gives_the_attempt_back(kit: Kit) -> None:
    """A handler's full permits may refuse a job often: it has all its attempts left."""
    refusals = 5

    async def run(job: Any, ctx: Any) -> None: ...

    def acquire(job: Any) -> bool:
        nonlocal refusals
        refusals -= 1
        return refusals < 0

    kit.handle(run)
    task: Any = Task
    given = task.__job_handler__
    task.__job_handler__ = Handler(given.call, given.is_async, acquire)
    (job_id,) = kit.add(Task(max_attempts=1))

    while kit.job(job_id).state != "completed":
        kit.sql("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'")
        kit.drain()

    row = kit.job(job_id)
    assert (row.attempt, row.snoozes, refusals) == (1, 5, -1)


def test_a_flood_of_new_work_still_serves_retries(kit: Kit) -> None:
    """A runner keeps a share of its claims for jobs that failed before."""
    ran: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append(job.lane)
        if len(ran) < 200:
            did(kit, lambda session: session.add_all([Task() for _ in range(2)]))

    kit.handle(run)
    kit.add(*[Task() for _ in range(50)])
    (retried,) = kit.add()
    kit.sql("UPDATE jobs SET lane = 1 WHERE id = :id", id=retried)

    kit.run(concurrency=1, retry_share=0.1)

    kit.until_state(retried, "completed")
    assert ran.index(1) < 50


def test_a_thousand_jobs_do_not_starve_three(threads: Kit) -> None:
    """In a fair queue the three are in the first two batches of 20."""
    threads.add(*[Task(channel="large") for _ in range(1_000)])
    few = threads.add(*[Task(channel="small") for _ in range(3)])
    did(threads, set_queue, Job, "default", fair=True)

    batches = [did(threads, claim, Job, limit=20) for _ in range(2)]

    assert set(few) <= {one.job_id for batch in batches for one in batch}
    assert sum(map(len, batches)) >= 23


# Ordered channels


def ordered(kit: Kit, count: int, **options: Any) -> list[int]:
    """Enqueue ordered jobs in one channel and return their ids."""
    return kit.add(*[Task(ordered=True, channel="c", **options) for _ in range(count)])


def next_head(kit: Kit, **options: Any) -> Any:
    """Claim what the channel has to offer: one job, or None."""
    did(kit, stage, Job)
    found = did(kit, claim, Job, limit=10, **options)
    assert len(found) <= 1
    return found[0] if found else None


def test_ordered_jobs_run_one_at_a_time_in_the_order_of_the_batch(
    threads: Kit,
) -> None:
    """Not at random, and the next one only when the one before has ended."""
    ids = ordered(threads, 5)
    assert ids == sorted(ids)

    for job_id in ids:
        held = next_head(threads)
        assert (held.job_id, next_head(threads)) == (job_id, None)
        did(threads, complete, held)


def test_a_late_committing_sender_neither_overtakes_nor_overlaps(
    threads: Kit,
) -> None:
    """The second sender waits for the first one's commit; nobody fails."""
    first, second = Task(ordered=True, channel="c"), Task(ordered=True, channel="c")
    with threads.Session() as early, threads.Session() as late:
        early.add(first)
        early.flush()
        with freed_when_awaited(late, early):
            late.add(second)
            late.flush()
        late.commit()

    assert first.id < second.id
    assert next_head(threads).job_id == first.id
    assert next_head(threads) is None


def test_a_delayed_failed_or_snoozed_head_holds_the_rest(threads: Kit) -> None:
    """The others of its channel wait, jobs beside the order do not."""
    head, _ = ordered(threads, 2)
    (beside,) = threads.add(Task(channel="c"))
    for state in ("scheduled", "retryable", "held"):
        threads.sql(
            "UPDATE jobs SET state = :state, run_at = now() + interval '1 day',"
            " held_until = now() + interval '1 day' WHERE id = :id",
            state=state,
            id=head,
        )
        held = next_head(threads)
        assert held.job_id == beside
        did(threads, release, held)


def test_a_dead_head_lets_go_or_blocks_as_its_queue_says(threads: Kit) -> None:
    """By default one that dies does not kill all; with `block` it waits for people."""
    first, second = ordered(threads, 2, max_attempts=1)
    did(threads, fail, next_head(threads), "no")
    did(threads, set_queue, Job, "default", on_discard="block")
    assert next_head(threads) is None
    did(threads, set_queue, Job, "default", on_discard="skip")

    held = next_head(threads)

    assert held.job_id == second
    did(threads, requeue, Job, first)
    assert next_head(threads) is None  # the order of ids, but no overlap
    did(threads, complete, held)
    assert next_head(threads).job_id == first


def test_a_job_in_the_middle_of_a_channel_can_be_cancelled(threads: Kit) -> None:
    """The chain has no links to break."""
    first, middle, last = ordered(threads, 3)
    assert did(threads, request_cancel, Job, [middle]).cancelled == (middle,)

    for job_id in (first, last):
        held = next_head(threads)
        assert held.job_id == job_id
        did(threads, complete, held)


# Two-phase enqueue, idempotency


def sweep(kit: Kit) -> bool:
    """Do what any runner does at each look at the table."""
    did(kit, expire_holds, job_tables(Job))
    return True


def test_a_hold_that_is_over_cannot_be_confirmed(threads: Kit) -> None:
    """It raises, the job ends cancelled, and its successor goes on."""
    held, after = ordered(threads, 2)
    threads.sql(
        "UPDATE jobs SET state = 'held', held_until = now() WHERE id = :id", id=held
    )
    assert next_head(threads) is None

    with pytest.raises(HoldExpired):
        did(threads, confirm_hold, Job, held)
    sweep(threads)

    assert threads.job(held).state == "cancelled"
    assert next_head(threads).job_id == after


@pytest.mark.read_committed("nobody tries again after a conflict")
def test_a_confirm_that_races_the_expiry_is_never_lost(threads: Kit) -> None:
    """Either it is confirmed and runs, or it raises and is cancelled."""

    def confirm(job_id: int) -> bool:
        time.sleep(0.004)  # about when the hold ends
        try:
            did(threads, confirm_hold, Job, job_id)
        except HoldExpired:
            return False
        return True

    for _ in range(15):
        (job_id,) = threads.add(Task(hold_for=timedelta(milliseconds=5)))
        works = [partial(confirm, job_id), partial(sweep, threads)]
        confirmed, _ = at_once(works)
        sweep(threads)
        state = threads.job(job_id).state
        assert state == ("available" if confirmed else "cancelled")


def test_a_confirmed_hold_wakes_the_runners(kit: Kit) -> None:
    """Without waiting for a poll."""
    done = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        done.set()

    kit.handle(run)
    (job_id,) = kit.add(Task(hold_for=DAY))
    kit.run(poll=timedelta(seconds=60))
    kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))
    did(kit, confirm_hold, Job, job_id)

    assert done.wait(20)


def test_an_idempotency_key_drops_no_job_after_its_window(threads: Kit) -> None:
    """Within it the first job answers, even a deleted one; then a repeat enqueues."""
    start = now()
    key = {"idempotency_key": "order 7", "window": DAY}
    first = did(threads, enqueue, Task(), **key, now=start)
    threads.sql("DELETE FROM jobs")
    again = did(threads, enqueue, Task(), **key, now=start + 23 * timedelta(hours=1))

    later = did(threads, enqueue, Task(), **key, now=start + DAY + SECOND)

    assert (again.created, again.job_id) == (False, first.job_id)
    assert (later.created, len(threads.states())) == (True, 1)
