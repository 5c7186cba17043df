"""The demonstration's story: enqueue, watch, kill, compare."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from check import (
    count_directly,
    differences,
    problems_of,
    read_index,
    read_totals,
)
from database import migrate
from jobs import BuildCrossReference, IndexModule, enqueue
from models import Job, Symbol
from processes import WorkerDied, Workers
from rich.table import Table
from screen import Screen, Snapshot
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobState

PROCESSES = 2
SLICES, PAUSE = 40, 0.05
LONGEST = 300.0  # seconds until the demonstration gives up


@dataclass
class Demo:
    """One run: its database, its processes, and what happened."""

    session_maker: sessionmaker[Session]
    workers: Workers
    screen: Screen
    files: list[tuple[str, str]]
    problems: list[str] = field(default_factory=list)

    def run(self, *, kill: bool, break_it: bool) -> int:
        """Have the jobs run, check what they did, and return the exit status."""
        with self.session_maker.begin() as session:
            revision = migrate(session.connection())
        self.screen.say(f"Tables: made by Alembic, revision {revision} in migrations/.")
        for _ in range(PROCESSES):
            self.workers.start()
        try:
            self.wait_until(lambda: self.runners() == PROCESSES)
            started = time.monotonic()
            self.enqueue()
            with self.screen:
                self.watch(kill=kill)
            seconds = time.monotonic() - started
        except WorkerDied as exc:
            self.screen.say(f"{exc}; the logs end:\n{self.workers.log_tail()}")
            return 1
        if break_it:
            self.duplicate_a_symbol()
        return self.report(seconds, kill=kill)

    def enqueue(self) -> None:
        """Insert modules and jobs: all of them are there, or none."""
        slice_size = max(1, len(self.files) // SLICES)
        with self.session_maker.begin() as session:
            cross = BuildCrossReference(slice_size=slice_size, pause=PAUSE)
            enqueue(session, self.files, cross)

    # While the jobs run

    def watch(self, *, kill: bool) -> None:
        """Show the jobs until all are done; kill two processes on the way."""
        kills = [self.kill_while_indexing, self.kill_while_referencing] if kill else []

        def done() -> bool:
            jobs = self.snapshot()
            self.screen.show(jobs)
            if kills and kills[0](jobs):
                del kills[0]
            return jobs.done == jobs.total

        self.wait_until(done)
        if kills:
            self.problems.append(
                "done before two processes were killed: use more files"
            )

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Call *true* until it is."""
        give_up = time.monotonic() + LONGEST
        while not true():
            self.workers.check()
            if time.monotonic() > give_up:
                raise WorkerDied(f"not done after {LONGEST:g} s: {self.snapshot()}")
            time.sleep(0.05)

    def runners(self) -> int:
        """Return how many runners there are."""
        with self.session_maker() as session:
            return session.scalar(select(func.count()).select_from(Job.Runner)) or 0

    def snapshot(self) -> Snapshot:
        """Count the jobs by state."""
        query = select(Job.state, func.count(), func.sum(Job.crashes))
        with self.session_maker() as session:
            rows = session.execute(query.group_by(Job.state)).tuples().all()
        states = {state: count for state, count, _ in rows}
        return Snapshot(states, sum(crashes for *_, crashes in rows))

    def kill_while_indexing(self, jobs: Snapshot) -> bool:
        """Kill a process once a third of the jobs is done; tell whether it was."""
        if jobs.done < jobs.total // 3:
            return False
        return self.kill(IndexModule.id.is_not(None), "in the middle of {} files")

    def kill_while_referencing(self, jobs: Snapshot) -> bool:
        """Kill the process that is in the middle of the cross-reference, likewise."""
        if jobs.done < jobs.total - 1:
            return False
        # What it has committed until then must neither be lost nor be done again.
        cursor = BuildCrossReference.checkpoint["cursor"].as_integer()
        half = cursor >= len(self.files) // 2
        return self.kill(half, "in the middle of the cross-reference")

    def kill(self, which: ColumnElement[bool], doing: str) -> bool:
        """Kill the process with most such jobs running; start another one."""
        pid = self.busiest(which)
        if pid is None:
            return False
        with self.workers.frozen(pid):
            time.sleep(0.05)  # what it has already sent may still end a job
            held = self.held_by(pid)
            if not held:
                return False
            self.workers.kill(pid)
        new = self.workers.start()
        what = doing.format(held)
        self.screen.say(f"Killed process {pid} {what}; started {new} in its place.")
        return True

    def busiest(self, which: ColumnElement[bool]) -> int | None:
        """Return the process that runs most of some jobs, if any does."""
        query = (
            select(Job.Runner.pid)
            .join(Job, Job.runner_id == Job.Runner.id)
            .where(Job.state == JobState.RUNNING, which)
            .group_by(Job.Runner.pid)
            .order_by(func.count().desc())
        )
        with self.session_maker() as session:
            return session.scalars(query).first()

    def held_by(self, pid: int) -> int:
        """Count the jobs that a process runs and is not about to settle."""
        query = (
            select(Job.id)
            .join(Job.Runner, Job.runner_id == Job.Runner.id)
            .where(Job.state == JobState.RUNNING, Job.Runner.pid == pid)
            .with_for_update(of=Job, skip_locked=True)
        )
        with self.session_maker() as session:
            return len(session.scalars(query).all())

    def duplicate_a_symbol(self) -> None:
        """Do what a queue without promises might do; the check must notice."""
        with self.session_maker.begin() as session:
            one = session.scalars(select(Symbol).order_by(Symbol.id).limit(1)).one()
            values = {"kind": one.kind, "name": one.name, "line": one.line}
            session.add(Symbol(module_id=one.module_id, **values))

    # Afterwards

    def report(self, seconds: float, *, kill: bool) -> int:
        """Print what happened beside a direct count; return the exit status."""
        self.screen.say("Counting directly ...")
        started = time.monotonic()
        wanted = count_directly(self.files)
        counting = time.monotonic() - started
        with self.session_maker() as session:
            found = read_index(session)
            totals = read_totals(session)
            self.problems += problems_of(session, totals, found, kill=kill)
        self.problems += differences(wanted, found)
        table = Table("", "by the jobs", "directly")
        for name, number in vars(totals).items():
            table.add_row(name, f"{number:,}")
        table.add_row("seconds", f"{seconds:.1f}", f"{counting:.1f}")
        for name, rows in vars(found).items():
            direct = vars(wanted)[name].total()
            table.add_row(name, f"{rows.total():,}", f"{direct:,}")
        self.screen.console.print(table)
        for problem in self.problems:
            self.screen.say(f"WRONG: {problem}")
        if not self.problems:
            self.screen.say("Equal: everything is there, exactly once.")
        return 1 if self.problems else 0
