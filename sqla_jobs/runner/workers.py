"""What attempts run in: threads that wait for work, and tasks that can be cancelled."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from sqla_jobs._core.conceal import conceal
from sqla_jobs.runner.attempt import Attempt

log = logging.getLogger("sqla_jobs")
Work = Callable[[list[Attempt]], None]


class Workers:
    """
    Daemon threads that run what they are given; a stuck one cannot hold the exit.

    At most one thread is being woken at any time, and the first that it does is to wake
    the next, if there is work. Were all woken at once, they would fight for the
    interpreter's lock over jobs that one of them finishes meanwhile.
    """

    def __init__(self, name: str, work: Work, most: int) -> None:
        self._name, self._work, self._most = name, work, most
        self._inbox: deque[list[Attempt]] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._threads = self._idle = 0
        self._waking = self._stopping = False

    def give(self, units: Sequence[list[Attempt]]) -> None:
        """Run *units*, one thread each; threads are made as they are needed."""
        with self._changed:
            self._inbox.extend(units)
            self._wake()

    def stop(self) -> None:
        """Let idle threads end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _wake(self) -> None:
        if self._waking or not self._inbox:
            return
        if self._idle:
            self._waking = True
            self._changed.notify()
        elif self._threads < self._most:
            self._waking = True
            self._threads += 1
            name = f"{self._name}-{self._threads}"
            try:
                threading.Thread(target=self._loop, name=name, daemon=True).start()
            except RuntimeError:  # the system has no more: those there are go on
                self._threads -= 1
                self._waking = False
                if not self._threads:
                    raise

    def _loop(self) -> None:
        started = False
        while (unit := self._next(started=started)) is not None:
            started = True
            self._work(unit)

    def _next(self, *, started: bool) -> list[Attempt] | None:
        with self._changed:
            if not started:
                self._waking = False
            while not self._inbox:
                if self._stopping:
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
                self._waking = False
            unit = self._inbox.popleft()
            self._wake()
            return unit


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
