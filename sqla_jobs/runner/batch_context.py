"""What `run_many` is given beside its jobs, and what it may answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic

from sqlalchemy.orm import Session
from typing_extensions import TypeVar

from sqla_jobs.errors import JobValueError
from sqla_jobs.handlers import Handler
from sqla_jobs.runner.attempt import Attempt
from sqla_jobs.runner.context import AsyncContext, Context, JobLogger, library_log

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

R = TypeVar("R", default=Any)


class _Base(Generic[R]):
    """What both batch contexts share; nothing in here waits."""

    resources: R

    def __init__(self, attempts: Sequence[Attempt], resources: R) -> None:
        self._attempts = attempts
        self.resources = resources

    @property
    def cancelled(self) -> bool:
        """Whether an attempt must end (cancelled, timed out, lost or shutdown)."""
        return any(attempt.interruption is not None for attempt in self._attempts)

    @property
    def log(self) -> JobLogger:
        """A logger whose records carry kind and job_ids."""
        ids = [attempt.job_id for attempt in self._attempts]
        fields = {"kind": self._attempts[0].kind, "job_ids": ids}
        return JobLogger(library_log, fields)

    def raise_if_interrupted(self) -> None:
        """
        Raise if an attempt must end; call it between steps of long work.

        Raises:
            AttemptInterrupted: If a lease is lost, a job was cancelled or timed out, or
                the runner is shutting down for good.
        """
        for attempt in self._attempts:
            attempt.check_open()


class BatchContext(_Base[R]):
    """
    The attempts at several jobs, as a sync `run_many` sees them.

    ``BatchContext[Resources]`` types `resources`.
    """

    def __init__(
        self,
        attempts: Sequence[Attempt],
        resources: R,
        open_session: Callable[[], Session],
        renew: Callable[[timedelta | None], None],
    ) -> None:
        super().__init__(attempts, resources)
        self._open_session, self._renew = open_session, renew

    @property
    def session(self) -> Session:
        """
        The session of the batch, from the application's sessionmaker, with its jobs.

        Opened on first use. The runner commits it, with the outcomes of all jobs; a
        commit of the handler's own is refused.
        """
        return self._open_session()

    def renew_lease(self, for_: timedelta | None = None) -> None:
        """
        Renew the leases now, as before a call that blocks the whole process.

        Args:
            for_: Length from now, 3 s or more; default the jobs' lease.

        Raises:
            AttemptInterrupted: If a lease is lost.
            JobValueError: If *for_* is below 3 s.
        """
        self._renew(for_)


class AsyncBatchContext(_Base[R]):
    """
    The attempts at several jobs, as an async `run_many` sees them.

    ``AsyncBatchContext[Resources]`` types `resources`.
    """

    def __init__(
        self,
        attempts: Sequence[Attempt],
        resources: R,
        open_session: Callable[[], AsyncSession],
        renew: Callable[[timedelta | None], Awaitable[None]],
    ) -> None:
        super().__init__(attempts, resources)
        self._open_session, self._renew = open_session, renew

    @property
    def session(self) -> AsyncSession:
        """
        The session of the batch, from the application's async_sessionmaker, its jobs
        attached; with ``expire_on_commit=False``.

        Opened on first use. The runner commits it, with the outcomes of all jobs; a
        commit of the handler's own is refused.
        """
        return self._open_session()

    async def renew_lease(self, for_: timedelta | None = None) -> None:
        """
        Renew the leases now, as before a call that blocks the whole process.

        Args:
            for_: Length from now, 3 s or more; default the jobs' lease.

        Raises:
            AttemptInterrupted: If a lease is lost.
            JobValueError: If *for_* is below 3 s.
        """
        await self._renew(for_)


def read_answer(value: Any, attempts: Sequence[Attempt]) -> dict[int, Any]:
    """
    Return the outcomes and results by job id that `run_many` returned.

    Raises:
        JobValueError: If *value* is no mapping, or has a key that is no job of these.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise JobValueError(
            f"run_many() returned {value!r:.100}; return None, or a mapping of jobs or"
            " their ids to outcomes or results"
        )
    ids = {id(attempt.job): attempt.job_id for attempt in attempts}
    known, found = set(ids.values()), {}
    for key, one in value.items():
        job_id = ids.get(id(key), key)
        if type(job_id) is not int or job_id not in known:
            raise JobValueError(
                f"run_many() returned an outcome for {key!r:.100}, which is no job of"
                " its batch, nor the id of one"
            )
        found[job_id] = one
    return found


def run_alone(handler: Handler, job: Any, ctx: Context[Any]) -> Any:
    """Run a batch handler for one job, and return what that returned for it."""
    attempt = ctx._attempt
    attempt.one_commit = True
    batch = BatchContext([attempt], ctx.resources, lambda: ctx.session, ctx.renew_lease)
    value = handler.call([job], batch)
    return read_answer(value, [attempt]).get(attempt.job_id)


async def arun_alone(handler: Handler, job: Any, ctx: AsyncContext[Any]) -> Any:
    """Run an async batch handler for one job."""
    attempt = ctx._attempt
    attempt.one_commit = True
    batch = AsyncBatchContext(
        [attempt], ctx.resources, lambda: ctx.session, ctx.renew_lease
    )
    value = await handler.call([job], batch)
    return read_answer(value, [attempt]).get(attempt.job_id)
