"""The options of a runner, and the ways to run it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import sessionmaker

from sqla_jobs import Discard, JobValueError, Retry
from sqla_jobs.handlers import Handler
from tests.runner.harness import (
    Kit,
    Other,
    Task,
    effects,
    ok,
    quiet,
    wait_for,
)

HOUR = timedelta(hours=1)


class Meter:
    """A handler that counts how many run at once."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._lock = threading.Lock()

    async def __call__(self, job: Any, ctx: Any) -> None:
        """Wait to be let go."""
        with self._lock:
            self.now[job.queue] += 1
            self.now["all"] += 1
            self.most |= self.now
        try:
            await wait_for(self.go)
        finally:
            with self._lock:
                self.now -= Counter([job.queue, "all"])


async def nothing(job: Any, ctx: Any) -> None:
    """Do nothing."""


def test_no_more_jobs_are_claimed_than_there_are_slots(kit: Kit) -> None:
    """Claimed means running: what finds no free slot stays available to others."""
    meter = Meter()
    kit.handle(meter.__call__)
    kit.add(*[Task() for _ in range(9)])

    kit.run(concurrency=3)
    kit.until(lambda: meter.now["all"] == 3)

    assert Counter(kit.states()) == {"running": 3, "available": 6}
    meter.go.set()
    kit.until(lambda: set(kit.states()) == {"completed"})
    assert meter.most["all"] == 3


def test_slots_per_queue_hold_and_other_queues_are_left_alone(kit: Kit) -> None:
    """A mapping gives each queue its slots; queues that are not named are not taken."""
    meter = Meter()
    kit.handle(meter.__call__)
    kit.add(*[Task(queue=queue) for queue in "aabbbbcc"])

    kit.run(queues={"a": 1, "b": 3})
    kit.until(lambda: meter.now["all"] == 4)

    running = kit.sql("SELECT string_agg(queue, '' ORDER BY queue) FROM jobs"
                      " WHERE state = 'running'")  # fmt: skip
    assert running == "abbb"
    meter.go.set()
    kit.until(lambda: Counter(kit.states()) == {"completed": 6, "available": 2})
    assert (meter.most["a"], meter.most["b"]) == (1, 3)


def test_named_queues_share_the_concurrency(kit: Kit) -> None:
    """A list of queues shares the slots, in turn."""
    meter = Meter()
    kit.handle(meter.__call__)
    kit.add(*[Task(queue=queue) for queue in "aaaabc"])

    kit.run(queues=["a", "b"], concurrency=2)
    kit.until(lambda: meter.now["all"] == 2)

    assert (meter.now["a"], meter.now["b"]) == (1, 1)
    meter.go.set()
    kit.until(lambda: Counter(kit.states()) == {"completed": 5, "available": 1})


def test_refill_waits_until_fewer_than_the_least_run(kit: Kit) -> None:
    """With (2, 4), four run at first; more are claimed when fewer than two do."""
    gates = [threading.Event() for _ in range(8)]
    running: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        running.append(job.n)
        await wait_for(gates[job.n])

    kit.handle(run)
    kit.add(*[Task(n=n) for n in range(8)])
    kit.run(concurrency=(2, 4))
    kit.until(lambda: len(running) == 4)

    first, second, third, _ = running[:4]
    gates[first].set()
    gates[second].set()
    kit.until(lambda: kit.states().count("completed") == 2)
    quiet(kit)
    assert kit.states().count("running") == 2
    gates[third].set()

    kit.until(lambda: kit.states().count("running") == 4)
    for gate in gates:
        gate.set()


def test_kinds_narrow_what_is_claimed(kit: Kit) -> None:
    """Only the kinds named are taken, by class or by kind."""
    kit.handle(nothing)
    kit.handle(nothing, Other)
    kit.add(Task(), Other())

    kit.drain(kinds=[Other])
    assert kit.states() == ["available", "completed"]

    kit.drain(kinds=["task"])
    assert kit.states() == ["completed", "completed"]


def test_unknown_kinds_stay_untouched_and_are_reported(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs of a kind this process does not map wait for one that does."""
    kit.handle(nothing)
    unknown, _ = kit.add(Task(), Task())
    kit.sql("UPDATE jobs SET kind = 'newer' WHERE id = :i", i=unknown)

    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.drain()

    assert kit.states() == ["available", "completed"]
    assert kit.job(unknown).attempt == 0
    assert [m for m in caplog.messages if "'newer'" in m and "untouched" in m]


def test_mapped_kinds_without_a_handler_are_reported(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """At its start a runner says which kinds it will not take."""
    kit.handle(nothing)
    (job,) = kit.add(Other())

    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.drain()

    assert kit.job(job).state == "available"
    (said,) = [m for m in caplog.messages if "no handler here" in m]
    assert "other" in said
    assert "task" not in said


def test_middleware_wraps_the_handler_first_outermost(kit: Kit) -> None:
    """Layers see the job, the context, the result and the errors, in order."""
    seen: list[Any] = []

    def layer(name: str) -> Any:
        def around(job: Any, ctx: Any, call_next: Any) -> Any:
            seen.append((name, job.n, ctx.attempt))
            result = call_next()
            seen.append((name, result))
            return (result or 0) + 1

        async def async_around(job: Any, ctx: Any, call_next: Any) -> Any:
            seen.append((name, job.n, ctx.attempt))
            result = await call_next()
            seen.append((name, result))
            return (result or 0) + 1

        return around if kit.shell == "threads" else async_around

    async def run(job: Any, ctx: Any) -> int:
        seen.append("handler")
        return 5

    kit.handle(run)
    (job,) = kit.add(Task(n=3))

    kit.drain(middleware=[layer("outer"), layer("inner")])

    assert seen == [
        ("outer", 3, 1),
        ("inner", 3, 1),
        "handler",
        ("inner", 5),
        ("outer", 6),
    ]
    assert kit.job(job).result == 7


def test_failing_middleware_fails_the_attempt(kit: Kit) -> None:
    """What a layer raises counts as the handler's."""

    def around(job: Any, ctx: Any, call_next: Any) -> Any:
        raise ValueError("refused by a layer")

    async def async_around(job: Any, ctx: Any, call_next: Any) -> Any:
        raise ValueError("refused by a layer")

    kit.handle(nothing)
    (job,) = kit.add(Task(max_attempts=1))

    layers = [around if kit.shell == "threads" else async_around]
    kit.drain(middleware=layers)

    assert kit.job(job).last_error == "ValueError: refused by a layer"


def test_middleware_that_nothing_would_call_is_refused(kit: Kit) -> None:
    """A layer or on_error of the other kind would be skipped, or never awaited."""

    def sync_layer(job: Any, ctx: Any, call_next: Any) -> Any:
        return call_next()

    async def async_layer(job: Any, ctx: Any, call_next: Any) -> Any:
        return await call_next()

    async def told(job: Any, ctx: Any, exc: BaseException) -> None: ...

    kit.handle(nothing)
    wrong = async_layer if kit.shell == "threads" else sync_layer

    with pytest.raises(JobValueError, match=r"_layer at .* would never run"):
        kit.drain(middleware=[wrong])
    with pytest.raises(JobValueError, match="3 is not callable"):
        kit.drain(middleware=[3])
    with pytest.raises(JobValueError, match="is async; give a plain function"):
        kit.drain(on_error=told)


def test_discarded_jobs_are_logged_as_errors(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """A dead letter is news, also when its effects committed with it."""

    async def run(job: Any, ctx: Any) -> Discard:
        if job.n:
            effects(ctx.session, job, "kept")
        return Discard("never")

    kit.handle(run)
    plain, kept = kit.add(Task(n=0), Task(n=1))

    kit.drain()

    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert set(errors) == {f"job {plain} discarded", f"job {kept} discarded"}


def test_on_error_is_told_of_failures_only(kit: Kit) -> None:
    """on_error gets job, context and exception; stated outcomes are no errors."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        if job.n == 1:
            raise ValueError("no")
        if job.n == 2:
            raise Retry(after=HOUR)

    def told(job: Any, ctx: Any, exc: BaseException) -> None:
        seen.append((job.n, ctx.attempt, str(exc)))
        raise RuntimeError("on_error fails itself")

    kit.handle(run)
    kit.add(*[Task(n=n, max_attempts=1) for n in range(3)])

    kit.drain(on_error=told)

    assert seen == [(1, 1, "no")]
    assert Counter(kit.states()) == {"completed": 1, "discarded": 2}


def test_pool_smaller_than_the_concurrency_is_explained_and_no_deadlock(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """Handlers wait for one another's connection; all end, and the log says why."""
    kit.engine_options = {"pool_size": 1, "max_overflow": 0}

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "one")
        await ok(ctx.checkpoint(half=True))
        effects(ctx.session, job, "two")

    kit.handle(run)
    kit.add(*[Task() for _ in range(40)])

    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.drain(concurrency=20)

    assert Counter(kit.states()) == {"completed": 40}
    assert Counter(kit.notes()) == {"one": 40, "two": 40}
    (said,) = [m for m in caplog.messages if "pool" in m]
    assert "1 connections for 20 jobs at once" in said
    assert "pool_size=20" in said


@pytest.mark.read_committed("of two inserts one may give way, and come again later")
def test_sync_handlers_run_beside_async_ones(aio: Kit) -> None:
    """An AsyncRunner that is given `sync_session=` runs sync handlers in threads."""
    kit, where = aio, {}

    def sync_run(job: Any, ctx: Any) -> None:
        where["sync"] = threading.current_thread()
        effects(ctx.session, job, "sync")

    async def run(job: Any, ctx: Any) -> None:
        where["async"] = threading.current_thread()
        effects(ctx.session, job, "async")

    kit.handle(run)
    kit.handle(run, Other)
    Other.__job_handler__ = Handler(sync_run, is_async=False)
    kit.add(Task(), Other())

    kit.drain(sync_session=sessionmaker(kit.engine))

    assert kit.states() == ["completed", "completed"]
    assert sorted(kit.notes()) == ["async", "sync"]
    assert where["sync"] is not where["async"]


def test_runner_needs_no_connection_of_the_applications_pool(kit: Kit) -> None:
    """While a handler holds the only one, others are claimed, run and settled."""
    kit.engine_options = {"pool_size": 1, "max_overflow": 0}
    holds, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        if job.n == 1:
            effects(ctx.session, job, "holds")
            await ok(ctx.session.flush())
            holds.set()
            await wait_for(go)

    kit.handle(run)
    kit.add(Task(n=1))
    kit.run()
    assert holds.wait(10)
    (other,) = kit.add(Task())

    kit.until_state(other, "completed")
    go.set()
