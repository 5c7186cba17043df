"""What attempts run in: threads that wait for work, and tasks that can be cancelled."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from queue import SimpleQueue
from typing import Any

from sqla_jobs._core.conceal import conceal
from sqla_jobs.runner.attempt import Attempt

log = logging.getLogger("sqla_jobs")
Work = Callable[[list[Attempt]], None]


class Workers:
    """Daemon threads that run what they are given; a stuck one cannot hold the exit."""

    def __init__(self, name: str, work: Work, most: int) -> None:
        self._name, self._work, self._most = name, work, most
        self._inbox: SimpleQueue[list[Attempt] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._lock = threading.Lock()

    def give(self, units: Sequence[list[Attempt]]) -> None:
        """Run *units*, one thread each; threads are made as they are needed."""
        with self._lock:
            self._unfinished += len(units)
            wanted = min(self._most, self._unfinished)
        for unit in units:
            self._inbox.put(unit)
        while len(self._threads) < wanted:
            number = len(self._threads) + 1
            thread = threading.Thread(
                target=self._loop, name=f"{self._name}-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Let idle threads end."""
        for _ in self._threads:
            self._inbox.put(None)

    def _loop(self) -> None:
        while (unit := self._inbox.get()) is not None:
            self._work(unit)
            with self._lock:
                self._unfinished -= 1


def _task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run *work* up to where it first waits, if Python can: most jobs are done then."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)


class Tasks:
    """The tasks of a loop, found by what they run."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[Attempt, asyncio.Task[Any]] = {}
        self._running: dict[asyncio.Task[Any], Sequence[Attempt]] = {}

    def start(
        self, work: Coroutine[Any, Any, Any], attempts: Sequence[Attempt] = ()
    ) -> asyncio.Task[Any]:
        """Run *work* in a task, which `cancel` finds by any of *attempts*."""
        task = _task(work)
        if task.done():
            self._check(task)
            return task
        self._running[task] = attempts
        for attempt in attempts:
            self._tasks[attempt] = task
        task.add_done_callback(self._done)
        return task

    def cancel(self, attempt: Attempt) -> None:
        """Cancel what runs *attempt*, once: it must not be disturbed cleaning up."""
        task = self._tasks.get(attempt)
        if task is not None and not attempt.ended:
            for other in self._running[task]:
                self._tasks.pop(other, None)
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        for attempt in self._running.pop(task):
            if self._tasks.get(attempt) is task:
                del self._tasks[attempt]
        self._check(task)

    def _check(self, task: asyncio.Task[Any]) -> None:
        exc = None if task.cancelled() else task.exception()
        if exc is not None:
            conceal(exc)
            log.error("%s: internal error", self._name, exc_info=exc)
