"""Run one attempt from hand-over to settlement, in a thread or on the loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
)
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.orm import Session

from sqla_jobs._core.conceal import conceal
from sqla_jobs._core.outcomes import Discard, Outcome
from sqla_jobs._core.settle import Settlement, settle_error, settle_outcome
from sqla_jobs._core.states import JobState
from sqla_jobs._core.text import is_whole
from sqla_jobs._dialects import JobDialect
from sqla_jobs._store.lease import renew_many, settled_state
from sqla_jobs.errors import PayloadError
from sqla_jobs.handlers import Handler, is_async
from sqla_jobs.models import decode_payload
from sqla_jobs.runner.attempt import Attempt, Interruption, TaskCancelled
from sqla_jobs.runner.batch_context import arun_alone, run_alone
from sqla_jobs.runner.context import AsyncContext, Context, bind_arguments
from sqla_jobs.runner.control import Control, Outage, timed
from sqla_jobs.runner.guard import Guard
from sqla_jobs.runner.permits import agive_back, give_back, refuse_async, verdict
from sqla_jobs.runner.sessions import needs_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from sqla_jobs.runner.acontrol import AsyncControl
    from sqla_jobs.runner.options import Options

log = logging.getLogger("sqla_jobs")
T = TypeVar("T")
Around = Callable[..., Any]
OnError = Callable[[Any, Any, BaseException], Any]


@dataclass(frozen=True)
class Surroundings:
    """What every attempt of a runner shares."""

    handlers: dict[str, Handler]
    middleware: Sequence[Around]
    on_error: OnError | None
    resources: Any
    dialect: JobDialect

    @staticmethod
    def of(
        options: Options,
        handlers: dict[str, Handler],
        dialect: JobDialect,
        *,
        asynchronous: bool,
    ) -> Surroundings:
        """Return those of a runner: async middleware is for async handlers."""
        layers = [one for one in options.middleware if is_async(one) is asynchronous]
        on_error, resources = options.on_error, options.resources
        return Surroundings(handlers, layers, on_error, resources, dialect)

    def report(
        self, attempt: Attempt, ctx: Any, exc: BaseException, trace: str
    ) -> None:
        """Log a failed attempt and tell `on_error`; neither gets values of rows."""
        conceal(exc)
        whole = is_whole(trace)
        log.warning(
            "job %s (%s) failed in attempt %s of %s: %s%s",
            attempt.job_id,
            attempt.kind,
            attempt.number,
            attempt.max_attempts,
            type(exc).__name__[:100],
            "" if whole else f"\n{trace}",
            extra=log_fields(attempt),
            exc_info=exc if whole else None,
        )
        if self.on_error is not None:
            try:
                self.on_error(attempt.job, ctx, exc)
            except BaseException as failure:  # it must not cost the slot
                conceal(failure)
                log.exception("on_error itself failed", extra=log_fields(attempt))


def log_fields(attempt: Attempt) -> dict[str, Any]:
    """Return the fields every log record about an attempt carries."""
    return {
        "job_id": attempt.job_id,
        "kind": attempt.kind,
        "attempt": attempt.number,
        "queue": attempt.queue,
    }


def log_settled(attempt: Attempt, state: JobState | None) -> None:
    """Log what became of an attempt; None if it no longer held the lease."""
    if state is None:
        log.warning(
            "job %s: attempt %s no longer held the lease; its outcome was dropped",
            attempt.job_id, attempt.number, extra=log_fields(attempt),
        )  # fmt: skip
    elif state is JobState.DISCARDED:
        log.error("job %s discarded", attempt.job_id, extra=log_fields(attempt))
    elif log.isEnabledFor(logging.DEBUG):
        log.debug("job %s %s", attempt.job_id, state, extra=log_fields(attempt))


def refuse_undecodable(attempt: Attempt) -> Settlement | None:
    """
    Return the settlement that discards a job whose payload no longer decodes.

    Raises nothing: whatever else goes wrong is a failure of the attempt.
    """
    try:
        decode_payload(attempt.job)
    except PayloadError as exc:
        log.warning(
            "job %s discarded: %s", attempt.job_id, exc, extra=log_fields(attempt)
        )
        return settle_outcome(attempt.facts, Discard(f"payload does not decode: {exc}"))
    except Exception as exc:
        conceal(exc)
        log.exception("job %s failed", attempt.job_id, extra=log_fields(attempt))
        return settle_error(attempt.facts, exc)
    return None


class SyncExecution:
    """Runs attempts with sync handlers, each in the calling thread."""

    def __init__(
        self,
        around: Surroundings,
        control: Control,
        open_session: Callable[[Guard], Session],
    ) -> None:
        self.around, self.control, self.open_session = around, control, open_session

    def __call__(self, attempt: Attempt) -> Settlement | None:
        """Run the attempt; return what is left to settle. Raises nothing."""
        refused = refuse_undecodable(attempt)
        if refused is not None:
            attempt.ended = True
            return refused
        ctx = Context(attempt, self.around.resources, self.open_session, self._renew)
        asks = self.around.handlers[attempt.kind].acquire is not None
        permit = ExitStack() if asks else None
        try:
            return self._run(attempt, ctx, permit)
        finally:
            attempt.ended = True
            if attempt.session is not None:
                quietly(attempt.session.close)
            if permit is not None:
                give_back(attempt.job_id, permit.close)

    def _run(
        self, attempt: Attempt, ctx: Context[Any], permit: ExitStack | None
    ) -> Settlement | None:
        try:
            attempt.begin()
            value: Any = None if permit is None else self._acquire(attempt, permit)
            if value is None:
                value = self._call(attempt, ctx)
            settlement = attempt.returned(value)
            if settlement is None or not attempt.used or attempt.interruption:
                return settlement
            return self._commit(attempt, ctx, settlement)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            return self._failed(attempt, ctx, exc)

    def _acquire(self, attempt: Attempt, permit: ExitStack) -> Outcome | None:
        """Ask for the permit; return the outcome of one that is refused."""
        handler = self.around.handlers[attempt.kind]
        assert handler.acquire is not None
        answer = handler.acquire(attempt.job)
        refuse_async(handler.acquire_name, answer)
        refusal = verdict(handler.acquire_name, answer)
        if isinstance(answer, AbstractContextManager):
            permit.enter_context(answer)
        attempt.check_open()
        return refusal

    def _call(self, attempt: Attempt, ctx: Context[Any]) -> Any:
        if needs_session(type(attempt.job)):
            _ = ctx.session
        job, handler = attempt.job, self.around.handlers[attempt.kind]
        if handler.many:
            return run_alone(handler, job, ctx)
        if not self.around.middleware:
            return handler.call(job, ctx)
        call: Callable[[], Any] = partial(handler.call, job, ctx)
        for layer in reversed(self.around.middleware):
            call = partial(layer, job, ctx, call)
        return call()

    def _commit(
        self, attempt: Attempt, ctx: Context[Any], settlement: Settlement
    ) -> Settlement | None:
        """Commit effects and outcome together."""
        session = ctx.session
        attempt.final = settlement
        try:
            session.connection(bind_arguments=bind_arguments(attempt))
            session.commit()
        except Exception as exc:
            if attempt.fence_sent and self.around.dialect.is_outage(exc):
                return self._resolve(attempt, exc)
            raise
        return None

    def _resolve(self, attempt: Attempt, exc: Exception) -> Settlement | None:
        """The COMMIT got no answer: look whether it happened before anything else."""
        look = partial(_look, attempt=attempt)
        state = self.insist(f"job {attempt.job_id}", look, exc)
        return resolution(attempt, state, exc)

    def insist(
        self, name: str, work: Callable[[Session], T], exc: Exception | None = None
    ) -> T:
        """Run *work* until the database answers; *exc* is its last failure, if any."""
        outage = Outage(name)
        pause = 0.0 if exc is None else outage.failed(exc)
        while True:
            time.sleep(pause)
            try:
                found = self.control.run(work)
            except Exception as again:
                if not self.around.dialect.is_outage(again):
                    raise
                pause = outage.failed(again)
            else:
                outage.worked()
                return found

    def _failed(
        self, attempt: Attempt, ctx: Context[Any], exc: BaseException
    ) -> Settlement | None:
        if attempt.session is not None:
            quietly(attempt.session.rollback)
        settlement = attempt.raised(exc, self.around.dialect)
        if settlement is not None and settlement.traceback is not None:
            self.around.report(attempt, ctx, exc, settlement.traceback)
        return settlement

    def _renew(self, attempt: Attempt, length: timedelta) -> bool:
        work = timed(partial(_renew, attempt=attempt, length=length))
        sent, held = self.control.run(work)
        if held:
            attempt.renewed(sent, length)
        return held


class AsyncExecution:
    """Runs attempts with async handlers, each in its own task."""

    def __init__(
        self,
        around: Surroundings,
        control: AsyncControl,
        open_session: Callable[[Guard], AsyncSession],
    ) -> None:
        self.around, self.control, self.open_session = around, control, open_session

    async def __call__(self, attempt: Attempt) -> Settlement | None:
        """Run the attempt; return what is left to settle. Raises nothing."""
        refused = refuse_undecodable(attempt)
        if refused is not None:
            attempt.ended = True
            return refused
        ctx = AsyncContext(
            attempt, self.around.resources, self.open_session, self._renew
        )
        asks = self.around.handlers[attempt.kind].acquire is not None
        permit = AsyncExitStack() if asks else None
        try:
            return await self._run(attempt, ctx, permit)
        finally:
            attempt.ended = True
            if ctx._session is not None:
                await aquietly(ctx._session.close)
            if permit is not None:
                await agive_back(attempt.job_id, permit.aclose)

    async def _run(
        self, attempt: Attempt, ctx: AsyncContext[Any], permit: AsyncExitStack | None
    ) -> Settlement | None:
        try:
            attempt.begin()
            value: Any = None
            if permit is not None:
                value = await self._acquire(attempt, permit)
            if value is None:
                value = await self._call(attempt, ctx)
            settlement = attempt.returned(value)
            if settlement is None or not attempt.used or attempt.interruption:
                return settlement
            return await self._commit(attempt, ctx, settlement)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            return await self._failed(attempt, ctx, exc)

    async def _acquire(
        self, attempt: Attempt, permit: AsyncExitStack
    ) -> Outcome | None:
        handler = self.around.handlers[attempt.kind]
        assert handler.acquire is not None
        answer = handler.acquire(attempt.job)
        if isawaitable(answer):
            answer = await answer
        refusal = verdict(handler.acquire_name, answer)
        if isinstance(answer, AbstractAsyncContextManager):
            await permit.enter_async_context(answer)
        elif isinstance(answer, AbstractContextManager):
            permit.enter_context(answer)
        attempt.check_open()
        return refusal

    async def _call(self, attempt: Attempt, ctx: AsyncContext[Any]) -> Any:
        if needs_session(type(attempt.job)):
            _ = ctx.session
        job, handler = attempt.job, self.around.handlers[attempt.kind]
        if handler.many:
            return await arun_alone(handler, job, ctx)
        if not self.around.middleware:
            return await handler.call(job, ctx)
        call: Callable[[], Awaitable[Any]] = partial(handler.call, job, ctx)
        for layer in reversed(self.around.middleware):
            call = partial(layer, job, ctx, call)
        return await call()

    async def _commit(
        self, attempt: Attempt, ctx: AsyncContext[Any], settlement: Settlement
    ) -> Settlement | None:
        """Commit effects and outcome together."""
        session = ctx.session
        attempt.final = settlement
        try:
            await session.connection(bind_arguments=bind_arguments(attempt))
            await session.commit()
        except Exception as exc:
            if attempt.fence_sent and self.around.dialect.is_outage(exc):
                return await self._resolve(attempt, exc)
            raise
        return None

    async def _resolve(self, attempt: Attempt, exc: Exception) -> Settlement | None:
        """The COMMIT got no answer: look whether it happened before anything else."""
        look = partial(_look, attempt=attempt)
        state = await self.insist(f"job {attempt.job_id}", look, exc)
        return resolution(attempt, state, exc)

    async def insist(
        self, name: str, work: Callable[[Session], T], exc: Exception | None = None
    ) -> T:
        """Run *work* until the database answers; *exc* is its last failure, if any."""
        outage = Outage(name)
        pause = 0.0 if exc is None else outage.failed(exc)
        while True:
            await asyncio.sleep(pause)
            try:
                found = await self.control.run(work)
            except Exception as again:
                if not self.around.dialect.is_outage(again):
                    raise
                pause = outage.failed(again)
            else:
                outage.worked()
                return found

    async def _failed(
        self, attempt: Attempt, ctx: AsyncContext[Any], exc: BaseException
    ) -> Settlement | None:
        if ctx._session is not None:
            await aquietly(ctx._session.rollback)
        task = asyncio.current_task()
        if isinstance(exc, asyncio.CancelledError) and task and task.cancelling():
            exc = TaskCancelled()
        settlement = attempt.raised(exc, self.around.dialect)
        if settlement is not None and settlement.traceback is not None:
            self.around.report(attempt, ctx, exc, settlement.traceback)
        return settlement

    async def _renew(self, attempt: Attempt, length: timedelta) -> bool:
        work = timed(partial(_renew, attempt=attempt, length=length))
        sent, held = await self.control.run(work)
        if held:
            attempt.renewed(sent, length)
        return held


def resolution(
    attempt: Attempt, state: JobState | None, exc: BaseException
) -> Settlement | None:
    """Return what is left to settle once the state after a lost answer is known."""
    if state is None:
        attempt.interrupt(Interruption.LOST)
        return None
    if state is not JobState.RUNNING:
        return None  # it was committed
    return settle_error(attempt.facts, exc)


def _look(session: Session, *, attempt: Attempt) -> JobState | None:
    return settled_state(session, attempt.tables, attempt.job_id, attempt.token)


def _renew(session: Session, *, attempt: Attempt, length: timedelta) -> bool:
    # Skips a row that the handler's own transaction has locked: that is held.
    pair = attempt.job_id, attempt.token
    tables, now = attempt.tables, attempt.now()
    renewed = renew_many(
        session, tables, [pair], lease=length, at_least=length, now=now
    )
    return not renewed.is_lost(*pair)


def quietly(call: Callable[[], Any]) -> None:
    """Close or roll back a session whose connection may be gone."""
    try:
        call()
    except Exception as exc:  # noqa: BLE001
        conceal(exc)
        log.debug("while ending a handler's session: %s", exc)


async def aquietly(call: Callable[[], Awaitable[Any]]) -> None:
    """Do the same on the event loop."""
    try:
        await call()
    except Exception as exc:  # noqa: BLE001
        conceal(exc)
        log.debug("while ending a handler's session: %s", exc)
