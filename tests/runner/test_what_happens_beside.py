"""The second half of the table "what happens when": from crashes on."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm.exc import StaleDataError

from sqla_jobs import (
    DuplicateJob,
    constant,
)
from sqla_jobs._store.claim import claim
from sqla_jobs._store.operate import requeue
from sqla_jobs._store.sweep import rescue
from tests.runner.harness import (
    Job,
    Kit,
    Linked,
    Loaded,
    Task,
    answerless_commit,
    effects,
    ok,
    quiet,
    wait_for,
)

HOUR = timedelta(hours=1)


def test_crash_costs_every_job_an_attempt_and_three_are_poison(kit: Kit) -> None:
    """
    An expired lease costs an attempt and a crash; at the third the job is discarded,
    and jobs that crashed twice run one at a time.
    """
    go, started = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        started.set()
        await wait_for(go)

    ids = kit.add(*[Task() for _ in range(4)])
    for crash in (1, 2):
        with kit.Session.begin() as session:
            if crash == 1:
                assert len(claim(session, Job, limit=4)) == 4
        kit.sql(
            "UPDATE jobs SET state = 'running', leased_until = now() - interval '1 s',"
            " attempt = :a",
            a=crash,
        )
        with kit.Session.begin() as session:
            taken = rescue(session, Job)
        assert {(t.crashes, t.attempt, str(t.state)) for t in taken} == {
            (crash, crash, "available")
        }
    kit.handle(run)
    running = kit.run(concurrency=4)
    assert started.wait(10)
    quiet(kit)
    assert kit.states().count("running") == 1
    go.set()
    kit.until(lambda: kit.states() == ["completed"] * 4)
    running.stop()
    assert [a.outcome for a in kit.attempts(ids[0])] == ["crash", "crash"]

    kit.sql("UPDATE jobs SET state = 'running', leased_until = now() - interval '1 s'")
    kit.drain()
    assert kit.states() == ["discarded"] * 4
    assert kit.job(ids[0]).reason == "poison: 3 crashes"


@pytest.mark.parametrize("code", ["40001", "40P01"])
@pytest.mark.read_committed("conflicts are not counted elsewhere")
def test_conflicts_are_retried_within_a_second(kit: Kit, code: str) -> None:
    """A serialization failure in a handler is a counted Retry after at most 1 s."""

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "tried")
        if ctx.attempt == 1:
            raising = f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$"
            await ok(ctx.session.execute(text(raising)))

    kit.handle(run)
    (job,) = kit.add(Task(backoff=constant(HOUR)))
    kit.run()

    row = kit.until_state(job, "completed")
    assert (row.attempt, kit.notes()) == (2, ["tried"])
    (failed,) = kit.attempts(job)
    assert (failed.outcome, failed.number) == ("retry", 1)


def test_unwritable_outcome_is_kept_until_accepted(kit: Kit) -> None:
    """While the database refuses, outcomes wait; then they are written."""
    started, go, back = threading.Event(), threading.Event(), threading.Event()
    refused: list[str] = []

    async def run(job: Any, ctx: Any) -> int:
        started.set()
        await wait_for(go)
        return 7

    def refuse(*args: Any) -> None:
        if not back.is_set() and "finished_at=" in args[2]:
            refused.append(args[2])
            raise OperationalError(args[2], {}, OSError("away"))

    kit.handle(run)
    (job,) = kit.add()
    running = kit.run()
    assert started.wait(10)
    event.listen(running.control_engine, "before_cursor_execute", refuse)
    go.set()
    kit.until(lambda: len(refused) >= 2)
    assert kit.job(job).state == "running"
    back.set()

    assert kit.until_state(job, "completed").result == 7


def test_commit_without_an_answer_is_looked_up_first(kit: Kit) -> None:
    """When COMMIT gets no answer, the row is read before anything else happens."""
    lost: list[str] = []
    kit.on_engine = answerless_commit(lost, happens=True)

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "once")

    failed: list[BaseException] = []
    kit.handle(run)
    (job,) = kit.add()
    running = kit.run(on_error=lambda job, ctx, exc: failed.append(exc))

    row = kit.until_state(job, "completed", "retryable")
    kit.until(lambda: lost)
    running.stop()
    assert failed == []
    assert (row.state, row.attempt, kit.notes()) == ("completed", 1, ["once"])
    assert kit.attempts(job) == []


def test_priority_ranks_inside_a_queue_and_queues_share_in_turn(kit: Kit) -> None:
    """Higher first inside a queue; no queue starves another."""
    order: list[tuple[str, int]] = []

    async def run(job: Any, ctx: Any) -> None:
        order.append((job.queue, job.priority))

    kit.handle(run)
    kit.add(
        *[Task(queue="busy", priority=p) for p in (1, 9, 5, 7)],
        *[Task(queue="calm", priority=0) for _ in range(2)],
    )

    with kit.Session() as session:
        claimed = claim(session, Job, limit=2)
        session.rollback()
    for _ in range(6):
        kit.run_one()

    assert [p for q, p in order if q == "busy"] == [9, 7, 5, 1]
    assert len({c.queue for c in claimed}) == 2


def test_final_job_frees_its_unique_key(kit: Kit) -> None:
    """A finished job leaves its key free; requeue into a taken key is refused."""

    async def run(job: Any, ctx: Any) -> None:
        return

    kit.handle(run)
    (first,) = kit.add()
    kit.sql("UPDATE jobs SET unique_key = 'k'")
    kit.drain()
    (second,) = kit.add()
    kit.sql("UPDATE jobs SET unique_key = 'k' WHERE id = :i", i=second)

    with kit.Session() as session, pytest.raises(DuplicateJob, match="unique key"):
        requeue(session, Job, first)
    with kit.Session() as session:
        assert requeue(session, Job, [first]).duplicates == (first,)


def test_lazy_relationship_uses_the_session(threads: Kit) -> None:
    """A lazy load opens the session's transaction, so the outcome commits with it."""
    kit, seen = threads, []
    kit.add_owner("Ada")

    async def run(job: Any, ctx: Any) -> None:
        seen.append(ctx._attempt.used)
        seen.append(job.owner.name)
        seen.append(ctx._attempt.used)

    kit.handle(run, Linked)
    kit.add(Linked(owner_id=1))

    kit.drain()

    assert seen == [False, "Ada", True]
    assert kit.states() == ["completed"]


def test_loaded_relationship_of_an_async_handler_needs_no_session(aio: Kit) -> None:
    """What the class's `load=` names is there before the handler runs."""
    kit, seen = aio, []
    kit.add_owner("Ada")

    async def run(job: Any, ctx: Any) -> None:
        seen.append(job.owner.name)
        seen.append(ctx._attempt.used)

    kit.handle(run, Loaded)
    kit.add(Loaded(owner_id=1))

    kit.drain()

    assert seen == ["Ada", False]
    assert kit.states() == ["completed"]


@pytest.mark.read_committed("an older snapshot is a conflict elsewhere")
def test_orm_edit_of_a_running_job_by_somebody_else_is_stale(kit: Kit) -> None:
    """Somebody else's ORM edit may raise StaleDataError; update(Job) works."""
    (job,) = kit.add()
    with kit.Session() as session:
        row = session.get(Job, job)
        with kit.Session.begin() as other:
            claim(other, Job)
        assert row is not None
        row.tags = ["edited"]

        with pytest.raises(StaleDataError):
            session.commit()
    with kit.Session.begin() as session:
        session.execute(update(Job).values(tags=["edited"]))

    assert kit.job(job).tags == ["edited"]
    with kit.Session() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1
