"""What a handler is given beside its job."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic

from sqlalchemy.orm import Session
from typing_extensions import TypeVar

from sqla_jobs._core.payloads import check_json, dump
from sqla_jobs._store.claim import check_lease
from sqla_jobs._store.verbs import check_extra
from sqla_jobs.errors import AttemptInterrupted, JobValueError
from sqla_jobs.runner.attempt import Attempt, Interruption
from sqla_jobs.runner.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncSession

R = TypeVar("R", default=Any)
library_log = logging.getLogger("sqla_jobs")


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds job_id, kind and attempt to every record, beside the caller's ``extra``."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the fields into ``extra``."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class _Base(Generic[R]):
    """What both contexts share; nothing in here waits."""

    resources: R

    def __init__(self, attempt: Attempt, resources: R) -> None:
        self._attempt = attempt
        self.resources = resources

    @property
    def attempt(self) -> int:
        """The number of this attempt, counted from 1."""
        return self._attempt.number

    @property
    def max_attempts(self) -> int:
        """The most attempts the job may have."""
        return self._attempt.max_attempts

    @property
    def state(self) -> dict[str, Any]:
        """
        What earlier attempts saved, ``{}`` at first.

        Changes in place are saved by the next commit of the session, by `checkpoint`,
        or with the outcome the handler returns.
        """
        return self._attempt.state

    @property
    def cancelled(self) -> bool:
        """Whether this attempt must end (cancelled, timed out, lost or shutdown)."""
        return self._attempt.interruption is not None

    @property
    def deadline(self) -> datetime | None:
        """When the attempt times out by the database's clock; None if never."""
        attempt = self._attempt
        if attempt.timeout is None:
            return None
        deadline: datetime = attempt.started_at + attempt.timeout
        return deadline

    @property
    def idempotency_key(self) -> str:
        """A text for external services, the same in all attempts and requeues."""
        return f"{self._attempt.tables.table.fullname}:{self._attempt.job_id}"

    @property
    def log(self) -> JobLogger:
        """A logger whose records carry job_id, kind and attempt."""
        attempt = self._attempt
        fields = {
            "job_id": attempt.job_id,
            "kind": attempt.kind,
            "attempt": attempt.number,
        }
        return JobLogger(library_log, fields)

    def progress(self, done: float, total: float | None = None) -> None:
        """
        Note how far the job is; saved with the next commit or within about a second.

        Args:
            done: Units done, 0 or more.
            total: Units in all, if known.

        Raises:
            JobValueError: If a number is negative or not finite.
        """
        for number in (done, total):
            if number is not None and not 0 <= number < float("inf"):
                raise JobValueError(f"progress must be 0 or more, got {number}")
        self._attempt.progress = dump({"done": done, "total": total})

    def raise_if_interrupted(self) -> None:
        """
        Raise if this attempt must end; call it between steps of long work.

        Raises:
            AttemptInterrupted: If the lease is lost, the job was cancelled or timed
                out, or the runner is shutting down for good.
        """
        self._attempt.check_open()

    def _prepare(
        self,
        values: Mapping[str, Any] | None,
        keys: Mapping[str, Any],
        extra_attempts: int,
        lease: timedelta | None,
    ) -> None:
        attempt = self._attempt
        attempt.check_open()
        check_extra(extra_attempts)
        if lease is not None:
            check_lease(lease)
        # What JSON cannot hold is refused before any SQL and changes nothing.
        check_json({**(attempt.state if values is None else values), **keys}, "state")
        if values is not None:
            attempt.state = dict(values)
        attempt.state.update(keys)
        attempt.next_extra, attempt.next_lease = extra_attempts, lease


class Context(_Base[R]):
    """
    The attempt, as a sync handler sees it.

    ``Context[Resources]`` types `resources`.
    """

    def __init__(
        self,
        attempt: Attempt,
        resources: R,
        open_session: Callable[[Attempt], Session],
        renew: Callable[[Attempt, timedelta], bool],
    ) -> None:
        super().__init__(attempt, resources)
        self._open_session, self._renew = open_session, renew
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """
        The handler's session, from the application's sessionmaker, its job attached.

        Opened on first use. Each commit is a checkpoint: it is refused when the lease
        is lost, renews it, and saves `state`.
        """
        if self._session is None:
            self._attempt.check_open()
            self._session = self._open_session(self._attempt)
        return self._session

    def checkpoint(
        self,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        extra_attempts: int = 0,
        lease: timedelta | None = None,
        **keys: Any,
    ) -> None:
        """
        Commit what the session holds together with `state`, and renew the lease.

        Args:
            values: A mapping that replaces the state; default None keeps it.
            extra_attempts: Raises ``max_attempts``, 0 or more. Default 0.
            lease: Length of the renewed lease, 3 s or more. Default the job's.
            keys: Top-level keys to change in the state.

        Raises:
            AttemptInterrupted: If the lease is lost (nothing was committed); or, after
                the commit, if a cancel was requested or the runner is shutting down.
            PayloadError: If the state is not JSON.
            JobValueError: If *extra_attempts* or *lease* is out of range.
        """
        self._prepare(values, keys, extra_attempts, lease)
        session = self.session
        session.connection(bind_arguments=bind_arguments(self._attempt))
        session.commit()

    def renew_lease(self, for_: timedelta | None = None) -> None:
        """
        Renew the lease now, as before a call that blocks the whole process.

        Args:
            for_: Length from now, 3 s or more; default the job's lease.

        Raises:
            AttemptInterrupted: If the lease is lost.
            JobValueError: If *for_* is below 3 s.
        """
        length = checked_length(self._attempt, for_)
        if not self._renew(self._attempt, length):
            raise lost(self._attempt)


class AsyncContext(_Base[R]):
    """
    The attempt, as an async handler sees it.

    ``AsyncContext[Resources]`` types `resources`.
    """

    def __init__(
        self,
        attempt: Attempt,
        resources: R,
        open_session: Callable[[Attempt], AsyncSession],
        renew: Callable[[Attempt, timedelta], Awaitable[bool]],
    ) -> None:
        super().__init__(attempt, resources)
        self._open_session, self._renew = open_session, renew
        self._session: AsyncSession | None = None

    @property
    def session(self) -> AsyncSession:
        """
        The handler's session, from the application's async_sessionmaker, its job
        attached; with ``expire_on_commit=False``.

        Opened on first use. Each commit is a checkpoint: it is refused when the lease
        is lost, renews it, and saves `state`.
        """
        if self._session is None:
            self._attempt.check_open()
            self._session = self._open_session(self._attempt)
        return self._session

    async def checkpoint(
        self,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        extra_attempts: int = 0,
        lease: timedelta | None = None,
        **keys: Any,
    ) -> None:
        """
        Commit what the session holds together with `state`, and renew the lease.

        Args:
            values: A mapping that replaces the state; default None keeps it.
            extra_attempts: Raises ``max_attempts``, 0 or more. Default 0.
            lease: Length of the renewed lease, 3 s or more. Default the job's.
            keys: Top-level keys to change in the state.

        Raises:
            AttemptInterrupted: If the lease is lost (nothing was committed); or, after
                the commit, if a cancel was requested or the runner is shutting down.
            PayloadError: If the state is not JSON.
            JobValueError: If *extra_attempts* or *lease* is out of range.
        """
        self._prepare(values, keys, extra_attempts, lease)
        session = self.session
        await session.connection(bind_arguments=bind_arguments(self._attempt))
        await session.commit()

    async def renew_lease(self, for_: timedelta | None = None) -> None:
        """
        Renew the lease now, as before a call that blocks the whole process.

        Args:
            for_: Length from now, 3 s or more; default the job's lease.

        Raises:
            AttemptInterrupted: If the lease is lost.
            JobValueError: If *for_* is below 3 s.
        """
        length = checked_length(self._attempt, for_)
        if not await self._renew(self._attempt, length):
            raise lost(self._attempt)


def bind_arguments(guard: Guard) -> dict[str, Any]:
    """Return what makes a session use the job table's database."""
    return {"mapper": guard.tables.root.__mapper__}


def checked_length(attempt: Attempt, for_: timedelta | None) -> timedelta:
    """
    Return the length of a renewal.

    Raises:
        AttemptInterrupted: If the attempt was interrupted.
        JobValueError: If *for_* is below 3 s.
    """
    attempt.check_open()
    if for_ is None:
        return attempt.lease
    check_lease(for_)
    return for_


def lost(attempt: Attempt) -> AttemptInterrupted:
    """Note that the lease is lost and return the exception to raise."""
    attempt.interrupt(Interruption.LOST)
    return AttemptInterrupted(attempt.job_id, Interruption.LOST.value)
