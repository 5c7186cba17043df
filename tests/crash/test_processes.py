"""Real processes that are paused, killed and stopped in the middle of their jobs."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs.testing import DatabaseServer
from tests.crash.app import Base, Effect, Hangs, Job, Slices

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
]
ROOT = Path(__file__).parents[2]
LEASE = 3.0
PATIENCE = 40.0


class Worker:
    """A runner in a process of its own, and what it says."""

    def __init__(self, dsn: str, shell: str, **options: Any) -> None:
        given = {"lease": LEASE, "poll": 0.2, "grace": 30.0} | options
        command = [sys.executable, "-m", "tests.crash.app", dsn, shell]
        self.process = subprocess.Popen(
            [*command, json.dumps(given)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.heard: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard.put(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def hear(self, word: str) -> int:
        """Wait until the process says *word*; return the job's id."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                said = self.heard.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {word!r}: {''.join(self.errors)}") from None
            if said[0] == word:
                return int(said[1])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End the process, however."""
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class Scene:
    """A database with the application's tables, and its workers."""

    def __init__(self, dsn: str, shell: str, engine: Engine) -> None:
        self.dsn, self.shell, self.engine = dsn, shell, engine
        self.workers: list[Worker] = []

    def start(self, **options: Any) -> Worker:
        """Start a worker."""
        self.workers.append(Worker(self.dsn, self.shell, **options))
        return self.workers[-1]

    def add(self, *jobs: Any) -> list[int]:
        """Enqueue jobs."""
        with Session(self.engine, expire_on_commit=False) as session:
            session.add_all(jobs)
            session.commit()
            return [job.id for job in jobs]

    def job(self, job_id: int) -> Any:
        """Return a job's row."""
        with Session(self.engine) as session:
            return session.get(Job, job_id)

    def effects(self) -> list[tuple[int, str, int]]:
        """Return job, note and process of all effects."""
        with Session(self.engine) as session:
            stmt = select(Effect.job_id, Effect.note, Effect.pid).order_by(Effect.id)
            return [(job, note, pid) for job, note, pid in session.execute(stmt)]

    def until(self, statement: str, seconds: float = PATIENCE) -> float:
        """Wait until SQL says true; return the seconds it took."""
        start = time.monotonic()
        while True:
            with self.engine.connect() as connection:
                if connection.scalar(text(statement)):
                    return time.monotonic() - start
            assert time.monotonic() < start + seconds, statement
            time.sleep(0.02)


@pytest.fixture(params=["threads", "aio"])
def scene(
    request: pytest.FixtureRequest, sqla_jobs_server: DatabaseServer
) -> Iterator[Scene]:
    """Yield an application on a database of its own, for each runner."""
    with sqla_jobs_server.temporary_database("crash") as dsn:
        engine = create_engine(dsn)
        Base.metadata.create_all(engine)
        scene = Scene(dsn, request.param, engine)
        try:
            yield scene
        finally:
            for worker in scene.workers:
                worker.close()
            engine.dispose()


DONE = "SELECT NOT EXISTS (SELECT 1 FROM jobs WHERE state <> 'completed')"


def test_paused_holder_comes_back_to_a_finished_job(scene: Scene) -> None:
    """
    A process stopped past its lease loses its job to another, which goes on from the
    checkpoint; woken up, it can add nothing.
    """
    (job,) = scene.add(Slices(count=3, seconds=1.0))
    first = scene.start()
    assert first.hear("checkpoint") == job
    first.signal(signal.SIGSTOP)
    second = scene.start()
    scene.until(DONE)
    finished = scene.effects()

    first.signal(signal.SIGCONT)
    first.signal(signal.SIGTERM)
    assert first.exit_code() == 0
    second.signal(signal.SIGTERM)
    assert second.exit_code() == 0

    assert scene.effects() == finished
    assert [note for _, note, _ in finished] == ["slice 0", "slice 1", "slice 2"]
    assert [pid for *_, pid in finished] == [
        first.process.pid,
        second.process.pid,
        second.process.pid,
    ]
    row = scene.job(job)
    assert (row.state, row.attempt, row.crashes) == ("completed", 2, 1)


def test_killed_runner_loses_nothing(scene: Scene) -> None:
    """All that a killed process held is finished by another, soon, effects once."""
    ids = scene.add(*[Slices(count=3, seconds=0.5) for _ in range(40)])
    first = scene.start(concurrency=20)
    for _ in range(20):
        first.hear("checkpoint")
    first.signal(signal.SIGKILL)
    first.exit_code()
    dead = holder(scene)
    scene.start(concurrency=20)

    assert scene.until(FREE.format(dead)) < LEASE + 0.2 + 5
    scene.until(DONE)

    counted = Counter((job, note) for job, note, _ in scene.effects())
    assert counted == Counter((job, f"slice {n}") for job in ids for n in range(3))
    crashed = [scene.job(job).crashes for job in ids]
    assert sum(crashed) > 0
    assert max(crashed) == 1


FREE = "SELECT count(*) = 0 FROM jobs WHERE runner_id = '{}' AND state = 'running'"


def holder(scene: Scene) -> Any:
    """Return the id of the runner that holds jobs."""
    with scene.engine.connect() as connection:
        return connection.scalar(
            text("SELECT runner_id FROM jobs WHERE state = 'running' LIMIT 1")
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_jobs_end(scene: Scene, number: signal.Signals) -> None:
    """On the first signal running jobs go on to their next checkpoint or end."""
    (job,) = scene.add(Slices(count=3, seconds=0.5))
    worker = scene.start()
    worker.hear("checkpoint")

    worker.signal(number)

    assert worker.exit_code() == 0
    worker.hear("end")
    row = scene.job(job)
    assert (row.state, row.attempt, row.crashes) == ("available", 0, 0)
    assert row.checkpoint == {"next": 2}
    assert [note for _, note, _ in scene.effects()] == ["slice 0", "slice 1"]


def test_hung_jobs_are_handed_back_after_the_grace(scene: Scene) -> None:
    """What does not end in time is handed back at once, uncounted, effects undone."""
    (job,) = scene.add(Hangs())
    worker = scene.start(grace=0.5)
    worker.hear("hangs")

    worker.signal(signal.SIGTERM)

    assert worker.exit_code() == 0
    row = scene.job(job)
    assert (row.state, row.attempt, row.crashes) == ("available", 0, 0)
    assert scene.effects() == []


def test_second_signal_does_not_wait_for_the_grace(scene: Scene) -> None:
    """SIGTERM twice ends the process now, and still hands its jobs back."""
    (job,) = scene.add(Hangs())
    worker = scene.start(grace=600.0)
    worker.hear("hangs")

    worker.signal(signal.SIGTERM)
    drained = "SELECT count(*) = 1 FROM jobs WHERE state = 'running'"
    scene.until(drained)
    worker.signal(signal.SIGINT)

    assert worker.exit_code() == 0
    row = scene.job(job)
    assert (row.state, row.attempt) == ("available", 0)
