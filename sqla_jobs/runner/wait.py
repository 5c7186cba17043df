"""Wait until a job has ended, from another process or thread, sync and async."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from sqla_jobs._core.clock import SystemClock
from sqla_jobs._core.states import FINAL, JobState
from sqla_jobs._store.counts import JobStatus, status_of
from sqla_jobs._store.target import checked_ids
from sqla_jobs.errors import JobNotFound, JobValueError
from sqla_jobs.models import JobMixin, JobTables, job_tables, known_roots

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

FIRST_PAUSE = timedelta(milliseconds=20)
LONGEST_PAUSE = timedelta(milliseconds=500)
GROWTH = 1.5


@overload
def wait(
    session_factory: Callable[[], Session],
    job_id: int | JobMixin,
    timeout: timedelta,
    *,
    job_class: type[Any] | None = None,
    until: Iterable[JobState | str] = FINAL,
    poll: timedelta = LONGEST_PAUSE,
) -> JobStatus: ...
@overload
def wait(
    session_factory: Callable[[], AsyncSession],
    job_id: int | JobMixin,
    timeout: timedelta,
    *,
    job_class: type[Any] | None = None,
    until: Iterable[JobState | str] = FINAL,
    poll: timedelta = LONGEST_PAUSE,
) -> Coroutine[Any, Any, JobStatus]: ...
def wait(
    session_factory: Callable[[], Any],
    job_id: int | JobMixin,
    timeout: timedelta,
    *,
    job_class: type[Any] | None = None,
    until: Iterable[JobState | str] = FINAL,
    poll: timedelta = LONGEST_PAUSE,
) -> JobStatus | Coroutine[Any, Any, JobStatus]:
    """
    Wait until a committed job has ended, and return its status.

    With an async_sessionmaker: ``await wait(AsyncSession, job, timeout)``. The job's
    row is read again and again, first after 20 ms, then ever more rarely; in between no
    connection is held. An archived job is found in the archive.

    Args:
        session_factory: A sessionmaker or async_sessionmaker.
        job_id: The id of a job whose transaction has committed, or the job itself.
        timeout: The longest wait; zero looks once.
        job_class: The root class, or any class under it; needed only with an id, in a
            process that has several root classes.
        until: The states that end the wait; default the final ones, which always do.
        poll: The longest time between two looks. Default 500 ms.

    Raises:
        TimeoutError: If the job is in another state after *timeout*; says in which.
        JobNotFound: If there is no such job, or it was deleted during the wait.
        JobValueError: If an argument cannot be used.
        MissingTables: If the job tables are not there.
    """
    watch = _Watch(
        tables=_tables_of(type(job_id) if isinstance(job_id, JobMixin) else job_class),
        job_id=_id_of(job_id),
        until=_states(until),
        timeout=_seconds("timeout", timeout),
        poll=_seconds("poll", poll) or LONGEST_PAUSE.total_seconds(),
    )
    opened = _opener(session_factory)
    session = opened()
    if isinstance(session, Session):
        return _wait(opened, watch)
    if not hasattr(session, "run_sync"):
        raise JobValueError(f"wait() needs a sessionmaker, got {session_factory!r}")
    return _wait_async(opened, watch)


@dataclass
class _Watch:
    """One wait: what ends it, and how long to pause before each look."""

    tables: JobTables
    job_id: int
    until: frozenset[JobState]
    timeout: float
    poll: float
    last: JobStatus | None = None
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = SystemClock().monotonic() + self.timeout

    def look(self, session: Session) -> JobStatus | None:
        """Return the status that ends the wait, None while it goes on."""
        found = status_of(session, self.tables, self.job_id)
        if found is None:
            raise JobNotFound(self._missing_text())
        self.last = found
        return found if found.state in self.until else None

    def pauses(self) -> Iterator[float]:
        """Yield seconds to wait before the next look; raise when time is up."""
        pause = FIRST_PAUSE.total_seconds()
        while True:
            left = self.deadline - SystemClock().monotonic()
            if left <= 0:
                assert self.last is not None
                raise TimeoutError(
                    f"job {self.job_id} is still {self.last.state}"
                    f" after {self.timeout:g} s"
                )
            yield min(pause, self.poll, left)
            pause *= GROWTH

    def _missing_text(self) -> str:
        name = self.tables.table.fullname
        if self.last is None:
            return (
                f"{name} has no job {self.job_id}; wait for jobs whose transaction"
                " has committed, before retention deletes them"
            )
        return (
            f"job {self.job_id} was deleted from {name} during the wait; it was last"
            f" {self.last.state}"
        )


def _wait(opened: Callable[[], Session], watch: _Watch) -> JobStatus:
    pauses = watch.pauses()
    while True:
        with opened() as session:
            found = watch.look(session)
        if found is not None:
            return found
        time.sleep(next(pauses))


async def _wait_async(opened: Callable[[], AsyncSession], watch: _Watch) -> JobStatus:
    import asyncio

    pauses = watch.pauses()
    while True:
        async with opened() as session:
            found = await session.run_sync(watch.look)
        if found is not None:
            return found
        await asyncio.sleep(next(pauses))


def _opener(session_factory: Any) -> Callable[[], Any]:
    # A scoped session is the caller's own, in the middle of its work.
    opened = getattr(session_factory, "session_factory", session_factory)
    if not callable(opened):
        raise JobValueError(f"wait() needs a sessionmaker, got {session_factory!r}")
    return opened  # type: ignore[no-any-return]


def _id_of(job: Any) -> int:
    if not isinstance(job, JobMixin):
        (number,) = checked_ids(job)
        return number
    # Also of an instance whose attributes have expired with its session.
    identity = inspect(job).identity
    if identity is None:
        raise JobValueError(f"wait() needs a job that is committed, got {job!r}")
    return int(identity[0])


def _tables_of(job_class: type[Any] | None) -> JobTables:
    if job_class is not None:
        return job_tables(job_class)
    roots = known_roots()
    if len(roots) == 1:
        return job_tables(roots[0])
    names = ", ".join(root.__name__ for root in roots) or "none"
    raise JobValueError(
        "wait() needs job_class= unless there is exactly one root class;"
        f" known: {names}"
    )


def _states(until: Iterable[JobState | str]) -> frozenset[JobState]:
    given = [until] if isinstance(until, str) else list(until)
    try:
        return FINAL | {JobState(state) for state in given}
    except ValueError as exc:
        raise JobValueError(f"{exc}; states are {', '.join(JobState)}") from None


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, timedelta) or value < timedelta(0):
        raise JobValueError(
            f"{name} must be a timedelta of zero or more,"
            f" e.g. timedelta(seconds=30), got {value!r}"
        )
    return value.total_seconds()
