"""
The same errands on several job systems, under the same faults: a table.

``nox -s peers`` runs it; each system has an environment of its own there.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import select, text

from tests.chaos.app import ACCOUNTS, Posting
from tests.chaos.nemesis import Nemesis, Sigkill, Sigstop, TerminateBackends
from tests.chaos.peers.checker import Attempt, Counts, Final, Traces, count
from tests.chaos.peers.errand import Errand
from tests.chaos.peers.systems import SYSTEMS
from tests.chaos.peers.worker import SYSTEM
from tests.chaos.referee import schedule
from tests.chaos.scene import LEASE, POLL, Direct, Held, Scene, Worker

NEMESES = {one.name: one for one in (Sigkill, Sigstop, TerminateBackends)}
LONG = 1.5 * LEASE  # seconds of the errands that outlast a lease
DRAIN = 30.0  # seconds until what is not done counts as stuck


class PeerWorker(Worker):
    """A worker whose runner is whatever the system has."""

    module = "tests.chaos.peers.worker"

    def await_ready(self, seconds: float = 30.0) -> bool:
        """Wait until the process has begun to work."""
        return self._ready.wait(seconds)


class PeerScene(Scene):
    """A scene for one system, and a sender."""

    worker_class = PeerWorker

    def __init__(self, system: str, seed: str, workers: int) -> None:
        environment = {SYSTEM: system}
        routes = [Direct() for _ in range(workers)]
        super().__init__(routes, seed=seed, environment=environment)
        self.system, self.numbers = SYSTEMS[system](), dict[int, int]()
        self._sending = threading.Event()
        self._installed = threading.Event()
        self._sender = threading.Thread(
            target=lambda: asyncio.run(self._send()), daemon=True
        )
        self.rate = 0.0

    def prepare(self) -> None:
        """Install the system's tables."""
        self._sender.start()
        if not self._installed.wait(30):
            raise RuntimeError("the system's tables could not be installed")

    def held_by(self, worker: Worker) -> list[Held]:
        """Return nothing: each system has tables of its own."""
        return []

    async def _send(self) -> None:
        await self.system.open(self.server.dsn)
        self._installed.set()
        dice = random.Random(f"{self.seed} load")
        number, due = 0, time.monotonic()
        while not self._sending.is_set():
            if not self.rate:
                await asyncio.sleep(0.05)
                due = time.monotonic()
                continue
            # By a timetable, so that a slow sender sends as much as a fast one.
            due += 1 / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            number += 1
            source, target = dice.sample(range(ACCOUNTS), 2)
            seconds = LONG if dice.random() < 0.15 else dice.uniform(0.0, 0.6)
            errand = Errand(number, source, target, dice.randint(1, 100), seconds)
            self.numbers[await self.system.send(errand)] = number
        await self.system.close()

    def stop_sending(self) -> None:
        """End the load."""
        self._sending.set()
        self._sender.join(30)

    def left(self) -> set[int]:
        """Return the jobs without an outcome."""
        with self.engine.connect() as connection:
            return set(connection.scalars(text(self.system.left)))

    def traces(self) -> Traces:
        """Return what is left of the run."""
        with self.engine.connect() as connection:
            rows = connection.execute(text(self.system.finals))
            finals = [Final(job, good, float(at)) for job, good, at in rows]
            postings = connection.execute(select(Posting.job_id, Posting.step))
            return Traces(
                numbers=self.numbers,
                finals=sorted(finals, key=lambda one: one.at),
                left=self.left(),
                postings=[(number, step) for number, step in postings],
                attempts=self._attempts(),
            )

    def _attempts(self) -> dict[int, list[Attempt]]:
        starts: dict[tuple[int, str], float] = {}
        ends: dict[tuple[int, str], float] = {}
        for event in list(self.events):
            if event.word == "start":
                job, key, at = event.values
                starts[job, key] = at
            elif event.word == "end":
                job, key, _, at = event.values
                ends[job, key] = at
        found: dict[int, list[Attempt]] = {}
        for (job, key), at in starts.items():
            one = Attempt(at, ends.get((job, key), float("inf")))
            found.setdefault(job, []).append(one)
        return found


def play(args: argparse.Namespace, system: str, nemesis: Nemesis) -> dict[str, Any]:
    """Run one system under one fault; return the row of the table."""
    scene = PeerScene(system, f"{args.seed} {nemesis.name}", args.workers)
    try:
        scene.open()
        for worker in scene.workers:
            if not worker.await_ready():
                raise RuntimeError(f"{worker.runner_name} did not start")
        scene.rate = args.rate
        strikes = _strike(scene, nemesis, args.seconds)
        scene.stop_sending()
        until = time.monotonic() + DRAIN
        while scene.left() and time.monotonic() < until:
            time.sleep(0.5)
        counts = count(scene.traces())
        starts = sum(worker.starts for worker in scene.workers)
        return {
            **vars_of(counts),
            "strikes": strikes,
            "restarts": starts - len(scene.workers),
        }
    finally:
        nemesis.heal()
        scene.stop_sending()
        scene.close()


def vars_of(counts: Counts) -> dict[str, int]:
    """Return the counts by name."""
    return {name: getattr(counts, name) for name in Counts.__dataclass_fields__}


def _strike(scene: PeerScene, nemesis: Nemesis, seconds: float) -> int:
    until, strikes = time.monotonic() + seconds, 0
    for strike in schedule([nemesis.name], scene.seed):
        if time.monotonic() + strike.pause >= until:
            return strikes
        time.sleep(strike.pause)
        scene.striking = nemesis.name
        nemesis.strike(scene, random.Random(strike.seed))
        nemesis.heal()
        strikes += 1
    return strikes


COLUMNS = ("strikes", "jobs", "lost", "stuck", "double", "wrong", "restarts")


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="nox -s peers --", description=__doc__)
    add = parser.add_argument
    add("--system", nargs="*", default=["sqla_jobs"], choices=list(SYSTEMS))
    add("--nemesis", nargs="*", default=list(NEMESES), choices=list(NEMESES))
    add("--seconds", type=float, default=30.0, help="of strikes, for each fault")
    add("--seed", default="7", help="of the schedule and the load")
    add("--workers", type=int, default=3)
    add("--rate", type=float, default=12.0, help="errands per second")
    add("--report", type=Path, help="file that gets the rows too, as Markdown")
    return parser.parse_args(given)


def main(given: Sequence[str]) -> int:
    """Print the table."""
    args, console = arguments(given), Console(width=110)
    table = Table("system", "nemesis", *COLUMNS, title="Under the same faults")
    for system in args.system:
        for name in args.nemesis:
            row = play(args, system, NEMESES[name]())
            cells = [system, name, *(str(row[one]) for one in COLUMNS)]
            table.add_row(*cells)
            console.print(*cells)
            if args.report is not None:
                with args.report.open("a") as report:
                    report.write(f"| {' | '.join(cells)} |\n")
    console.print(table)
    held = f"{LEASE:g} s, poll {POLL:g} s; stuck: not done {DRAIN:g} s after the end"
    console.print(f"lease or heartbeat timeout {held}; seed {args.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
