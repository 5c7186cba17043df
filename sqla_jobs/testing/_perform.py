"""Run the handler of one job object: no claim, no settlement."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypedDict, Unpack, overload

from sqlalchemy import inspect
from sqlalchemy.orm import Session, scoped_session

from sqla_jobs._core.outcomes import Complete, Outcome
from sqla_jobs._core.payloads import check_json
from sqla_jobs._core.settle import dump_result
from sqla_jobs._store.claim import DEFAULT_LEASE, load_relationships
from sqla_jobs.errors import JobDefinitionError, JobValueError
from sqla_jobs.handlers import Handler, handler_for
from sqla_jobs.models import JobMixin, decode_payload, job_tables
from sqla_jobs.models.columns import COLUMN_ORDER
from sqla_jobs.runner.batch_context import arun_alone, run_alone
from sqla_jobs.runner.context import AsyncContext, Context, bind_arguments
from sqla_jobs.runner.execute import Around
from sqla_jobs.runner.sessions import needs_session
from sqla_jobs.testing._bench import show_new_values
from sqla_jobs.testing._joined import JoinedAttempt, Joint, plain_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session


class _RunsAsync(Protocol):
    def run(self, ctx: Any, /) -> Coroutine[Any, Any, Any]: ...


class _Untyped: ...


class _RunsUntyped(Protocol):
    # Only what returns Any returns this.
    def run(self, ctx: Any, /) -> _Untyped: ...


class _RunsSync(Protocol):
    def run(self, ctx: Any, /) -> Any: ...


class _Options(TypedDict, total=False):
    attempt: int
    state: Mapping[str, Any]
    resources: Any
    middleware: Sequence[Around]


@overload
def perform(
    job: Any,
    /,
    *,
    session: AsyncSession | async_scoped_session[Any],
    **options: Unpack[_Options],
) -> Coroutine[Any, Any, Outcome]: ...
@overload
def perform(  # pyright: ignore[reportOverlappingOverload] - the first match counts
    job: _RunsUntyped,
    /,
    *,
    session: Session | scoped_session[Any] | None = None,
    **options: Unpack[_Options],
) -> Any: ...
@overload
def perform(  # pyright: ignore[reportOverlappingOverload] - the first match counts
    job: _RunsAsync, /, *, session: None = None, **options: Unpack[_Options]
) -> Coroutine[Any, Any, Outcome]: ...
@overload
def perform(
    job: _RunsSync,
    /,
    *,
    session: Session | scoped_session[Any] | None = None,
    **options: Unpack[_Options],
) -> Outcome: ...
@overload
def perform(
    job: JobMixin,
    /,
    *,
    session: Session | scoped_session[Any] | None = None,
    **options: Unpack[_Options],
) -> Any: ...
def perform(
    job: Any,
    /,
    *,
    session: Any = None,
    attempt: int = 1,
    state: Mapping[str, Any] | None = None,
    resources: Any = None,
    middleware: Sequence[Around] = (),
) -> Any:
    """
    Run the handler of *job* and return the outcome; the row stays as it is.

    Without a session the job need not be enqueued, nor its table be there; the handler
    has no ``ctx.session`` then. With one the job is added to it and flushed, and the
    handler gets another session on the same connection, as by `run_one`; what it writes
    is kept or rolled back as its outcome asks.

    Args:
        job: With an async handler, or an AsyncSession: ``await perform(job)``. A batch
            handler gets it alone; `acquire` is not asked.
        session: The test's session. Default None.
        attempt: ``ctx.attempt``, 1 or more. Default 1.
        state: ``ctx.state``. Default what the job has saved.
        resources: For the handler, as ``ctx.resources``.
        middleware: As a runner's; not called for a batch handler.

    Returns:
        The `Complete`, `Retry`, `Snooze`, `Cancel` or `Discard` that the handler
        returned or raised; another value it returned is the ``result`` of a `Complete`.

    Raises:
        Exception: What the handler raises.
        PayloadError: If an argument does not decode, or the result is not JSON.
        JobValueError: If *attempt* is below 1, or the session cannot be used.
        JobDefinitionError: If the job's class has no handler, or an async one and
            *session* is no AsyncSession.
    """
    __tracebackhide__ = True
    handler = _handler_of(job)
    if attempt < 1:
        raise JobValueError(f"attempt must be 1 or more, got {attempt}")
    if state is not None:
        check_json(dict(state), "state")
    performance = _Performance(handler, attempt, state, resources, middleware)
    if session is None:
        call = performance.aunattached if handler.is_async else performance.unattached
        return call(job)
    found = plain_session(session, "perform")
    if not isinstance(found, Session):
        return performance.aattached(job, found)
    if handler.is_async:
        raise JobDefinitionError(
            f"perform(): the handler of {type(job).__name__}, {handler.name}, is async;"
            " give an AsyncSession"
        )
    try:
        return performance.attached(job, found)
    finally:
        show_new_values(found, reload=False)


def _handler_of(job: Any) -> Handler:
    if not isinstance(job, JobMixin):
        raise JobDefinitionError(f"perform() needs a job, got {job!r}")
    handler = handler_for(type(job))
    if handler is None:
        raise JobDefinitionError(
            f"perform(): {type(job).__name__} has no handler; give the class a run()"
            " method, or a function @handles(...)"
        )
    return handler


class _Performed(JoinedAttempt):
    """An attempt at a job that nobody claimed: there is no lease to lose."""

    @staticmethod
    def values_of(job: Any) -> Mapping[str, Any]:
        """Return the columns of *job*, which need not be in the database."""
        return {name: getattr(job, name) for name in COLUMN_ORDER}

    def _fence(self, connection: Any, text: str | None) -> tuple[bool, bool]:
        return True, False


class _Performance:
    """What a handler is run with."""

    def __init__(
        self,
        handler: Handler,
        number: int,
        state: Mapping[str, Any] | None,
        resources: Any,
        middleware: Sequence[Around],
    ) -> None:
        self.handler, self.number, self.state = handler, number, state
        self.resources, self.middleware = resources, middleware

    def attempt(self, job: Any) -> _Performed:
        """Return the attempt at *job*, whose row nobody changes."""
        decode_payload(job)
        attempt = _Performed(
            job, job_tables(job), lease=DEFAULT_LEASE, claimed_at=time.monotonic()
        )
        attempt.number = self.number
        attempt.started_at = datetime.now(UTC)
        if self.state is not None:
            attempt.state = self.state
        return attempt

    def call(self, job: Any, ctx: Any) -> Any:
        """Call the handler, inside the middleware; one for many jobs with a batch."""
        if self.handler.many:
            run = arun_alone if self.handler.is_async else run_alone
            return run(self.handler, job, ctx)
        call: Callable[[], Any] = partial(self.handler.call, job, ctx)
        for layer in reversed(self.middleware):
            call = partial(layer, job, ctx, call)
        return call()

    # Without a session

    def unattached(self, job: Any) -> Outcome:
        """Run a sync handler."""
        __tracebackhide__ = True
        ctx = Context(self.attempt(job), self.resources, _no_session, _held)
        try:
            return _outcome(self.call(job, ctx))
        except Outcome as outcome:
            return outcome

    async def aunattached(self, job: Any) -> Outcome:
        """Run an async handler."""
        __tracebackhide__ = True
        ctx = AsyncContext(self.attempt(job), self.resources, _no_session, _aheld)
        try:
            return _outcome(await self.call(job, ctx))
        except Outcome as outcome:
            return outcome

    # With one

    def attached(self, job: Any, session: Session) -> Outcome:
        """Run a sync handler, its job attached to a session on the same connection."""
        __tracebackhide__ = True
        joint, attempt = self._join(job, session)
        ctx = Context(attempt, self.resources, joint.opener(None), _held)
        with attempt.watching(), _unrefused(attempt):
            try:
                if needs_session(type(job)):
                    _ = ctx.session
                outcome = _outcome(self.call(attempt.job, ctx))
                if attempt.used:
                    attempt.one_commit = False  # this is the one
                    ctx.session.connection(bind_arguments=bind_arguments(attempt))
                    ctx.session.commit()
            except Outcome as raised:
                return raised
            finally:
                attempt.ended = True
                if ctx._session is not None:
                    ctx._session.close()
        return outcome

    async def aattached(self, job: Any, session: AsyncSession) -> Outcome:
        """Run a sync or async handler under the test's AsyncSession."""
        __tracebackhide__ = True
        try:
            if self.handler.is_async:
                return await self._aattached(job, session)
            return await session.run_sync(lambda sync: self.attached(job, sync))
        finally:
            await session.run_sync(show_new_values, reload=True)

    async def _aattached(self, job: Any, session: AsyncSession) -> Outcome:
        __tracebackhide__ = True
        joint, attempt = await session.run_sync(lambda sync: self._join(job, sync))
        opener = joint.async_opener(session, None)
        ctx = AsyncContext(attempt, self.resources, opener, _aheld)
        with attempt.watching(), _unrefused(attempt):
            try:
                if needs_session(type(job)):
                    _ = ctx.session
                outcome = _outcome(await self.call(attempt.job, ctx))
                if attempt.used:
                    attempt.one_commit = False  # this is the one
                    await ctx.session.connection(bind_arguments=bind_arguments(attempt))
                    await ctx.session.commit()
            except Outcome as raised:
                return raised
            finally:
                attempt.ended = True
                if ctx._session is not None:
                    await ctx._session.close()
        return outcome

    def _join(self, job: Any, session: Session) -> tuple[Joint, _Performed]:
        session.add(job)
        joint = Joint(session, job_tables(job), None, "perform")
        key = inspect(job).identity

        def load(own: Session) -> Any:
            found = own.get_one(type(job), key)
            load_relationships(own, [found])
            return found

        attempt = self.attempt(joint.run(load))
        joint.attempt(attempt)
        return joint, attempt


def _outcome(value: Any) -> Outcome:
    outcome = value if isinstance(value, Outcome) else Complete(value)
    if isinstance(outcome, Complete):
        dump_result(outcome.result)  # what a row cannot hold is an error
    return outcome


@contextmanager
def _unrefused(attempt: _Performed) -> Iterator[None]:
    """Raise what was refused even if the handler hid it."""
    try:
        yield
    finally:
        if attempt.refusal is not None:
            raise attempt.refusal


def _no_session(_: Any) -> NoReturn:
    raise JobValueError(
        "the handler uses ctx.session, but there is none; give the test's:"
        " perform(job, session=session)"
    )


def _held(_: Any, __: timedelta) -> bool:
    return True


async def _aheld(_: Any, __: timedelta) -> bool:
    return True
