"""
What the program of every system shares: its commands, its clock and its counter.

It runs in the system's own environment, so it needs nothing but Python.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

TEXT = "x" * 176
"""With its number, and as JSON, a payload of about 200 bytes."""
MARK = "bench: "
WARM_UP = 10
SOAK_TICK = 0.02  # seconds between two transactions of a soak
CELL = 8  # bytes


@dataclass(frozen=True)
class Options:
    """
    What a program is told.

    Args:
        dsn: libpq URI of the database.
        kind: Of the jobs: ``noop``, ``effect`` or ``tell``.
        how: Which way of several the system does it.
        count: How many jobs; 0 where that does not matter.
        counter: File of the `Counter`.
        gap: Seconds between two jobs whose pick-up is measured, +-25 %.
        size: Jobs per transaction of a soak.
    """

    dsn: str
    kind: str = "noop"
    how: str = ""
    count: int = 0
    counter: str = ""
    gap: float = 0.02
    size: int = 1


@dataclass(frozen=True)
class Facts:
    """
    What the harness must know of a system.

    Args:
        packages: Whose versions are reported.
        config: How it is set up, in words.
        pending: SQL that tells whether a due job is not completed; must be cheap.
        stored: SQL that counts all jobs.
        completed: SQL that counts completed jobs; empty where they are deleted.
        scheduled: SQL that adds 1,000,000 jobs of the far future.
        finished: SQL that adds 1,000,000 completed jobs, or what is left of them.
    """

    packages: tuple[str, ...] = ()
    config: str = ""
    pending: str = ""
    stored: str = ""
    completed: str = ""
    scheduled: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()


class Counter:
    """
    Handler runs and their times, in a file that other processes read meanwhile.

    Args:
        path: Of the file.
        told: Create it, with room for so many times of `tell`; None opens it.
    """

    HEAD = 2

    def __init__(self, path: str | Path, told: int | None = None) -> None:
        if told is not None:
            Path(path).write_bytes(bytes(CELL * (self.HEAD + told)))
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._memory.read()  # so that it does not look like a process that grows
        self._counts = memoryview(self._memory).cast("q")
        self._times = memoryview(self._memory).cast("d")
        self._lock = threading.Lock()

    def hit(self, number: int = 1) -> None:
        """Count runs; of one thread only."""
        if self._counts[0] == 0:
            self._times[1] = time.monotonic()
        self._counts[0] += number

    def hit_in_thread(self) -> None:
        """Count a run; of any thread."""
        with self._lock:
            self.hit()

    def tell(self, number: int) -> None:
        """Note the time of the job with this number."""
        self._times[self.HEAD + number] = time.monotonic()
        self.hit_in_thread()

    @property
    def runs(self) -> int:
        """How many runs were counted."""
        return self._counts[0]

    @property
    def first(self) -> float:
        """The time of the first one, 0.0 before it."""
        return self._times[1]

    def told(self, first: int = 0, last: int | None = None) -> list[float]:
        """Return the times of `tell` from number *first* on; 0.0 where none is."""
        end = None if last is None else self.HEAD + last
        return list(self._times[self.HEAD + first : end])


def say(value: object) -> None:
    """Tell the harness, which reads lines that begin with a mark."""
    print(MARK + json.dumps(value), flush=True)


class Stopwatch:
    """Says that all is ready, waits for the word, and takes the time and the CPU's."""

    seconds = 0.0
    cpu = 0.0

    def __enter__(self) -> Self:
        wait_for_go()
        self.cpu, self.seconds = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self.seconds
        self.cpu = time.process_time() - self.cpu


def wait_for_go() -> None:
    """Say "ready" and wait until the harness answers; from then on, end with it."""
    say("ready")
    if not sys.stdin.readline():
        raise SystemExit("the harness is gone")
    threading.Thread(target=_end_with_harness, daemon=True).start()


def _end_with_harness() -> None:
    sys.stdin.read()
    os._exit(1)


class System:
    """One system; each method is a command, and may be a coroutine."""

    facts: ClassVar[Facts]

    def __init__(self, options: Options) -> None:
        self.options = options
        self.watch = Stopwatch()
        self.counter: Counter = None  # type: ignore[assignment]

    def setup(self) -> Any:
        """Make the tables."""

    def fill(self) -> Any:
        """Enqueue the jobs of a drain."""
        raise NotImplementedError

    def enqueue(self) -> Any:
        """Enqueue as told, inside of ``with self.watch``."""
        raise NotImplementedError

    def work(self) -> Any:
        """Run jobs until killed."""
        raise NotImplementedError

    def tell(self) -> Any:
        """Return what `pace` returns."""
        raise NotImplementedError

    @property
    def numbers(self) -> range:
        """The numbers of the jobs."""
        return range(self.options.count)

    async def one_by_one(self, send: Callable[[int], Awaitable[object]]) -> None:
        """Measure *send* of one job at a time."""
        for number in range(WARM_UP):
            await send(number)
        with self.watch:
            for number in self.numbers:
                await send(number)

    async def pace(
        self, send: Callable[[int], Awaitable[object] | None]
    ) -> list[tuple[float, float]]:
        """Call *send* at intervals; return when each call began and ended."""
        wait_for_go()
        times = []
        for number in self.numbers:
            await asyncio.sleep(self.options.gap * random.uniform(0.75, 1.25))
            start = time.monotonic()
            sent = send(number)
            if sent is not None:
                await sent
            times.append((start, time.monotonic()))
        return times


class Client(System):
    """A system with a client that is connected, and sends one job or many."""

    def opened(self) -> AbstractAsyncContextManager[Any]:
        """Return the client; entered, it is connected."""
        raise NotImplementedError

    async def bulk(self, client: Any) -> None:
        """Enqueue all jobs, by what the system has for many."""
        raise NotImplementedError

    def sender(self, client: Any) -> Callable[[int], Awaitable[object]]:
        """Return what enqueues the job with a number."""
        raise NotImplementedError

    async def fill(self) -> None:
        """Enqueue the jobs of a drain."""
        async with self.opened() as client:
            await self.bulk(client)

    async def enqueue(self) -> None:
        """Enqueue as told."""
        async with self.opened() as client:
            if self.options.how == "bulk":
                with self.watch:
                    await self.bulk(client)
            else:
                await self.one_by_one(self.sender(client))

    async def tell(self) -> list[tuple[float, float]]:
        """Enqueue jobs at intervals."""
        async with self.opened() as client:
            return await self.pace(self.sender(client))


def parts(numbers: range, size: int) -> list[range]:
    """Cut *numbers* into ranges of *size*."""
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


def run_on_loop(coroutine: Coroutine[Any, Any, Any], *, fast: bool = True) -> Any:
    """Run *coroutine*, on uvloop where it is installed and *fast* is not denied."""
    try:
        import uvloop
    except ImportError:
        fast = False
    return uvloop.run(coroutine) if fast else asyncio.run(coroutine)


def version_of(package: str) -> str:
    """Return the version of *package*; a checkout need not be installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main(system_class: type[System]) -> None:
    """Do what the command line says."""
    command, told = sys.argv[1:]
    if command == "facts":
        facts = system_class.facts
        versions = {name: version_of(name) for name in facts.packages}
        say({**asdict(facts), "versions": versions})
        return
    system = system_class(Options(**json.loads(told)))
    if command in ("work", "soak"):
        system.counter = Counter(system.options.counter)
        wait_for_go()
    answer = getattr(system, command)()
    if inspect.iscoroutine(answer):
        answer = run_on_loop(answer, fast=system.options.how != "asyncio")
    if command == "enqueue":
        answer = {"seconds": system.watch.seconds, "cpu": system.watch.cpu}
    say(answer)
