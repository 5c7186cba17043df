"""The promises of the design that no other file of these tests is about."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from sqla_jobs import Retry
from sqla_jobs._store.claim import claim
from tests.runner.harness import LEASE, Job, Kit, Task, effects, ok

ODD = ["'; DROP TABLE jobs; --", "%s %(p_queue)s :queue", "{}", "ünï\n\tcode", "\\x00"]


async def nothing(job: Any, ctx: Any) -> None:
    """Do nothing."""


def test_committed_enqueue_runs_and_a_rolled_back_one_never_existed(kit: Kit) -> None:
    """The job shares the fate of the transaction that enqueued it, or savepoint."""
    ran: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append(job.n)

    kit.handle(run)
    with kit.Session() as session:
        session.add(Task(n=1))
        session.flush()
        nested = session.begin_nested()
        session.add(Task(n=2))
        session.flush()
        nested.rollback()
        session.commit()
        session.add(Task(n=3))
        session.flush()
        session.rollback()

    kit.drain()

    assert (ran, kit.states()) == ([1], ["completed"])


def test_job_enqueued_by_a_handler_shares_its_fate(kit: Kit) -> None:
    """What a failed attempt enqueued never existed; the next attempt's does."""
    ran: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append(job.n)
        if job.n == 0:
            ctx.session.add(Task(n=ctx.attempt))
            await ok(ctx.session.flush())
            if ctx.attempt == 1:
                raise Retry(after=timedelta(0))

    kit.handle(run)
    kit.add()

    kit.drain()

    assert ran == [0, 0, 2]


def test_effects_happen_once_however_often_the_handler_runs(kit: Kit) -> None:
    """A handler that crashes at every step writes each slice exactly once."""
    steps: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        for number in range(ctx.state.get("next", 0), 5):
            effects(ctx.session, job, f"slice {number}")
            steps.append(number)
            if len(steps) % 2:
                raise Retry(after=timedelta(0))
            await ok(ctx.checkpoint(next=number + 1))

    kit.handle(run)
    kit.add(Task(max_attempts=50))

    kit.drain()

    assert kit.notes() == [f"slice {number}" for number in range(5)]
    assert len(steps) > 5


def test_crashed_runners_job_is_claimable_within_lease_and_poll(kit: Kit) -> None:
    """Any other runner takes it back: no leader, no janitor job."""
    done = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        done.set()

    kit.handle(run)
    (job,) = kit.add()
    with kit.Session.begin() as session:
        claim(session, Job, lease=LEASE)
    taken = time.monotonic()
    kit.run(lease=timedelta(minutes=5))

    assert done.wait(10)
    waited = time.monotonic() - taken
    assert 2.5 < waited < LEASE.total_seconds() + 3
    row = kit.until_state(job, "completed")
    assert (row.attempt, row.crashes, row.lane) == (2, 1, 2)


@pytest.mark.parametrize("name", ODD, ids=range(5))
def test_names_and_payloads_are_never_sql(kit: Kit, name: str) -> None:
    """Whatever a queue, a channel, a tag or a payload says is only ever a value."""
    seen: list[Any] = []
    statements: list[str] = []

    async def run(job: Any, ctx: Any) -> dict[str, str]:
        seen.append((job.queue, job.channel, job.payload["x"], job.tags))
        await ok(ctx.checkpoint({name: name}))
        return {"result": name}

    kit.handle(run)
    job = Task(queue=name, channel=name, tags=[name])
    job.payload = {"n": 0, "x": name}
    (job_id,) = kit.add(job)
    kit.on_engine = lambda engine: event.listen(
        engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )

    kit.drain(queues=[name], name=name)

    row = kit.job(job_id)
    assert seen == [(name, name, name, [name])]
    assert (row.result, row.checkpoint) == ({"result": name}, {name: name})
    assert not [one for one in statements if "DROP" in one]


def test_error_texts_that_no_row_can_hold_are_recorded_nevertheless(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """NUL, lone surrogates and a failing __str__ never make a failure unrecordable."""
    caplog.set_level(logging.CRITICAL, "sqla_jobs")  # xdist cannot send surrogates

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    errors = [ValueError("a\0b"), ValueError("\ud800"), Mute(), ValueError("x" * 10**5)]

    async def run(job: Any, ctx: Any) -> None:
        raise errors[job.n]

    kit.handle(run)
    ids = kit.add(*[Task(n=n, max_attempts=1) for n in range(len(errors))])

    kit.drain()

    assert kit.states() == ["discarded"] * len(errors)
    texts = [kit.job(job_id).last_error for job_id in ids]
    assert all(texts)
    assert max(map(len, texts)) < 20_000


def test_rows_of_the_handler_are_visible_to_the_job_that_it_enqueues(kit: Kit) -> None:
    """A follow-up job never starts before what its parent wrote is there."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        if job.n:
            seen.append(kit.notes())
            return
        effects(ctx.session, job, "parent")
        ctx.session.add(Task(n=1))

    kit.handle(run)
    kit.add()
    kit.run()

    kit.until(lambda: seen)
    assert seen == [["parent"]]
