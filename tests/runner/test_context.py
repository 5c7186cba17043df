"""What `Context` and `AsyncContext` give a handler."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from sqla_jobs import JobValueError, PayloadError, Retry, Snooze, constant
from sqla_jobs._store.operate import requeue
from tests.runner.harness import (
    LEASE,
    Job,
    Kit,
    Linked,
    Task,
    effects,
    ok,
    take_over,
    wait_for,
)

HOUR = timedelta(hours=1)
SOON = timedelta(0)


def test_state_starts_empty_and_is_what_was_saved(kit: Kit) -> None:
    """The state is {} at first, then what the last commit saved, in place or not."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        seen.append(dict(ctx.state))
        match ctx.attempt:
            case 1:
                ctx.state["in place"] = [1]
                await ok(ctx.session.commit())
                ctx.state["in place"].append(2)
                await ok(ctx.checkpoint(merged=1))
                ctx.state["lost"] = True
            case 2:
                await ok(ctx.checkpoint({"replaced": 1}, merged=2))
            case _:
                return
        raise Retry(after=SOON)

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    second = {"in place": [1, 2], "merged": 1}
    assert seen == [{}, second, {"replaced": 1, "merged": 2}]
    assert kit.job(job).state == "completed"


def test_state_survives_snooze_and_requeue_clears_it(kit: Kit) -> None:
    """Snooze and retry keep the state; requeue clears it unless told to keep it."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        seen.append((ctx.attempt, dict(ctx.state)))
        if not ctx.state:
            await ok(ctx.checkpoint(cursor=1))
            raise Snooze(after=SOON)

    kit.handle(run)
    (job,) = kit.add()
    kit.drain()
    with kit.Session.begin() as session:
        requeue(session, Job, job, keep_state=True)
    kit.drain()
    with kit.Session.begin() as session:
        requeue(session, Job, job)
    kit.drain()

    kept = {"cursor": 1}
    assert seen == [(1, {}), (1, kept), (1, kept), (1, {}), (1, kept)]


def test_state_of_a_returned_outcome_is_saved_without_a_session(kit: Kit) -> None:
    """What a handler changed in place is saved with the outcome that it returns."""

    async def run(job: Any, ctx: Any) -> Any:
        ctx.state["seen"] = ctx.attempt
        return Retry(after=SOON) if ctx.attempt == 1 else None

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    assert kit.job(job).checkpoint == {"seen": 2}


def test_extra_attempts_raise_the_limit(kit: Kit) -> None:
    """A job that checkpoints its way on may be given more attempts, each by itself."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        if ctx.attempt == 1:
            await ok(ctx.checkpoint(extra_attempts=1))
        seen.append((ctx.attempt, ctx.max_attempts))
        raise Retry(after=SOON)

    kit.handle(run)
    (job,) = kit.add(Task(max_attempts=1))

    kit.drain()

    assert seen == [(1, 2), (2, 2)]
    assert kit.job(job).state == "discarded"


def test_checkpoint_lengthens_the_lease_once(kit: Kit) -> None:
    """A checkpoint's `lease=` is for that renewal; the next has the job's again."""
    seen: list[timedelta] = []

    async def run(job: Any, ctx: Any) -> None:
        for lease in (None, HOUR, None):
            now = kit.sql("SELECT now()")
            await ok(ctx.checkpoint(lease=lease))
            seen.append(kit.job(job.id).leased_until - now)

    kit.handle(run)
    kit.add()

    kit.drain(lease=timedelta(seconds=30))

    assert seen[0] < timedelta(minutes=1)
    assert seen[1] > timedelta(minutes=59)
    assert seen[2] > timedelta(minutes=59), "a renewal never shortens"


def test_renew_lease_holds_as_long_as_asked(kit: Kit) -> None:
    """renew_lease() renews at once, for the length asked, committing nothing else."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "not yet")
        now = kit.sql("SELECT now()")
        await ok(ctx.renew_lease(HOUR))
        held = ctx._attempt.held_until - time.monotonic()
        row = kit.job(job.id)
        seen.append((row.leased_until - now > HOUR * 0.99, held > 3000, kit.notes()))
        take_over(kit, job.id)
        await ok(ctx.renew_lease())

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    assert seen == [(True, True, [])]
    assert (kit.job(job).state, kit.notes()) == ("running", [])


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda ctx: ctx.checkpoint(extra_attempts=-1), JobValueError, "0 or more"),
        (
            lambda ctx: ctx.checkpoint(lease=timedelta(seconds=1)),
            JobValueError,
            "lease must be 3 s or more, got 1 s",
        ),
        (
            lambda ctx: ctx.renew_lease(timedelta(seconds=2)),
            JobValueError,
            "lease must be 3 s or more, got 2 s",
        ),
        (lambda ctx: ctx.checkpoint(x=float("nan")), PayloadError, "nan"),
        (lambda ctx: ctx.checkpoint({"x": {1}}), PayloadError, "set"),
        (lambda ctx: ctx.progress(-1), JobValueError, "got -1"),
        (lambda ctx: ctx.progress(1, float("inf")), JobValueError, "got inf"),
    ],
    ids=["extra", "lease", "renew", "nan", "set", "progress", "total"],
)
def test_bad_argument_is_refused_before_any_sql(
    kit: Kit, use: Any, error: type[Exception], message: str
) -> None:
    """A value that cannot be used is refused with the value and what would do."""
    caught: list[BaseException] = []

    async def run(job: Any, ctx: Any) -> None:
        try:
            await ok(use(ctx))
        except error as exc:
            caught.append(exc)
        assert ctx._attempt.session is None

    kit.handle(run)
    kit.add()

    kit.drain()

    assert [message in str(exc) for exc in caught] == [True]
    assert kit.states() == ["completed"]


def test_progress_is_saved_within_about_a_second(kit: Kit) -> None:
    """A running job's progress shows without a commit of its own, and only once."""
    go = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        ctx.progress(1, 3)
        await wait_for(go)

    kit.handle(run)
    (job,) = kit.add()
    running = kit.run(lease=timedelta(seconds=30))

    kit.until(lambda: kit.job(job).progress == {"done": 1, "total": 3}, seconds=5)
    # Noted after it was written.
    sent = kit.until(lambda: running.runner._heartbeat.renewals)
    threading.Event().wait(2.5)
    assert running.runner._heartbeat.renewals == sent, "unchanged progress is no news"
    go.set()


@pytest.mark.parametrize("used", [True, False], ids=["session", "no session"])
def test_last_progress_is_saved_with_commit_and_outcome(kit: Kit, used: bool) -> None:
    """Each commit saves the progress, and so does the end of the attempt."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        if used:
            ctx.progress(1)
            await ok(ctx.session.commit())
            effects(ctx.session, job, "used")
            await ok(ctx.checkpoint())
            seen.append(kit.job(job.id).progress)
            effects(ctx.session, job, "again")
        ctx.progress(2)

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    assert seen == ([{"done": 1, "total": None}] if used else [])
    assert kit.job(job).progress == {"done": 2, "total": None}


def test_deadline_is_the_start_plus_the_timeout(kit: Kit) -> None:
    """The deadline goes by the database's clock; without a timeout there is none."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        seen.append(ctx.deadline and ctx.deadline - job.started_at)

    kit.handle(run)
    kit.add(Task(timeout=HOUR, priority=1), Task())

    kit.drain(concurrency=1)

    assert seen == [HOUR, None]


def test_idempotency_key_is_the_same_in_all_attempts_and_requeues(kit: Kit) -> None:
    """It names table and job, nothing of the attempt."""
    seen: list[str] = []

    async def run(job: Any, ctx: Any) -> None:
        seen.append(ctx.idempotency_key)
        if ctx.attempt == 1:
            raise Retry(after=SOON)

    kit.handle(run)
    (job,) = kit.add()
    kit.drain()
    with kit.Session.begin() as session:
        requeue(session, Job, job)
    kit.drain()

    assert seen == [f"jobs:{job}"] * 4


def test_log_records_carry_the_job(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """Every record has job_id, kind and attempt, beside the caller's `extra`."""

    async def run(job: Any, ctx: Any) -> None:
        ctx.log.warning("from %s", "inside", extra={"mine": 1})

    kit.handle(run)
    (job,) = kit.add()

    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.drain()

    (record,) = [r for r in caplog.records if r.getMessage() == "from inside"]
    fields = vars(record)
    assert [fields[k] for k in ("job_id", "kind", "attempt", "mine")] == [
        job, "task", 1, 1,
    ]  # fmt: skip


def test_resources_are_the_runners_value(kit: Kit) -> None:
    """Handlers find what the runner was given, itself."""
    given, seen = object(), []

    async def run(job: Any, ctx: Any) -> None:
        seen.append(ctx.resources)

    kit.handle(run)
    kit.add()

    kit.drain(resources=given)

    assert seen == [given]


def test_result_is_stored_and_what_json_cannot_hold_fails(kit: Kit) -> None:
    """A returned JSON value is the result; anything else fails the attempt."""

    async def run(job: Any, ctx: Any) -> Any:
        return {"n": [1, None]} if job.n else {1, 2}

    kit.handle(run)
    good, bad = kit.add(Task(n=1), Task(max_attempts=1))

    kit.drain()

    assert (kit.job(good).state, kit.job(good).result) == (
        "completed",
        {"n": [1, None]},
    )
    assert kit.job(bad).state == "discarded"
    assert "result" in kit.job(bad).last_error


def test_job_changed_without_the_session_is_saved(kit: Kit) -> None:
    """A handler that changes its job, and nothing else, has used its session."""

    async def run(job: Any, ctx: Any) -> None:
        job.tags = ["seen"]

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    assert (kit.job(job).tags, kit.job(job).state) == (["seen"], "completed")


def test_relationship_set_in_a_handler_is_saved(threads: Kit) -> None:
    """The job is attached before its handler runs: relationships work both ways."""
    kit = threads
    kit.add_owner("Ada")

    async def run(job: Any, ctx: Any) -> None:
        job.owner_id = 1
        ctx.session.flush()
        ctx.session.refresh(job, ["owner"])
        owner: Any = job.owner
        owner.name += "!"

    kit.handle(run, Linked)
    kit.add(Linked())

    kit.drain()

    assert kit.states() == ["completed"]
    assert kit.sql("SELECT name FROM owners") == "Ada!"


def test_progress_ends_with_the_lease(kit: Kit) -> None:
    """An attempt that lost its job writes no progress into the new holder's row."""
    lost = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        take_over(kit, job.id)
        ctx.progress(9)
        while not ctx.cancelled:
            await wait_for(lost, ctx)

    kit.handle(run)
    (job,) = kit.add(Task(backoff=constant(HOUR)))

    kit.drain(lease=LEASE)

    row = kit.job(job)
    assert (row.progress, row.lease_token) == (None, 3)
