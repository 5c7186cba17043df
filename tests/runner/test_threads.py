"""`threads=`: claimed jobs that wait for a thread of their own runner."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import sessionmaker

from sqla_jobs.handlers import Handler
from sqla_jobs.models import job_tables
from sqla_jobs.runner.attempt import Attempt, Interruption
from sqla_jobs.runner.control import Control
from sqla_jobs.runner.watch import Watchdog
from tests.runner.harness import PATIENCE, Kit, Task
from tests.runner.test_kept import is_claim

SECOND = timedelta(seconds=1)


class Waiting:
    """A sync handler that waits to be let go, once it is known to run."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ran: list[int] = []
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, job: Any, ctx: Any) -> None:
        """Run one job, or the list of a batch."""
        with self._lock:
            self.ran += [one.n for one in (job if isinstance(job, list) else [job])]
            self.now += 1
            self.most = max(self.most, self.now)
        self.begun.release()
        assert self.go.wait(PATIENCE)
        with self._lock:
            self.now -= 1


def handle(kit: Kit, run: Callable[..., Any], *, many: bool = False) -> None:
    """Make the sync function *run* the handler, whichever runner there is."""
    kit.handle(run)
    Task.__job_handler__ = Handler(run, is_async=False, many=many)


def options(kit: Kit, **given: Any) -> dict[str, Any]:
    """Return *given*, and what an AsyncRunner needs for sync handlers."""
    own = {} if kit.shell == "threads" else {"sync_session": sessionmaker(kit.engine)}
    return {**own, **given}


def test_claimed_jobs_wait_for_a_thread(kit: Kit) -> None:
    """All slots are claimed, so many as there are threads run, and all are run."""
    waiting = Waiting()
    handle(kit, waiting)
    kit.add(*[Task(n=n) for n in range(9)])

    kit.run(**options(kit, concurrency=6, threads=2))
    assert waiting.begun.acquire(timeout=PATIENCE)
    assert waiting.begun.acquire(timeout=PATIENCE)

    assert Counter(kit.states()) == {"running": 6, "available": 3}
    waiting.go.set()
    kit.until(lambda: set(kit.states()) == {"completed"})
    assert waiting.most == 2
    assert sorted(waiting.ran) == list(range(9))


def test_lease_of_what_waits_is_renewed(kit: Kit) -> None:
    """Nobody else takes a job that has waited for its thread longer than its lease."""
    waiting = Waiting()
    handle(kit, waiting)
    _, second = kit.add(Task(n=1), Task(n=2))

    kit.run(**options(kit, concurrency=2, threads=1, lease=3 * SECOND))
    assert waiting.begun.acquire(timeout=PATIENCE)
    first_lease = kit.sql(f"SELECT leased_until FROM jobs WHERE id = {second}")
    kit.until(
        lambda: (
            kit.sql(f"SELECT leased_until FROM jobs WHERE id = {second}") > first_lease
        )
    )

    waiting.go.set()
    kit.until(lambda: kit.states() == ["completed", "completed"])
    assert kit.sql(f"SELECT attempt FROM jobs WHERE id = {second}") == 1


def test_timeout_counts_from_the_beginning(kit: Kit) -> None:
    """The time that a job waits for its thread is not its own."""

    def run(job: Any, ctx: Any) -> None:
        time.sleep(1.5 if job.n == 1 else 0.0)

    handle(kit, run)
    kit.add(Task(n=1), Task(n=2, timeout=SECOND))

    kit.drain(**options(kit, concurrency=2, threads=1))

    assert kit.states() == ["completed", "completed"]
    assert kit.sql("SELECT max(attempt) FROM jobs") == 1


def test_watchdog_looks_when_a_job_that_waits_could_time_out(threads: Kit) -> None:
    """Nobody tells it that the job has begun, so it looks as if that were now."""
    job = threads.job(*threads.add(Task(timeout=0.2 * SECOND)))
    attempt = Attempt(job, job_tables(Task), lease=30 * SECOND, claimed_at=100.0)
    interrupted: list[Any] = []
    dog = Watchdog(
        "dog",
        attempts=lambda: [attempt],
        interrupt=lambda _, why: interrupted.append(why),
        look_after=lambda _: None,
    )

    assert dog.look(105.0) == pytest.approx(0.2)
    attempt.begin(105.1)
    assert dog.look(105.2) == pytest.approx(0.1)
    assert interrupted == []
    dog.look(105.4)
    assert interrupted == [Interruption.TIMEOUT]


def test_stop_hands_back_what_waits(kit: Kit) -> None:
    """It goes to other runners at once, uncounted; what runs may end."""
    waiting = Waiting()
    handle(kit, waiting)
    kit.add(*[Task(n=n) for n in range(4)])
    runner = kit.run(**options(kit, concurrency=4, threads=1))
    assert waiting.begun.acquire(timeout=PATIENCE)
    kit.until(lambda: kit.states() == ["running"] * 4)

    runner.stop(wait=False)
    kit.until(lambda: kit.states() == ["running", *["available"] * 3])
    waiting.go.set()
    runner.join()

    assert kit.states() == ["completed", *["available"] * 3]
    assert len(waiting.ran) == 1
    assert kit.sql("SELECT sum(attempt) FROM jobs") == 1


def test_stop_hands_back_what_is_being_claimed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of a claim may come after the stop: its jobs do not begin."""
    once = Control.once

    def stopping(control: Control, work: Any, *, single: bool) -> Any:
        found = once(control, work, single=single)
        if is_claim(found):
            running.runner._begin_stop()
        return found

    waiting = Waiting()
    waiting.go.set()
    handle(kit, waiting)
    monkeypatch.setattr(Control, "once", stopping)
    running = kit.run(**options(kit, concurrency=2))

    kit.add(Task(), Task())
    running.join()

    assert kit.states() == ["available", "available"]
    assert waiting.ran == []


def test_stop_hands_back_batches_that_wait(kit: Kit) -> None:
    """A batch that has not begun does not begin."""
    waiting = Waiting()
    handle(kit, waiting, many=True)
    kit.add(Task(n=1), Task(n=2))
    runner = kit.run(**options(kit, concurrency=4, threads=1))
    assert waiting.begun.acquire(timeout=PATIENCE)
    kit.add(Task(n=3), Task(n=4))
    kit.until(lambda: kit.states() == ["running"] * 4)

    runner.stop(wait=False)
    kit.until(lambda: kit.states() == [*["running"] * 2, *["available"] * 2])
    waiting.go.set()
    runner.join()

    assert kit.states() == [*["completed"] * 2, *["available"] * 2]
    assert sorted(waiting.ran) == [1, 2]


def test_pool_need_only_be_as_large_as_the_threads(
    threads: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """No warning: what waits for a thread needs no connection."""
    kit = threads
    kit.engine_options = {"pool_size": 2, "max_overflow": 0}
    handle(kit, lambda job, ctx: None)
    kit.add(Task())

    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.drain(concurrency=20, threads=2)
        kit.drain(concurrency=2, threads=20)  # more threads than slots have no use

    assert not [m for m in caplog.messages if "pool" in m]
