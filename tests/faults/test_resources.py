"""What handlers do to a process, and errors that nobody expects."""

from __future__ import annotations

import gc
import logging
import os
import threading
import traceback
import warnings
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from sqla_jobs.runner.threads import Runner
from tests.runner.harness import Job, Kit, Task, effects, ok, wait_for

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


class Hostile(Exception):
    """Nothing that one may ask of it has an answer."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


class Deaf(Exception):
    """Has no attributes but raises for all."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """Return *error* with a cause."""
    error.__cause__ = cause
    return error


def noted(error: BaseException, *notes: Any) -> BaseException:
    """Return *error* with notes, which need not be texts."""
    error.__notes__ = list(notes)
    return error


def circle() -> BaseException:
    """Return an error that caused itself."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def deep(depth: int) -> list[Any]:
    """Return a list that holds a list that holds ..."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def recurse(n: int) -> int:
    """Go deeper until Python refuses."""
    return recurse(n + 1) + 1


ODD = "a\0b \ud800 \U0001f600"
ERRORS: dict[str, Any] = {
    "odd message": lambda: ValueError(ODD),
    "odd notes": lambda: noted(ValueError("x"), ODD, 1, Hostile()),
    "odd cause": lambda: caused(ValueError("x"), LookupError(ODD)),
    "odd class": lambda: type("Öd\U0001f600" * 100, (Exception,), {})("x"),
    "long class": lambda: type("X" * 10**5, (Exception,), {})("x"),
    "no text": Hostile,
    "cause without text": lambda: caused(ValueError("x"), Hostile()),
    "no attributes": Deaf,
    "circle": circle,
    "group": lambda: ExceptionGroup(ODD, [ValueError("x" * 10**5), Hostile()]),
    "long": lambda: ValueError("x" * 10**6),
    "arguments": lambda: ValueError(deep(10**4)),
    "generator exit": GeneratorExit,
    "stop iteration": StopIteration,
    "stop async iteration": StopAsyncIteration,
    "memory": MemoryError,
    "assertion": AssertionError,
}
RESULTS: dict[str, Any] = {
    "object": object(),
    "set": {1},
    "bytes": b"x",
    "NaN": float("nan"),
    "NUL": "a\0b",
    "surrogate": ["\ud800"],
    "deep": deep(10**5),
    "keys": {1: 2},
}


def test_errors_of_any_kind_are_failures_and_bounded(kit: Kit) -> None:
    """Each is recorded and logged, in few bytes, and the runner goes on."""
    made = list(ERRORS.values())

    async def run(job: Any, ctx: Any) -> Any:
        if job.n == len(made):
            return recurse(0)
        error = made[job.n]()
        raise error

    kit.handle(run)
    ids = kit.add(*[Task(n=n, max_attempts=1) for n in range(len(made) + 1)])
    heard = Heard()

    with heard:
        kit.drain()

    assert kit.states() == ["discarded"] * len(ids)
    rows = [(kit.job(job), kit.attempts(job)[0]) for job in ids]
    assert all(row.last_error for row, _ in rows)
    assert max(len(row.last_error.encode()) for row, _ in rows) <= 16_000
    assert max(len(one.traceback.encode()) for _, one in rows) <= 64_000
    texts = dict(zip(ERRORS, (row.last_error for row, _ in rows), strict=False))
    assert texts["no text"] == "Hostile: <its message failed with SystemExit>"
    assert texts["no attributes"].startswith("RuntimeError: Deaf, which itself raised")
    assert "RecursionError" in rows[-1][0].last_error
    assert len(heard.sizes) >= len(ids)
    assert max(heard.sizes) < 70_000


class Heard(logging.Handler):
    """Notes how long each record is as text, however odd that is."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._log = logging.getLogger("sqla_jobs")

    def __enter__(self) -> None:
        self._log.addHandler(self)
        self._log.propagate = False  # xdist cannot send surrogates

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        """Note the size."""
        self.sizes.append(len(logging.Formatter().format(record)))


def test_results_of_any_kind_are_failures_or_stored(kit: Kit) -> None:
    """What JSON cannot say fails the attempt with the reason; nothing else breaks."""
    made = list(RESULTS.values())

    async def run(job: Any, ctx: Any) -> Any:
        effects(ctx.session, job, "undone")
        return made[job.n]

    kit.handle(run)
    ids = kit.add(*[Task(n=n, max_attempts=1) for n in range(len(made))])

    kit.drain()

    assert kit.states() == ["discarded"] * len(ids)
    assert all("result" in kit.job(job).last_error for job in ids)
    assert kit.notes() == []


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_on_error_that_raises_anything_costs_no_slot(
    kit: Kit, error: type[BaseException]
) -> None:
    """Even what would end a thread or a task: the job is settled, others run."""

    def told(job: Any, ctx: Any, exc: BaseException) -> None:
        raise error

    async def run(job: Any, ctx: Any) -> None:
        if not job.n:
            raise ValueError

    kit.handle(run)
    kit.add(Task(max_attempts=1), Task(n=1))

    kit.drain(concurrency=1, on_error=told)

    assert kit.states() == ["discarded", "completed"]


def test_two_runners_of_one_name_share_the_work(kit: Kit) -> None:
    """Host names and process ids come again; only the random id tells runners apart."""
    seen, go = list[int](), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        seen.append(job.n)
        await wait_for(go)

    kit.handle(run)
    kit.add(Task(n=1), Task(n=2))
    first = kit.run(name="pod-0", concurrency=1)
    kit.run(name="pod-0", concurrency=1)
    kit.until(lambda: len(seen) == 2)
    assert kit.sql("SELECT count(DISTINCT runner_id) FROM jobs") == 2
    count = "SELECT count(*) FROM jobs_runners WHERE name = 'pod-0'"
    kit.until(lambda: kit.sql(count) == 2)
    go.set()

    first.stop()

    assert kit.sql(count) == 1
    (job,) = kit.add()
    kit.until_state(job, "completed")


@posix
def test_forked_child_leaves_the_runner_alone(kit: Kit) -> None:
    """It gets an id, a name and connections of its own; the parent's go on."""
    if kit.shell == "aio":
        pytest.skip("an event loop is not forked; AsyncRunner shares the code")

    async def run(job: Any, ctx: Any) -> list[int]:
        server = await ok(ctx.session.scalar(text("SELECT pg_backend_pid()")))
        return [os.getpid(), server]

    kit.handle(run)
    jobs = kit.add(Task(), Task(), Task())
    engine = create_engine(kit.dsn)
    runner = Runner(sessionmaker(engine), Job, listen=False)
    assert runner.run_one() == "completed"
    runner._running = True  # as if it ran in the parent

    child = fork(lambda: runner.run_one() == "completed")

    runner._running = False
    assert runner.run_one() == "completed"
    rows = [kit.job(job) for job in jobs]
    assert [row.result[0] for row in rows] == [os.getpid(), child, os.getpid()]
    first, other, last = [row.result[1] for row in rows]
    assert first == last != other
    assert rows[0].runner_id == rows[2].runner_id != rows[1].runner_id
    engine.dispose()


@posix
def test_handler_may_fork(kit: Kit) -> None:
    """A child that does not touch the session costs the job nothing."""

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "one")
        await ok(ctx.session.flush())
        fork(lambda: gc.collect() >= 0)
        await ok(ctx.checkpoint())
        effects(ctx.session, job, "two")

    kit.handle(run)
    kit.add()

    kit.drain()

    assert (kit.states(), kit.notes()) == (["completed"], ["one", "two"])


def fork(work: Any) -> int:
    """Return the id of a child process in which *work* returned True."""
    with warnings.catch_warnings():
        # Since Python 3.12: other threads may hold locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0
        return child
    status = 1
    try:
        status = 0 if work() else 2
    except BaseException:  # noqa: BLE001 - a fork must not go on as the tests
        traceback.print_exc()
    finally:
        os._exit(status)


def test_lease_of_a_class_bounds_the_connections(kit: Kit) -> None:
    """The shortest lease counts, also one that is configured later."""
    runner = kit.make(lease=timedelta(minutes=1))
    before = runner.limits.statement

    runner.configure(lease=timedelta(seconds=7))

    assert (before, runner.limits.statement) == (
        timedelta(minutes=2),
        timedelta(seconds=14),
    )
