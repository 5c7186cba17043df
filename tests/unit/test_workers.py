"""Threads for jobs: as many at once as are asked for, and no more than have work."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from sqla_jobs.runner.workers import Workers

MOST = 40


class Counted:
    """Notes which threads work, and when all units are done."""

    def __init__(self, count: int) -> None:
        self.names: set[str] = set()
        self.done = threading.Semaphore(0)
        self.count = count

    def __call__(self, unit: Any) -> None:
        """Do nothing."""
        self.names.add(threading.current_thread().name)
        self.done.release()

    def wait(self) -> None:
        """Wait until all is done."""
        for _ in range(self.count):
            assert self.done.acquire(timeout=20)


def units(count: int) -> list[list[Any]]:
    """Return units of nothing."""
    return [[] for _ in range(count)]


def workers_named(prefix: str) -> list[threading.Thread]:
    """Return the threads that live."""
    return [one for one in threading.enumerate() if one.name.startswith(prefix)]


@pytest.mark.parametrize("at_once", [True, False])
def test_units_that_wait_run_at_the_same_time(at_once: bool) -> None:
    """Each gets a thread, whether they come together or one by one; twice."""
    barrier = threading.Barrier(MOST + 1)
    workers = Workers(f"waits-{at_once}", lambda unit: meet(barrier), MOST)
    for _ in range(2):
        for part in [units(MOST)] if at_once else [units(1)] * MOST:
            workers.give(part)
        meet(barrier)
    workers.stop()


def meet(barrier: threading.Barrier) -> None:
    """Wait for all the others."""
    barrier.wait(timeout=20)


def test_one_thread_is_woken_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wakes the next: all at once would fight for the interpreter's lock."""
    barrier, counted = threading.Barrier(4), Counted(6)
    works: list[Any] = [lambda _: meet(barrier)]
    workers = Workers("woken", lambda unit: works[0](unit), 3)  # noqa: PLW0108 - it changes
    workers.give(units(3))
    meet(barrier)
    while workers._idle < 3:
        time.sleep(0.001)
    works[0] = counted
    woken: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(workers._changed, "notify", lambda: woken.append(workers._idle))
        workers.give(units(2))
        workers.give(units(4))
    assert woken == [3]
    with workers._changed:
        workers._changed.notify()

    counted.wait()
    workers.stop()


def test_stop_runs_what_was_given_and_ends_the_threads() -> None:
    """Nothing that was handed over is forgotten."""
    counted = Counted(100)
    workers = Workers("stops", counted, 3)
    workers.give(units(100))
    workers.stop()
    counted.wait()

    for thread in workers_named("stops"):
        thread.join(20)
        assert not thread.is_alive()


def test_threads_that_cannot_be_made_are_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those there are run everything; without any, the caller hears of it."""
    starts = threading.Thread.start
    made: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if len(made) == 2:
            raise RuntimeError("can't start new thread")
        made.append(thread)
        starts(thread)

    counted = Counted(20)
    workers = Workers("few", counted, MOST)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        workers.give(units(20))
        counted.wait()
        with pytest.raises(RuntimeError, match="can't start"):
            Workers("none", counted, MOST).give(units(1))
    workers.stop()

    assert len(counted.names) <= 2
