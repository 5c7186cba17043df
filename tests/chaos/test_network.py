"""The nemeses on the network bite, and runners behave as promised when they do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import func, make_url, select, text
from sqlalchemy.orm import Session

from sqla_jobs import request_cancel
from tests.chaos import namespaces
from tests.chaos.app import ACCOUNTS, OPENING, Account, Audit, Job, Nap, Note, Transfer
from tests.chaos.namespaces import IN, OUT
from tests.chaos.nemesis import Nemesis
from tests.chaos.network import (
    ClockSkew,
    CommitLost,
    Latency,
    NamespaceRoute,
    Partition,
    PgBouncerRestart,
    ProxyRoute,
)
from tests.chaos.referee import limits
from tests.chaos.scene import LEASE, ROOT, Event, Scene, Worker
from tests.chaos.watch import slowness

pytestmark = pytest.mark.slow
PATIENCE = 40.0
DOUBLE = "SELECT job_id, step FROM postings GROUP BY 1, 2 HAVING count(*) > 1"
WRONG_TIMES = """
SELECT key, value FROM (
    SELECT to_jsonb(jobs) AS line FROM jobs WHERE id = ANY(:ids)
    UNION ALL SELECT to_jsonb(jobs_attempts) FROM jobs_attempts WHERE job_id = ANY(:ids)
    UNION ALL SELECT to_jsonb(jobs_runners) FROM jobs_runners
) AS lines, jsonb_each_text(line)
WHERE value ~ '^\\d{4}-\\d\\d-\\d\\dT'
AND abs(extract(epoch FROM CAST(value AS timestamptz) - clock_timestamp())) > 120
"""
WAYS = {"partition_out": (OUT,), "partition_in": (IN,), "partition": (OUT, IN)}


class Play:
    """The bank, a worker for each nemesis, and nothing to do but what tests give."""

    def __init__(self) -> None:
        proxied = ProxyRoute()
        self.latency, self.commit_lost = Latency(proxied), CommitLost(proxied)
        self.clock, self.pooler = ClockSkew(), PgBouncerRestart()
        cut_off = [NamespaceRoute() for _ in WAYS]
        for route, driver in zip(
            cut_off, ("psycopg", "asyncpg", "psycopg2"), strict=True
        ):
            route.driver = driver
        self.partitions = [
            Partition(name, route, ways)
            for route, (name, ways) in zip(cut_off, WAYS.items(), strict=True)
        ]
        self.scene = Scene([])
        nemeses: list[Any] = [self.commit_lost, self.clock, self.pooler]
        for nemesis in [*self.partitions, *nemeses]:
            if nemesis.why_not(self.scene) is None:
                self.scene.routes += nemesis.routes

    def need(self, nemesis: Nemesis) -> None:
        """Skip the test where the nemesis cannot strike."""
        if (why := nemesis.why_not(self.scene)) is not None:
            pytest.skip(why)

    def worker(self, nemesis: Any) -> Worker:
        """Return the worker that goes the nemesis's way."""
        (route,) = nemesis.routes
        (found,) = [one for one in self.scene.workers if one.route is route]
        return found

    def strike(self, nemesis: Nemesis, seed: str) -> threading.Thread:
        """Let it strike beside the test."""
        dice = random.Random(seed)
        thread = threading.Thread(target=nemesis.strike, args=(self.scene, dice))
        thread.start()
        return thread

    def give(self, worker: Worker, *jobs: Any) -> list[int]:
        """Enqueue jobs, for this worker only; return their ids once they have begun."""
        others = [one for one in self.scene.workers if one is not worker]
        assert worker.await_ready()
        for one in others:
            assert one.await_ready()
            one.signal(signal.SIGSTOP)
        try:
            ids = self.add(*jobs)
            for job in ids:
                self.hear("start", job, worker)
        finally:
            for one in others:
                one.signal(signal.SIGCONT)
        return ids

    def held(self) -> dict[str, list[int]]:
        """Give a nap and an audit to the worker of each partition, at work together."""
        for _ in range(5):
            held = {
                nemesis.name: self.give(
                    self.worker(nemesis),
                    Nap(account=1, seconds=4.5),
                    Audit(account=1, slices=8),
                )
                for nemesis in self.partitions
            }
            ids = [job for jobs in held.values() for job in jobs]
            first = Job.id.in_(ids), Job.state == "running", Job.attempt == 1
            with Session(self.scene.engine) as session:
                begun = session.scalar(select(func.count(Job.id)).where(*first))
            if begun == len(ids):
                return held
            self.completed(ids)  # a machine that stood still: a lease has run out
        raise AssertionError("leases run out before all have begun")

    def add(self, *jobs: Any) -> list[int]:
        """Enqueue jobs for anybody."""
        with Session(self.scene.engine, expire_on_commit=False) as session:
            session.add_all(jobs)
            session.commit()
            return [job.id for job in jobs]

    def hear(self, word: str, job: int, worker: Worker, *, by: bool = True) -> Event:
        """Wait until this worker, or with ``by=False`` another one, says *word*."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for event in list(self.scene.events):
                who = event.worker == worker.runner_name
                if (event.word, event.values[:1], who) == (word, [job], by):
                    return event
            time.sleep(0.02)
        raise AssertionError(f"no {word} of job {job}: {self.scene.logs[-20:]}")

    def completed(self, ids: Sequence[int]) -> list[Any]:
        """Return the rows of jobs once all are completed, each step done once."""
        until = time.monotonic() + PATIENCE
        while True:
            with Session(self.scene.engine) as session:
                found = session.scalars(select(Job).where(Job.id.in_(ids))).all()
                if all(one.state == "completed" for one in found):
                    break
            assert time.monotonic() < until, [(one.id, one.state) for one in found]
            time.sleep(0.05)
        with self.scene.engine.connect() as connection:
            assert connection.execute(text(DOUBLE)).all() == []
            total = connection.scalar(select(func.sum(Account.balance)))
            assert total == ACCOUNTS * OPENING
        return list(found)


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    """Yield the bank, open."""
    play = Play()
    try:
        play.scene.open()
        yield play
        assert play.scene.unexpected == []
    finally:
        play.scene.close()


def test_partitioned_jobs_are_taken_over(play: Play) -> None:
    """
    A partitioned runner stops its jobs before others run them, and comes back by
    itself; what it still had on its way to the server is refused there.
    """
    play.need(play.partitions[0])
    held = play.held()
    at = time.monotonic()
    try:
        for nemesis in play.partitions:
            nemesis.routes[0].namespace.drop(*WAYS[nemesis.name])
        for nemesis in play.partitions:
            worker, (nap, audit) = play.worker(nemesis), held[nemesis.name]
            again = [play.hear("start", job, worker, by=False) for job in (nap, audit)]
            most = limits(slowness()).recovery
            assert max(event.at for event in again) - at <= most
            stopped = play.hear("end", nap, worker)
            assert stopped.values[-1] in ("AttemptInterrupted", "CancelledError")
            assert stopped.at < again[0].at
    finally:
        for nemesis in play.partitions:
            nemesis.heal()
    healed = time.monotonic()

    play.completed([job for jobs in held.values() for job in jobs])
    for nemesis in play.partitions:
        worker = play.worker(nemesis)
        assert play.hear("end", held[nemesis.name][1], worker).values[-1] != "returned"
        play.completed(play.give(worker, Note()))
    assert time.monotonic() - healed < PATIENCE / 2


def test_latency_costs_no_lease(play: Play) -> None:
    """A job on a slow way to the server takes longer than its lease, and keeps it."""
    worker = play.worker(play.latency)
    assert all(one.await_ready() for one in play.scene.workers)
    at = time.monotonic()
    # 50 ms each way: with 300, a renewal would take two of the lease's three seconds.
    strike = play.strike(play.latency, "8")
    ids = play.give(worker, Audit(account=2, slices=4))
    url = make_url(worker.route.dsn).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        asked = time.monotonic()
        connection.execute("SELECT 1")
        took = time.monotonic() - asked
    (job,) = play.completed(ids)
    seconds = time.monotonic() - at
    strike.join()

    assert took > 0.1
    assert seconds > LEASE
    assert (job.attempt, job.crashes) == (1, 0)


def test_lost_answers_to_commit_cost_nothing(play: Play) -> None:
    """Whether a COMMIT without an answer happened or not, its effects come once."""
    worker = play.worker(play.commit_lost)
    strike = play.strike(play.commit_lost, "4")
    jobs = [Transfer(source=3, target=n % 3, amount=5 + n) for n in range(40)]
    ids = play.give(worker, Audit(account=2, slices=9))
    ids += play.add(*jobs)
    strike.join()
    play.completed(ids)

    assert set(play.commit_lost.lost) == {True, False}


def test_wrong_clock_writes_no_time(play: Play) -> None:
    """
    A runner whose clock is ten minutes ahead, then late, keeps leases and delays as
    they are, and writes no time of its own.
    """
    play.need(play.clock)
    (route,) = play.clock.routes
    worker, engine = play.worker(play.clock), play.scene.engine
    route.set("+10m")
    program = [sys.executable, "-c", "import time; print(time.time())"]
    env = {**os.environ, **route.environment}
    error = float(subprocess.check_output(program, env=env)) - time.time()
    ids = play.give(
        worker,
        Nap(account=4, seconds=LEASE + 2),
        Transfer(source=5, target=6, amount=10**30),  # more than the column takes
        Note(delay=timedelta(seconds=1)),
    )
    route.set("-10m")
    ended = [play.hear("end", job, worker).values[-1] for job in ids]
    with Session(engine) as session:
        request_cancel(session, Job, ids=[ids[1]])
        session.commit()
    nap, note = play.completed([ids[0], ids[2]])
    with engine.connect() as connection:
        wrong = connection.execute(text(WRONG_TIMES), {"ids": ids}).all()
    play.clock.heal()

    assert 590 < error < 610
    assert ended == ["returned", ended[1], "returned"]
    assert ended[1] in ("DataError", "DBAPIError")
    assert wrong == []
    assert (nap.attempt, nap.crashes) == (1, 0)
    assert note.started_at >= note.run_at


def test_runner_outlives_its_pooler(play: Play) -> None:
    """Jobs behind a PgBouncer that restarts take effect once, and later ones run."""
    play.need(play.pooler)
    worker = play.worker(play.pooler)
    ids = play.give(worker, Audit(account=7, slices=8), Nap(account=7, seconds=2.0))
    strike = play.strike(play.pooler, "3")
    ids += play.add(*(Transfer(source=8, target=9, amount=n) for n in range(20)))
    strike.join()

    play.completed(ids)
    play.completed(play.give(worker, Note()))


def test_namespaces_of_dead_processes_are_removed() -> None:
    """What a killed referee has left is removed by the next one; its own is not."""
    if (why := namespaces.why_no_namespace()) is not None:
        pytest.skip(why)
    program = "from tests.chaos.namespaces import Namespace; print(Namespace().name)"
    told = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT)
    left = told.decode().strip()
    own = namespaces.Namespace()
    try:
        assert left in namespaces.remove_stale()
        assert not (namespaces.NAMES / left).exists()
        assert (namespaces.NAMES / own.name).exists()
    finally:
        own.close()
