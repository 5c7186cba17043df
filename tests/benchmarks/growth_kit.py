"""A database that grows, and claims whose cost is read from the server's counters."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sqla_jobs import Arg, AsyncContext, JobMixin, arg
from sqla_jobs._core.limits import Features
from sqla_jobs._core.memory import Memory
from sqla_jobs._core.settle import Settlement
from sqla_jobs._store.claim import claim_jobs
from sqla_jobs._store.queues import set_queue
from sqla_jobs._store.settle import settle
from sqla_jobs.models import job_tables
from sqla_jobs.testing.postgres import DatabaseServer, PostgresServer, Setting

PAYLOAD = "x" * 180
LEASE = timedelta(seconds=30)
SETTINGS: dict[str, Setting] = {
    "fsync": True,
    "synchronous_commit": True,
    "full_page_writes": True,
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "max_connections": 60,
    "shared_preload_libraries": "pg_stat_statements",
}
"""Of the server that is started when no other is given."""

COUNTERS = """
SELECT coalesce(sum(shared_blks_hit + shared_blks_read), 0)::bigint AS buffers,
       coalesce(sum(total_exec_time), 0)::float AS server_ms
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND query NOT LIKE '%pg_stat_statements%'
"""
FILL = """
INSERT INTO growth_jobs (kind, queue, channel, ordered, state, payload, run_at, {more})
SELECT 'grow', :queue, {channel}, :ordered, :state,
       jsonb_build_object('text', CAST(:payload AS text)), {run_at}, {values}
FROM generate_series(1, :count) AS n
"""


class Base(DeclarativeBase):
    """The measurements' own metadata."""


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "growth_jobs"


class Grow(Job, kind="grow"):
    """Does nothing."""

    text: Arg[str] = arg(default=PAYLOAD)

    async def run(self, ctx: AsyncContext) -> None:
        """Do nothing."""


TABLES = job_tables(Job)


@dataclass(frozen=True, slots=True)
class Cost:
    """
    What a claim took: medians over rounds.

    Args:
        buffers: Pages of shared memory that its statements touched, per claim.
        ms: From its first statement to the COMMIT, as the client sees it.
        server_ms: The execution of its statements alone.
        rows: Jobs that it got.
    """

    buffers: float
    ms: float
    server_ms: float
    rows: float

    def asdict(self) -> dict[str, float]:
        """Return it as JSON has it."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


class Claimer:
    """Claims and settles as a runner does, with a memory of its own."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self._memory, self._id = Memory(), uuid4()
        self._held: list[tuple[Settlement, tuple[str, str]]] = []

    def claim(
        self, limit: int, queues: Mapping[str, int] | None, features: Features
    ) -> tuple[float, int]:
        """Claim and commit; return seconds and how many jobs it got."""
        self._memory.begin()
        with self._sessions() as session:
            start = time.perf_counter()
            jobs = claim_jobs(
                session,
                TABLES,
                kinds=["grow"],
                queues=queues,
                limit=limit,
                lease=LEASE,
                runner_id=self._id,
                features=features,
                memory=self._memory,
            )
            held = [
                (Settlement(j.id, j.lease_token, "complete"), (j.queue, j.channel))
                for j in jobs
            ]
            session.commit()
            seconds = time.perf_counter() - start
        self._held += held
        return seconds, len(held)

    def settle(self, *, ordered: bool = False) -> int:
        """Complete what it holds; return how many jobs that were."""
        held, self._held = self._held, []
        if held:
            with self._sessions.begin() as session:
                settle(session, TABLES, [row for row, _ in held], wait=False)
        for _, (queue, channel) in held:
            self._memory.settled(queue, channel, ordered=ordered)
        return len(held)


class Bed:
    """A database with the job tables, to be filled and claimed from."""

    def __init__(self, dsn: str) -> None:
        self.engine = create_engine(dsn, pool_size=20)
        self.sessions = sessionmaker(self.engine)
        self._admin = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.claimers = [Claimer(self.sessions)]
        self._holder: Connection | None = None
        self.run("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        Base.metadata.create_all(self.engine)

    def close(self) -> None:
        """Close its connections."""
        self.release()
        self.engine.dispose()

    def clear(self) -> None:
        """Empty every table, end the snapshot, forget what claimers remember."""
        self.release()
        names = ", ".join(table.name for table in Base.metadata.sorted_tables)
        self.run(f"TRUNCATE {names} RESTART IDENTITY")
        self.claimers = [Claimer(self.sessions)]

    def run(self, statement: str, **params: Any) -> Any:
        """Execute *statement* in a transaction of its own; return its first value."""
        with self._admin.connect() as connection:
            result = connection.execute(text(statement), params)
            return result.scalar() if result.returns_rows else None

    def fill(
        self,
        count: int,
        *,
        state: str = "available",
        queue: str = "default",
        channels: int = 0,
        ordered: bool = False,
    ) -> None:
        """Insert *count* jobs in one statement, spread over *channels*; 0 for none."""
        channel = f"'c' || lpad((n % {channels})::text, 5, '0')" if channels else "''"
        final = state in ("completed", "discarded", "cancelled")
        statement = FILL.format(
            channel=channel,
            run_at="clock_timestamp()"
            + (" + interval '1 day'" if state == "scheduled" else ""),
            more="attempt, lease_token, finished_at" if final else "attempt",
            values="1, 1, now()" if final else "0",
        )
        params = {"queue": queue, "ordered": ordered, "state": state, "count": count}
        self.run(statement, payload=PAYLOAD, **params)

    def vacuum(self) -> None:
        """Do what autovacuum would have done by now, for the same plans each time."""
        self.run("VACUUM (ANALYZE) growth_jobs")

    def analyze(self) -> None:
        """Bring the planner's statistics up to date, without a vacuum."""
        self.run("ANALYZE growth_jobs")

    def hold(self) -> None:
        """Hold a snapshot from now on: no row that dies can be removed."""
        self._holder = self.engine.connect().execution_options(
            isolation_level="REPEATABLE READ"
        )
        self._holder.execute(text("SELECT 1"))

    def release(self) -> None:
        """End the snapshot, if one is held."""
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def work(self, count: int, *, batch: int = 500) -> None:
        """Run *count* jobs as a runner with *batch* slots would."""
        claimer = self.claimers[0]
        while count > 0:
            claimer.claim(min(batch, count), None, Features())
            done = claimer.settle()
            if done == 0:
                raise RuntimeError(f"no jobs left, {count} more were wanted")
            count -= done

    def make_fair(self, queue: str) -> None:
        """Have the channels of *queue* served in turn."""
        with self.sessions.begin() as session:
            set_queue(session, Job, queue, fair=True)

    def cost(
        self,
        limit: int,
        *,
        rounds: int,
        claimers: int = 1,
        queues: Mapping[str, int] | None = None,
        features: Features | None = None,
    ) -> Cost:
        """
        Measure claims of *limit* jobs, *claimers* at a time; settle after each round.

        The first round is not counted: it parses and plans.
        """
        features = features or Features()
        while len(self.claimers) < claimers:
            self.claimers.append(Claimer(self.sessions))
        chosen = self.claimers[:claimers]

        def work(claimer: Claimer) -> tuple[float, int]:
            return claimer.claim(limit, queues, features)

        found = []
        with ThreadPoolExecutor(claimers) as pool, self._admin.connect() as watcher:
            for _ in range(rounds + 1):
                found.append(_round(watcher, pool, work, chosen))
                for claimer in chosen:
                    claimer.settle(ordered=features.ordered)
        return _median(found[1:])


def _round(
    watcher: Connection,
    pool: ThreadPoolExecutor,
    work: Callable[[Claimer], tuple[float, int]],
    claimers: Sequence[Claimer],
) -> Cost:
    barrier = threading.Barrier(len(claimers))

    def at_once(claimer: Claimer) -> tuple[float, int]:
        barrier.wait(60)
        return work(claimer)

    watcher.execute(text("SELECT pg_stat_statements_reset()"))
    claims = list(pool.map(at_once, claimers))
    spent = watcher.execute(text(COUNTERS)).one()
    seconds, rows = zip(*claims, strict=True)
    number = len(claims)
    return Cost(
        spent.buffers / number,
        statistics.median(seconds) * 1000,
        spent.server_ms / number,
        sum(rows) / number,
    )


def _median(costs: Sequence[Cost]) -> Cost:
    names = ("buffers", "ms", "server_ms", "rows")
    return Cost(*(statistics.median(getattr(c, n) for c in costs) for n in names))


@contextmanager
def open_bed(dsn: str | None, **settings: Setting) -> Iterator[Bed]:
    """
    Yield a bed on a server of its own, or on a new database of the server at *dsn*.

    Args:
        dsn: None starts a server with `SETTINGS` and *settings*.
    """
    server: Any = None
    if dsn is None:
        server = PostgresServer(**{**SETTINGS, **settings}).start()
    try:
        place = DatabaseServer(dsn or server.dsn)
        with place.temporary_database("sqla_jobs_growth") as own:
            bed = _checked(own)
            yield bed
            bed.close()
    finally:
        if server is not None:
            server.stop()


def _checked(dsn: str) -> Bed:
    try:
        bed = Bed(dsn)
        bed.run(COUNTERS)
    except DBAPIError as exc:
        sys.exit(
            f"cannot measure at this server: {exc.orig}\nIt needs a role that may"
            " create databases and extensions, and in postgresql.conf:"
            " shared_preload_libraries = 'pg_stat_statements'"
        )
    return bed
