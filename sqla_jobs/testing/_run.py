"""Run jobs in a test's own transaction: one, or all that are due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack, overload

from sqlalchemy.orm import Session, scoped_session

from sqla_jobs._core.states import JobState
from sqla_jobs.errors import JobValueError
from sqla_jobs.testing._bench import (
    Bench,
    RunOptions,
    Wanted,
    show_new_values,
    tables_of,
)
from sqla_jobs.testing._joined import JoinedAttempt, plain_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

LIMIT = 1_000
LOST = "lost"
"""What `drain` counts an attempt under whose job was taken from it."""


@overload
def run_one(
    session: Session | scoped_session[Any],
    job: Any = None,
    /,
    **options: Unpack[RunOptions],
) -> JobState | None: ...
@overload
def run_one(
    session: AsyncSession | async_scoped_session[Any],
    job: Any = None,
    /,
    **options: Unpack[RunOptions],
) -> Coroutine[Any, Any, JobState | None]: ...
def run_one(session: Any, job: Any = None, /, **options: Unpack[RunOptions]) -> Any:
    """
    Run the next job that is due, as a runner would, and return its new state.

    Everything happens in the session's own transaction, in this thread: jobs that are
    not committed are seen, nothing is ever committed. The handler's ``ctx.session`` is
    another session on the same connection; its commits are savepoints. The session is
    flushed first, and its objects have the new values afterwards.

    Args:
        session: The test's session; with an AsyncSession: ``await run_one(session)``.
        job: A job to run, or a class to take a job of. Default any.
        queues: Names of queues to take from. Default all.
        kinds: Kinds or classes to take. Default all that have a handler.
        clock: The time to go by. Default the session's, else the database's.
        raise_errors: Whether to raise what the handler raises, after it was recorded
            as a runner records it. Default True.
        resources: For the handler, as ``ctx.resources``.
        middleware: As a runner's.
        on_error: As a runner's.
        session_maker: The application's, to make ``ctx.session`` with its class and
            options. Default those of *session*.

    Returns:
        None if no job is due.

    Raises:
        JobValueError: If the session's transaction has failed, is in AUTOCOMMIT mode,
            or is ended by the handler; or *job* cannot run now.
        JobDefinitionError: If a kind has no handler, or an async one and *session* is
            no AsyncSession.
        UnsupportedDialect: If the database is not supported.
    """
    __tracebackhide__ = True
    wanted = Wanted.of("run_one", job, options)
    found = plain_session(session, "run_one")
    if isinstance(found, Session):
        return _run_one(found, wanted)
    return _arun_one(found, wanted)


@overload
def drain(
    session: Session | scoped_session[Any],
    job_class: type[Any] | None = None,
    /,
    *,
    limit: int = LIMIT,
    with_scheduled: bool = False,
    with_retries: bool = False,
    **options: Unpack[RunOptions],
) -> dict[str, int]: ...
@overload
def drain(
    session: AsyncSession | async_scoped_session[Any],
    job_class: type[Any] | None = None,
    /,
    *,
    limit: int = LIMIT,
    with_scheduled: bool = False,
    with_retries: bool = False,
    **options: Unpack[RunOptions],
) -> Coroutine[Any, Any, dict[str, int]]: ...
def drain(
    session: Any,
    job_class: Any = None,
    /,
    *,
    limit: int = LIMIT,
    with_scheduled: bool = False,
    with_retries: bool = False,
    **options: Unpack[RunOptions],
) -> Any:
    """
    Run jobs, also those that jobs enqueue, until none is due; return what became.

    Each job runs as by `run_one`, whose other options it takes.

    Args:
        session: The test's session; with an AsyncSession: ``await drain(session)``.
        job_class: A class to take jobs of. Default any.
        limit: The most jobs to run, so that jobs that enqueue themselves end.
            Default 1,000.
        with_scheduled: Whether to run scheduled and snoozed jobs before their time
            when nothing else is due. Default False.
        with_retries: Likewise jobs that wait out their backoff. Default False.

    Returns:
        How many attempts ended in each state, as in
        ``{"completed": 2, "retryable": 1}``.

    Raises:
        AssertionError: If more jobs than *limit* are due.
        JobValueError: As `run_one` does.
        JobDefinitionError: As `run_one` does.
        UnsupportedDialect: If the database is not supported.
    """
    __tracebackhide__ = True
    early = [JobState.SCHEDULED] * with_scheduled + [JobState.RETRYABLE] * with_retries
    drained = _Drained(limit, early)
    wanted = Wanted.of("drain", job_class, options)
    found = plain_session(session, "drain")
    if isinstance(found, Session):
        return _drain(found, wanted, drained)
    return _adrain(found, wanted, drained)


class _Drained:
    """What a `drain` has done so far."""

    def __init__(self, limit: int, early: list[JobState]) -> None:
        if limit < 1:
            raise JobValueError(f"limit must be 1 or more, got {limit}")
        self.limit, self.early = limit, early
        self.states: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.benches: list[Bench] = []

    def next(
        self, session: Session, wanted: Wanted, outer: AsyncSession | None
    ) -> tuple[Bench, JoinedAttempt] | None:
        """Return the next attempt, None without one."""
        __tracebackhide__ = True
        # Each time: what ran may have enqueued in another job table.
        benches = self.benches = _benches(session, wanted, outer, self.benches)
        found = next_attempt(benches)
        hurried = found is None and [bench.hurry(self.early) for bench in benches]
        if hurried and any(hurried):
            found = next_attempt(benches)
        if found is not None and self.kinds.total() == self.limit:
            kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common(5))
            raise AssertionError(
                f"drain() ran {self.limit} jobs ({kinds}) and more are due; do jobs"
                " enqueue themselves? else give a higher limit="
            )
        return found

    def note(self, attempt: JoinedAttempt, state: JobState | None) -> None:
        """Count an attempt that ended."""
        self.kinds[attempt.kind] += 1
        self.states[LOST if state is None else state.value] += 1


def next_attempt(benches: list[Bench]) -> tuple[Bench, JoinedAttempt] | None:
    """Return the first attempt that one of the job tables has to offer."""
    for bench in benches:
        if attempt := bench.take():
            return bench, attempt
    return None


def _benches(
    session: Session,
    wanted: Wanted,
    outer: AsyncSession | None,
    known: Sequence[Bench] = (),
) -> list[Bench]:
    """Return one for each job table, of those *known* the same; jobs may add tables."""
    made = {bench.tables: bench for bench in known}
    tables = tables_of(session, wanted)
    return [made.get(one) or Bench(session, one, wanted, outer) for one in tables]


@contextmanager
def _showing(session: Session) -> Iterator[None]:
    try:
        yield
    finally:
        show_new_values(session, reload=False)


def _run_one(session: Session, wanted: Wanted) -> JobState | None:
    __tracebackhide__ = True
    with _showing(session):
        found = next_attempt(_benches(session, wanted, None))
        if found is None:
            return None
        bench, attempt = found
        return bench.settle(attempt, bench.run(attempt))


def _drain(session: Session, wanted: Wanted, drained: _Drained) -> dict[str, int]:
    __tracebackhide__ = True
    with _showing(session):
        while found := drained.next(session, wanted, None):
            bench, attempt = found
            drained.note(attempt, bench.settle(attempt, bench.run(attempt)))
    return dict(drained.states)


async def _arun_one(session: AsyncSession, wanted: Wanted) -> JobState | None:
    __tracebackhide__ = True
    benches = await session.run_sync(_benches, wanted, session)
    try:
        found = await session.run_sync(lambda _: next_attempt(benches))
        return None if found is None else await _aend(session, *found)
    finally:
        await session.run_sync(show_new_values, reload=True)


async def _adrain(
    session: AsyncSession, wanted: Wanted, drained: _Drained
) -> dict[str, int]:
    __tracebackhide__ = True
    try:
        while found := await session.run_sync(drained.next, wanted, session):
            drained.note(found[1], await _aend(session, *found))
    finally:
        await session.run_sync(show_new_values, reload=True)
    return dict(drained.states)


async def _aend(
    session: AsyncSession, bench: Bench, attempt: JoinedAttempt
) -> JobState | None:
    __tracebackhide__ = True
    settlement = await bench.arun(attempt)
    return await session.run_sync(lambda _: bench.settle(attempt, settlement))
