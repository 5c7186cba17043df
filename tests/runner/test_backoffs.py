"""Whose backoff a failed job waits out, and from when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from sqla_jobs import Backoff, constant, exponential, linear, set_queue
from sqla_jobs._store.claim import claim
from sqla_jobs._store.verbs import fail
from tests.runner.harness import Job, Kit, Plain, Task, statements

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OWN, OF_CLASS, OF_QUEUE = constant(HOUR), timedelta(0), constant(DAY)
OF_ROOT = timedelta(seconds=1)  # the library's default, jitter 0.1
NEAR = timedelta(seconds=0.3)  # jitter, and what the statements take


def limit(kit: Kit, **settings: Any) -> None:
    """Change the settings of the queue "default"."""
    with kit.Session.begin() as session:
        set_queue(session, Job, "default", must_exist=False, **settings)


async def fails(job: Any, ctx: Any) -> None:
    """Fail, with the backoff of whoever states one."""
    raise ValueError


def waited(kit: Kit, job_id: int) -> timedelta:
    """Return how long after the end of its last attempt a job is due."""
    waits: timedelta = kit.job(job_id).run_at - kit.attempts(job_id)[-1].finished_at
    return waits


PRECEDENCE = [
    pytest.param(Task, OWN, OF_QUEUE, HOUR, id="job before queue"),
    pytest.param(Plain, OWN, OF_QUEUE, HOUR, id="job of a silent class"),
    pytest.param(Task, None, OF_QUEUE, OF_CLASS, id="class before queue"),
    pytest.param(Plain, None, OF_QUEUE, DAY, id="queue before root"),
    pytest.param(Plain, None, None, OF_ROOT, id="root without a queue's"),
]


@pytest.mark.parametrize(("cls", "of_job", "of_queue", "wait"), PRECEDENCE)
def test_backoff_is_the_jobs_then_its_class_then_queue_then_root(
    kit: Kit, cls: Any, of_job: Any, of_queue: Any, wait: timedelta
) -> None:
    """Whoever is nearer to the job decides; the delay counts from the failure."""
    limit(kit, backoff=of_queue)
    kit.handle(fails, cls)
    (job,) = kit.add(cls(backoff=of_job) if of_job else cls())

    assert kit.run_one() == "retryable"

    assert abs(waited(kit, job) - wait) < NEAR


def test_change_of_a_queues_backoff_reaches_running_runners(kit: Kit) -> None:
    """It is looked up when a job fails, as the last poll has seen it."""
    limit(kit, backoff=constant(timedelta(0)))
    kit.handle(fails, Plain)
    (job,) = kit.add(Plain(max_attempts=1_000_000))
    kit.run()
    kit.until(lambda: kit.job(job).attempt > 2)

    limit(kit, backoff=OF_QUEUE)

    kit.until(lambda: kit.job(job).run_at - kit.job(job).started_at > HOUR)


@pytest.mark.parametrize(("cls", "of_job", "of_queue", "wait"), PRECEDENCE)
def test_low_level_fail_knows_the_queues_backoff(
    threads: Kit, cls: Any, of_job: Any, of_queue: Any, wait: timedelta
) -> None:
    """The claim brings it along."""
    limit(threads, backoff=of_queue)
    (job,) = threads.add(cls(backoff=of_job) if of_job else cls())

    with threads.Session.begin() as session:
        (claimed,) = claim(session, Job)
        fail(session, claimed, "no")

    assert abs(waited(threads, job) - wait) < NEAR


@pytest.mark.parametrize("has_row", [False, True])
def test_queues_without_a_backoff_cost_no_statement(
    threads: Kit, engine: Engine, has_row: bool
) -> None:
    """Claim and fail are one statement each, unless a queue has a backoff."""
    if has_row:
        limit(threads, backoff=OF_QUEUE)
    threads.add(Plain())

    with statements(engine) as seen, threads.Session.begin() as session:
        (claimed,) = claim(session, Job)
        fail(session, claimed, "no")

    assert len(seen) == (3 if has_row else 2), seen


@pytest.mark.parametrize(
    "backoff",
    [
        exponential(factor=1000, cap=DAY, jitter=1),
        linear(step=DAY, cap=DAY),
        exponential(base=timedelta(days=3660), cap=timedelta(days=3660), jitter=1),
    ],
    ids=["factor", "linear", "longest"],
)
def test_delay_of_attempt_ten_thousand_is_at_most_the_cap(
    kit: Kit, backoff: Backoff
) -> None:
    """No number of attempts overflows a delay, nor the database's calendar."""
    kit.handle(fails)
    (job,) = kit.add(Task(backoff=backoff, max_attempts=20_000))
    kit.sql("UPDATE jobs SET attempt = 9999")

    assert kit.run_one() == "retryable"

    assert timedelta(0) <= waited(kit, job) <= backoff.cap + NEAR
    assert kit.job(job).attempt == 10_000
