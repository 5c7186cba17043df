"""The job classes, rows and helpers of the protocol's tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    RowMapping,
    Text,
    cast,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_jobs import JobMixin, JobState, Retention, custom
from sqla_jobs._core.states import FINAL, Lane
from sqla_jobs._store.claim import Claim, claim
from sqla_jobs.models import job_tables

NOW = datetime(2050, 6, 1, 12, tzinfo=UTC)
"""The time of the tests that pass one."""

SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=30)
DAY = timedelta(days=1)
T = TypeVar("T")


class Base(DeclarativeBase):
    """The application's base."""


class Job(JobMixin, Base):
    """The root class."""

    __tablename__ = "jobs"


class Work(Job, kind="work", aliases=["old_work"]):
    """A kind with an alias."""


class Special(Work, kind="special"):
    """A kind under another one."""


class Other(Job, kind="other"):
    """A kind beside `Work`."""


class Joined(Job, kind="joined"):
    """A kind with a table of its own."""

    __tablename__ = "joined_jobs"
    note: Mapped[str] = mapped_column(default="")


class Kept(
    Job,
    kind="kept",
    retention=Retention(completed=None, cancelled=2 * DAY, discarded=3 * DAY),
):
    """A kind with a retention of its own."""


def _seven_minutes(attempt: int) -> timedelta:
    return 7 * attempt * timedelta(minutes=1)


def _broken(attempt: int) -> timedelta:
    raise ZeroDivisionError


class Patient(Job, kind="patient", backoff=custom(_seven_minutes)):
    """A kind whose backoff is a function."""


class Broken(Job, kind="broken", backoff=custom(_broken)):
    """A kind whose backoff function fails."""


class Effect(Base):
    """What an attempt writes to the application's own tables."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    note: Mapped[str] = mapped_column(Text)


def make_job(
    session: Session,
    job_class: type[Any] = Work,
    *,
    state: JobState | str = JobState.AVAILABLE,
    **columns: Any,
) -> int:
    """Insert a job with what its *state* requires, and return its id."""
    table = job_tables(job_class).table
    values = {
        "kind": job_class.__mapper__.polymorphic_identity or "work",
        "run_at": NOW,
        "state": JobState(state).value,
        **_required(JobState(state)),
        **columns,
    }
    connection = session.connection(bind_arguments={"mapper": job_class})
    made = connection.execute(insert(table).values(values).returning(table.c.id))
    return int(made.scalar_one())


def _required(state: JobState) -> dict[str, Any]:
    tried = {"attempt": 1, "lease_token": 1, "started_at": NOW}
    if state == JobState.SCHEDULED:
        return {"run_at": NOW + DAY}
    if state == JobState.RUNNING:
        return tried | {"leased_until": NOW + LEASE}
    if state == JobState.RETRYABLE:
        return tried | {"run_at": NOW + SECOND, "lane": Lane.RETRIED}
    return tried | {"finished_at": NOW} if state in FINAL else {}


def fill(session: Session, count: int, **columns: Any) -> None:
    """Insert *count* like jobs in one statement."""
    table = job_tables(Job).table
    values = {"kind": "work", "run_at": NOW, "state": "available", **columns}
    names = list(values)
    numbers = func.generate_series(1, count).table_valued("n")
    literals = [cast(values[name], table.c[name].type) for name in names]
    rows = select(*literals).select_from(numbers)
    session.execute(insert(table).from_select(names, rows))


def row_of(session: Session, job_id: int, job_class: type[Any] = Job) -> RowMapping:
    """Return the committed or own version of a job's row, as plain values."""
    table = job_tables(job_class).table
    connection = session.connection(bind_arguments={"mapper": job_class})
    return (
        connection.execute(select(table).where(table.c.id == job_id)).mappings().one()
    )


def change(session: Session, job_id: int, **columns: Any) -> None:
    """Write columns of a job's row, without any fence."""
    table = job_tables(Job).table
    changes = {"state": table.c.state, **columns}
    session.execute(update(table).where(table.c.id == job_id).values(changes))


def attempts_of(session: Session, job_id: int) -> list[RowMapping]:
    """Return the logged attempts of a job, oldest first."""
    table = job_tables(Job).attempts
    query = select(table).where(table.c.job_id == job_id).order_by(table.c.lease_token)
    return list(session.execute(query).mappings())


def claim_one(session: Session, job_id: int | None = None, **options: Any) -> Claim:
    """Claim exactly one job, by default at `NOW`, and check which one it is."""
    (found,) = claim(session, Job, **{"now": NOW, "lease": LEASE, **options})
    assert job_id is None or found.job_id == job_id
    return found


@contextmanager
def sent(session: Session) -> Iterator[list[str]]:
    """Yield the statements that the session's connection executes meanwhile."""
    connection, seen = session.connection(), list[str]()

    def note(*args: Any) -> None:
        seen.append(args[2])

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(connection, "before_cursor_execute", note)


def at_once(works: Sequence[Callable[[], T]], *, timeout: float = 60) -> list[T]:
    """Run *works* in threads that start together; return results, raise failures."""
    barrier = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait(timeout)
            results[number] = works[number]()
        except BaseException as exc:  # noqa: BLE001  # raised below, in the test
            failures.append(exc)

    threads = [
        threading.Thread(target=run, args=(number,), daemon=True)
        for number in range(len(works))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return results


@contextmanager
def freed_when_awaited(
    waiter: Session,
    blocker: Session,
    last: Callable[[Session], object] = lambda session: None,
) -> Iterator[None]:
    """Do *last* and commit in *blocker* once *waiter* waits for one of its locks."""
    backend = text("SELECT pg_backend_pid()")
    pids = {"waiter": waiter.scalar(backend), "blocker": blocker.scalar(backend)}
    query = text(
        "SELECT pg_isolation_test_session_is_blocked("
        "CAST(:waiter AS int), ARRAY[CAST(:blocker AS int)])"
    )
    deadline = time.monotonic() + 30

    failures: list[BaseException] = []

    def commit() -> None:
        try:
            while not blocker.scalar(query, pids):
                assert time.monotonic() < deadline, "nobody waits"
            last(blocker)
            blocker.commit()
        except BaseException as exc:  # noqa: BLE001  # raised below, in the test
            failures.append(exc)
            blocker.rollback()

    thread = threading.Thread(target=commit, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
    if failures:
        raise failures[0]


class Elsewhere:
    """Another worker: each use is one committed transaction of its own."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self.sessions = sessions

    def __call__(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Return ``work(session, ...)`` after a commit."""
        with self.sessions.begin() as session:
            return work(session, *args, **options)
