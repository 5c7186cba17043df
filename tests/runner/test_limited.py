"""Runners with ordered channels and limited queues: prompt, and nobody is stalled."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from sqla_jobs import Discard, Retry, claim, complete, requeue, set_queue
from tests.runner.harness import Job, Kit, Task, ok, wait_for

NEVER = timedelta(minutes=5)
"""A poll that no test waits for: what happens before it, something else made happen."""


def limit(kit: Kit, queue: str, **settings: Any) -> None:
    """Change the settings of a queue."""
    with kit.Session.begin() as session:
        set_queue(session, Job, queue, must_exist=False, **settings)


def until_done(kit: Kit, count: int) -> None:
    """Wait until *count* jobs are completed."""
    kit.until(lambda: kit.states().count("completed") == count)


def test_successor_runs_at_once(kit: Kit) -> None:
    """In an ordered channel the next job does not wait for a poll."""
    ran: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append(job.n)

    kit.handle(run)
    kit.add(*(Task(n=n, ordered=True, channel="a") for n in range(8)))

    kit.run(poll=NEVER)
    until_done(kit, 8)

    assert ran == list(range(8))


def test_successor_runs_at_once_after_effects(kit: Kit) -> None:
    """So it is when the handler's own transaction settles the job."""
    ran: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append(job.n)
        await ok(ctx.session.get(Job, job.id))

    kit.handle(run)
    kit.add(*(Task(n=n, ordered=True, channel="a") for n in range(5)))

    kit.run(poll=NEVER)
    until_done(kit, 5)

    assert ran == list(range(5))


def test_failures_keep_the_order(kit: Kit) -> None:
    """Retries come before their successors; a discarded one lets them go on."""
    ran: list[tuple[int, int]] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append((job.n, ctx.attempt))
        if job.n == 1 and ctx.attempt < 3:
            raise Retry(after=timedelta(milliseconds=5))
        if job.n == 2:
            raise Discard("no use")

    kit.handle(run)
    kit.add(*(Task(n=n, ordered=True, channel="a") for n in range(4)))

    kit.drain()

    assert ran == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]


def test_channels_run_beside_each_other(kit: Kit) -> None:
    """One slow job holds its own channel, and no other."""
    release, ran = threading.Event(), list[str]()

    async def run(job: Any, ctx: Any) -> None:
        if job.n:
            await wait_for(release, ctx)
        ran.append(job.channel)

    kit.handle(run)
    kit.add(Task(n=1, ordered=True, channel="a"), Task(ordered=True, channel="a"))
    kit.add(*(Task(ordered=True, channel="b") for _ in range(3)))
    kit.run(poll=NEVER, concurrency=4)
    kit.until(lambda: ran.count("b") == 3)

    assert "a" not in ran
    release.set()
    until_done(kit, 5)


@pytest.mark.wakes
def test_saturated_queue_stalls_no_other(kit: Kit) -> None:
    """With a queue at its limit others go on; a slot that frees is used at once."""
    release, ran = threading.Event(), list[str]()

    async def run(job: Any, ctx: Any) -> None:
        if job.queue == "slow":
            await wait_for(release, ctx)
        ran.append(job.queue)

    kit.handle(run)
    limit(kit, "slow", max_running=2)
    slow = kit.add(*(Task(queue="slow") for _ in range(6)))
    kit.run(poll=NEVER, concurrency=5)
    kit.until(lambda: kit.states().count("running") == 2)
    kit.add(*(Task() for _ in range(20)))
    kit.until(lambda: ran.count("default") == 20)

    assert kit.states()[:6].count("running") == 2
    assert all(kit.job(job).attempt == 0 for job in slow[2:])
    release.set()
    until_done(kit, 26)


def test_slot_freed_elsewhere_is_used_within_a_poll(kit: Kit) -> None:
    """When somebody else's job ends, a runner sees it at its next poll."""
    ran: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append(job.id)

    kit.handle(run)
    limit(kit, "slow", max_running=1)
    kit.add(Task(queue="slow"), Task(queue="slow"))
    with kit.Session.begin() as session:
        (held,) = claim(session, Job)
    kit.run(poll=timedelta(milliseconds=100))
    time.sleep(0.3)  # three polls, in which nothing may happen
    assert ran == []

    with kit.Session.begin() as session:
        complete(session, held)
    began = time.monotonic()
    until_done(kit, 2)

    assert time.monotonic() - began < 5


class Gauge:
    """How many handlers run at a time."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def add(self, count: int) -> None:
        """Note that a handler begins, or with -1 ends."""
        with self.lock:
            self.now += count
            self.most = max(self.most, self.now)


def test_two_runners_share_a_limit(kit: Kit) -> None:
    """With a limit of 3 no more than 3 handlers run at a time in both together."""
    gauge, go_on = Gauge(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        gauge.add(1)
        if gauge.most < 3:
            await wait_for(go_on, ctx)
        go_on.set()
        gauge.add(-1)

    kit.handle(run)
    limit(kit, "default", max_running=3)
    kit.add(*(Task() for _ in range(40)))
    kit.run(concurrency=5)
    kit.run(concurrency=5)
    until_done(kit, 40)

    assert gauge.most == 3


def test_drain_ends_where_tokens_do(kit: Kit) -> None:
    """run_until_idle runs what may begin now, and waits for no tokens."""

    async def run(job: Any, ctx: Any) -> None:
        pass

    kit.handle(run)
    limit(kit, "default", rate_limit=3, rate_period=timedelta(hours=1))
    kit.add(*(Task() for _ in range(8)))

    kit.drain()

    assert kit.states().count("completed") == 3
    assert kit.states().count("available") == 5


def test_drain_works_off_limited_and_ordered_jobs(kit: Kit) -> None:
    """run_until_idle goes on as long as its own jobs free slots and channels."""
    ran: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        ran.append(job.n)

    kit.handle(run)
    limit(kit, "default", max_running=2, max_running_per_channel=1)
    kit.add(*(Task(n=n, ordered=n % 2 == 0, channel=f"c{n % 3}") for n in range(30)))

    kit.drain()

    assert sorted(ran) == list(range(30))


@pytest.mark.wakes
def test_paused_queue_resumes_with_the_commit(kit: Kit) -> None:
    """Whoever ends the pause wakes the runners."""

    async def run(job: Any, ctx: Any) -> None:
        pass

    kit.handle(run)
    limit(kit, "default", paused=True)
    kit.add(Task())
    kit.run(poll=NEVER)
    time.sleep(0.2)  # nothing may happen
    assert kit.states() == ["available"]

    limit(kit, "default", paused=False)

    until_done(kit, 1)


def test_overlap_that_only_the_index_sees_is_no_error(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """Requeues in a race with runners neither overlap nor show up in the log."""
    gauge = Gauge()

    async def run(job: Any, ctx: Any) -> None:
        gauge.add(1)
        gauge.add(-1)

    kit.handle(run)
    caplog.set_level(logging.WARNING, "sqla_jobs")
    first, *_ = kit.add(*(Task(ordered=True, channel="a") for _ in range(25)))
    kit.run(concurrency=3)
    kit.run(concurrency=3)
    for _ in range(10):
        kit.until_state(first, "completed")
        with kit.Session.begin() as session:
            requeue(session, Job, first)
    until_done(kit, 25)

    assert gauge.most == 1
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
