"""`drain` and the clock: all that is due, at the time the test says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete

from sqla_jobs import JobValueError, Retry, Snooze, claim, constant, enqueue_many
from sqla_jobs.testing import ManualClock, drain, run_one
from tests.testing.kit import HOUR, Always, Job, Kit, Mail, Task, ok

DAY = timedelta(days=1)


async def nothing(job: Any, ctx: Any) -> None:
    """Do nothing."""


def test_drain_runs_what_jobs_enqueue(kit: Kit) -> None:
    """Jobs that jobs enqueue run too; the counts are by state."""

    async def handler(job: Any, ctx: Any) -> Any:
        if job.n:
            ctx.session.add(Task(n=job.n - 1))
        return Snooze(after=HOUR) if job.n == 1 else None

    kit.handle(handler)
    kit.add(Task(n=3))

    assert kit.call(drain) == {"completed": 3, "scheduled": 1}
    assert kit.call(drain) == {}


def test_drain_stops_at_the_limit(both: Kit) -> None:
    """Jobs that enqueue themselves for ever end in an error that names their kind."""

    async def handler(job: Any, ctx: Any) -> None:
        ctx.session.add(Task())

    both.handle(handler)
    both.add(Task())

    with pytest.raises(AssertionError, match=r"ran 5 jobs \(5 task\) and more are due"):
        both.call(drain, limit=5)


def test_drain_up_to_the_limit(both: Kit) -> None:
    """As many jobs as the limit are no error."""
    both.add(Always(n=1), Always(n=2))

    assert both.call(drain, limit=2) == {"completed": 2}
    with pytest.raises(JobValueError, match="limit must be 1 or more, got 0"):
        both.call(drain, limit=0)


def test_drain_raises_by_default(both: Kit) -> None:
    """The first failure ends the drain with the handler's own exception."""

    async def handler(job: Any, ctx: Any) -> None:
        raise ValueError("as planned")

    both.handle(handler)
    job = both.add(Task(), Always())

    with pytest.raises(ValueError, match="as planned"):
        both.call(drain)
    assert job.state == "retryable"
    assert both.call(drain, raise_errors=False) == {"completed": 1}


def test_retries_before_their_time(both: Kit) -> None:
    """With with_retries=True a failing job runs until it is discarded."""

    async def handler(job: Any, ctx: Any) -> None:
        raise ValueError("as planned")

    both.handle(handler)
    both.add(Task(max_attempts=3))
    both.add(Always(delay=HOUR))

    states = both.call(drain, with_retries=True, raise_errors=False)

    assert states == {"retryable": 2, "discarded": 1}


def test_scheduled_before_their_time(both: Kit) -> None:
    """With with_scheduled=True later jobs run, but none that waits to be retried."""

    async def handler(job: Any, ctx: Any) -> Any:
        return Retry(after=HOUR) if ctx.attempt == 1 else None

    both.handle(handler)
    both.add(Task(), Always(delay=HOUR))

    assert both.call(drain, with_scheduled=True) == {"retryable": 1, "completed": 1}
    assert both.call(drain, with_retries=True) == {"completed": 1}


def test_lost_job_is_counted_so(both: Kit) -> None:
    """A job that was deleted while it ran ended in no state."""

    async def handler(job: Any, ctx: Any) -> None:
        await ok(both.session.execute(delete(Job)))

    both.handle(handler)
    both.add(Task())

    assert both.call(drain) == {"lost": 1}


# The clock


def test_clock_makes_later_jobs_due(kit: Kit) -> None:
    """A delayed job runs when the clock has come there, not before."""
    clock = ManualClock(kit.session)
    job = kit.add(Always(delay=HOUR))

    assert kit.call(drain) == {}
    clock.advance(HOUR / 2)
    assert kit.call(drain) == {}
    clock.advance(HOUR / 2)
    assert kit.call(drain) == {"completed": 1}
    assert job.finished_at >= job.run_at


def test_clock_may_be_advanced_first(both: Kit) -> None:
    """A clock that was never used is ahead of the database's by what it was moved."""
    clock = ManualClock()
    both.add(Always(delay=HOUR))
    both.flush()
    clock.advance(HOUR)

    assert both.call(drain, clock=clock) == {"completed": 1}


def test_clock_is_given_by_keyword(both: Kit) -> None:
    """Only calls that are given an unattached clock go by it."""
    clock = ManualClock()
    both.add(Always(delay=HOUR))
    both.flush()
    clock.advance(2 * HOUR)

    assert both.call(run_one) is None
    assert both.call(run_one, clock=clock) == "completed"


def test_clock_goes_on_with_the_databases(both: Kit) -> None:
    """A clock in use is not behind rows that are written later."""
    clock = ManualClock()
    both.add(Always(n=1))
    assert both.call(drain, clock=clock) == {"completed": 1}
    both.add(Always(n=2, delay=timedelta(microseconds=1)))

    assert both.call(drain, clock=clock) == {"completed": 1}


def test_backoff_goes_by_the_clock(both: Kit) -> None:
    """A failed job is due again after its backoff, by the clock."""

    async def handler(job: Any, ctx: Any) -> None:
        if ctx.attempt < 3:
            raise ValueError("as planned")

    both.handle(handler)
    clock = ManualClock(both.session)
    clock.advance(DAY)
    job = both.add(Task(backoff=constant(HOUR)))

    assert both.call(drain, raise_errors=False) == {"retryable": 1}
    assert timedelta(0) < job.run_at - clock.now() <= HOUR
    assert both.call(drain, raise_errors=False) == {}
    clock.advance(HOUR)
    assert both.call(drain, raise_errors=False) == {"retryable": 1}
    clock.advance(HOUR)
    assert both.call(drain) == {"completed": 1}


def test_set_clock_stands_still(both: Kit) -> None:
    """All that is written has exactly the time that was set."""
    at = datetime(2030, 1, 1, 12, tzinfo=UTC)
    clock = ManualClock(both.session)
    clock.set(at)
    job = both.add(Always(run_at=at))

    assert both.call(drain) == {"completed": 1}
    assert clock.now() == job.started_at == job.finished_at == at


def test_delays_count_from_the_clock(both: Kit) -> None:
    """A handler's delayed jobs, and the test's, are later than the clock."""
    clock = ManualClock(both.session)
    clock.advance(DAY)

    async def handler(job: Any, ctx: Any) -> None:
        ctx.session.add(Task(delay=HOUR))

    both.handle(handler)
    both.add(Task(delay=HOUR))

    assert both.call(drain) == {}
    for _ in range(3):
        clock.advance(HOUR)
        assert both.call(drain) == {"completed": 1}


def test_handler_may_move_the_clock(both: Kit) -> None:
    """Time that passes while a handler runs is in its job's row and its delays."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    clock = ManualClock()
    clock.set(at)

    async def handler(job: Any, ctx: Any) -> None:
        clock.advance(HOUR)
        if job.n == 1:
            ctx.session.add(Mail(to="a", delay=HOUR))

    both.handle(handler)
    both.handle(nothing, Mail)
    job = both.add(Task(n=1))

    assert both.call(drain, clock=clock) == {"completed": 1}
    assert (job.started_at, job.finished_at) == (at, at + HOUR)
    clock.advance(HOUR)
    assert both.call(drain, clock=clock) == {"completed": 1}


def test_bulk_enqueue_counts_from_the_clock(sync: Kit) -> None:
    """Delays of `enqueue_many` go by the session's clock too."""
    clock = ManualClock(sync.session)
    clock.set(datetime(2030, 1, 1, tzinfo=UTC))
    enqueue_many(sync.session, Always, [{"n": 1, "delay": HOUR}])

    assert sync.call(drain, Job) == {}
    clock.advance(HOUR)
    assert sync.call(drain, Job) == {"completed": 1}


def test_expired_lease_is_rescued(sync: Kit) -> None:
    """A job whose holder is gone runs again once the clock has passed its lease."""
    clock = ManualClock(sync.session)
    job = sync.add(Always())
    sync.flush()
    assert claim(sync.session, Job)

    assert sync.call(drain) == {}
    clock.advance(timedelta(seconds=31))
    assert sync.call(drain) == {"completed": 1}
    assert (job.attempt, job.crashes) == (2, 1)


def test_snooze_and_checkpoint_go_by_the_clock(both: Kit) -> None:
    """A lease renewed by a checkpoint, and a snooze, count from the clock."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    clock = ManualClock(both.session)
    clock.set(at)
    leases: list[Any] = []

    async def handler(job: Any, ctx: Any) -> Snooze:
        await ok(ctx.checkpoint())
        await ok(ctx.session.refresh(job))
        leases.append(job.leased_until)
        clock.advance(HOUR)
        await ok(ctx.renew_lease(HOUR))
        await ok(ctx.session.refresh(job))
        leases.append(job.leased_until)
        return Snooze(after=HOUR)

    both.handle(handler)
    job = both.add(Task())

    assert both.call(run_one) == "scheduled"
    assert leases == [at + timedelta(seconds=30), at + 2 * HOUR]
    assert job.run_at == at + 2 * HOUR


def test_clock_says_what_is_wrong() -> None:
    """A clock refuses what is no time, going back, and a time it cannot know."""
    clock = ManualClock()

    with pytest.raises(JobValueError, match=r"starts when.*clock.set\(datetime"):
        clock.now()
    with pytest.raises(JobValueError, match=r"advance\(-1 day, 0:00:00\)|advance\(dat"):
        clock.advance(-DAY)
    with pytest.raises(JobValueError, match=r"advance\(3\) needs a timedelta"):
        clock.advance(3)  # type: ignore[arg-type]
    with pytest.raises(JobValueError, match="is naive"):
        clock.set(datetime(2030, 1, 1))  # noqa: DTZ001
