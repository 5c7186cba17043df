"""Batches: attempts of one kind that share a session, a transaction and their fate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from sqla_jobs._core.conceal import conceal
from sqla_jobs._core.settle import Settlement
from sqla_jobs._core.states import SUSPECT_CRASHES, JobState
from sqla_jobs._store.lease import Renewed, lock_held, renew_many
from sqla_jobs._store.reread import reread
from sqla_jobs._store.settle import settle
from sqla_jobs.errors import AttemptInterrupted
from sqla_jobs.handlers import Handler
from sqla_jobs.models import JobTables
from sqla_jobs.runner.attempt import Attempt, Interruption, TaskCancelled
from sqla_jobs.runner.batch_context import (
    AsyncBatchContext,
    BatchContext,
    read_answer,
)
from sqla_jobs.runner.context import bind_arguments, checked_length
from sqla_jobs.runner.control import timed
from sqla_jobs.runner.execute import (
    AsyncExecution,
    SyncExecution,
    aquietly,
    quietly,
    refuse_undecodable,
)
from sqla_jobs.runner.guard import Guard
from sqla_jobs.runner.sessions import needs_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from sqla_jobs._dialects import JobDialect

log = logging.getLogger("sqla_jobs")
Done = Callable[[Attempt, Settlement | None], None]
Start = Callable[[Coroutine[Any, Any, Any], Sequence[Attempt]], asyncio.Task[Any]]
Settlements = Sequence[Settlement | None]
ENDINGS = (SystemExit, KeyboardInterrupt, TaskCancelled)
"""What ends the attempts of a batch instead of making it run its jobs alone."""


def units(
    attempts: Sequence[Attempt], handlers: Mapping[str, Handler]
) -> list[list[Attempt]]:
    """
    Return what runs together: the jobs of a batch handler, all others alone.

    A job that may kill its process has no company.
    """
    found: list[list[Attempt]] = []
    filling: dict[type[Any], list[Attempt]] = {}
    for attempt in attempts:
        if not handlers[attempt.kind].many or attempt.suspect >= SUSPECT_CRASHES:
            found.append([attempt])
            continue
        cls = type(attempt.job)
        unit = filling.get(cls)
        if unit is None or len(unit) >= cls.__job_options__.batch:
            unit = filling[cls] = []
            found.append(unit)
        unit.append(attempt)
    return found


class Batch(Guard):
    """Several attempts while they run together; the guard of their session."""

    one_commit = True

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        self.attempts, self.tables = attempts, attempts[0].tables
        self.final: list[Settlement] | None = None
        self._states: dict[int, JobState] = {}

    @property
    def jobs(self) -> list[Any]:
        """The jobs, in the order of the claim."""
        return [attempt.job for attempt in self.attempts]

    @property
    def ending(self) -> bool:
        """Whether the outcomes are known and go into the next commit."""
        return self.final is not None

    def begin(self) -> None:
        """
        Note that the handler is about to run.

        Raises:
            AttemptInterrupted: If one of the attempts was interrupted meanwhile.
        """
        now = time.monotonic()
        for attempt in self.attempts:
            attempt.begin(now)

    def check_open(self) -> None:
        """
        Refuse further work.

        Raises:
            AttemptInterrupted: If one of the attempts was interrupted.
            JobValueError: If a commit was refused before.
        """
        for attempt in self.attempts:
            attempt.check_open()
        super().check_open()

    def returned(self, value: Any) -> Settlements:
        """
        Return the settlements of a handler that returned *value*.

        Raises:
            JobValueError: If it is no answer for these jobs.
            PayloadError: If a result is not JSON.
        """
        outcomes = read_answer(value, self.attempts)
        return [one.returned(outcomes.get(one.job_id)) for one in self.attempts]

    def lock_jobs(self, connection: Connection) -> None:
        """
        Lock the rows of the jobs.

        Raises:
            AttemptInterrupted: If a lease is lost.
        """
        pairs = [(attempt.job_id, attempt.token) for attempt in self.attempts]
        held = lock_held(connection, self.tables, pairs)
        for attempt, pair in zip(self.attempts, pairs, strict=True):
            if pair not in held:
                attempt.interrupt(Interruption.LOST)
        self.check_open()

    def write_fence(self, connection: Connection, sent: float) -> None:
        """
        Write the outcomes; all of them, or none.

        Raises:
            AttemptInterrupted: If a lease is lost.
        """
        until = min(attempt.held_until for attempt in self.attempts)
        within = self.attempts[0].within(until)
        rows = self.final or []
        states = settle(connection, self.tables, rows, within=within, now=self.now())
        for attempt in self.attempts:
            if attempt.job_id not in states:
                attempt.interrupt(Interruption.LOST)
        self.check_open()
        self._states = states

    def committed(self) -> None:
        """Note what became of the jobs: the COMMIT took effect."""
        for attempt, row in zip(self.attempts, self.final or [], strict=False):
            attempt.final, attempt.final_state = row, self._states.get(row.job_id)

    def renewals(self, for_: timedelta | None) -> list[Callable[[Session], Renewed]]:
        """
        Return the renewals to send: one statement per length of lease.

        Raises:
            AttemptInterrupted: If an attempt was interrupted.
            JobValueError: If *for_* is below 3 s.
        """
        self.check_open()
        groups: dict[timedelta, list[tuple[int, int]]] = {}
        for attempt in self.attempts:
            length = checked_length(attempt, for_)
            groups.setdefault(length, []).append((attempt.job_id, attempt.token))
        return [
            partial(_renew, tables=self.tables, pairs=pairs, length=length)
            for length, pairs in groups.items()
        ]

    def renewed(self, answer: Renewed, sent: float, for_: timedelta | None) -> None:
        """
        Note what a renewal sent at monotonic *sent* has answered.

        Raises:
            AttemptInterrupted: If a lease is lost.
        """
        for attempt in self.attempts:
            if answer.is_lost(attempt.job_id, attempt.token):
                attempt.interrupt(Interruption.LOST)
            elif attempt.job_id in answer.held:
                attempt.renewed(sent, for_)
        self.check_open()

    def part(
        self, exc: BaseException, dialect: JobDialect, done: Done
    ) -> list[Attempt]:
        """
        Hand over the attempts that *exc* ends; return those that may run alone.

        One that was interrupted ends; the others go on without it. What ends a process
        or a task ends them all.
        """
        rest = [one for one in self.attempts if one.interruption is None]
        if isinstance(exc, ENDINGS) and len(rest) == len(self.attempts):
            fail_all(rest, exc, dialect, done)
            return []
        for attempt in self.attempts:
            if attempt not in rest:
                finish(attempt, attempt.interrupted(), done)
        if not isinstance(exc, AttemptInterrupted | TaskCancelled):
            kind = self.attempts[0].kind
            conceal(exc)
            log.warning(
                "a batch of %s jobs (%s) failed, they run one by one: %s",
                len(self.attempts), kind, type(exc).__name__,
                exc_info=exc, extra={"kind": kind},
            )  # fmt: skip
        return rest


def finish(attempt: Attempt, settlement: Settlement | None, done: Done) -> None:
    """Hand over what is left to settle of an attempt that has ended."""
    attempt.ended = True
    done(attempt, settlement)


def fail_all(
    attempts: Sequence[Attempt], exc: BaseException, dialect: JobDialect, done: Done
) -> None:
    """Hand over attempts that have all ended in *exc*."""
    for attempt in attempts:
        finish(attempt, attempt.raised(exc, dialect), done)


def rereading(rest: Sequence[Attempt]) -> Callable[[Session], dict[int, Any]]:
    """
    Return what reads the jobs of *rest* afresh: those they had were rolled back.

    It also tells what became of a COMMIT that got no answer: it was for all or none.
    """
    pairs = [(one.job_id, one.token) for one in rest]
    return partial(reread, tables=rest[0].tables, pairs=pairs)


def again(
    rest: Sequence[Attempt], jobs: Mapping[int, Any], done: Done
) -> list[Attempt]:
    """Give *rest* their jobs as they were read; return those still held."""
    for attempt in rest:
        if attempt.job_id in jobs:
            attempt.put_off(jobs[attempt.job_id])
        else:
            attempt.interrupt(Interruption.LOST)
            finish(attempt, None, done)
    return [one for one in rest if one.job_id in jobs]


def _decodable(attempts: Sequence[Attempt], done: Done) -> list[Attempt]:
    found = []
    for attempt in attempts:
        refused = refuse_undecodable(attempt)
        if refused is None:
            found.append(attempt)
        else:
            finish(attempt, refused, done)
    return found


class SyncBatches:
    """Runs batches with sync handlers, each in the calling thread."""

    def __init__(self, single: SyncExecution) -> None:
        self.around, self.control = single.around, single.control
        self.open_session, self._insist = single.open_session, single.insist

    def __call__(self, attempts: Sequence[Attempt], done: Done) -> list[Attempt]:
        """
        Run the attempts together; return those that must run alone.

        Each of the others is given to *done*. Raises nothing.
        """
        live = _decodable(attempts, done)
        if len(live) < 2:
            return live
        batch = Batch(live)
        try:
            settlements = self._run(batch)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            return self._failed(batch, exc, done)
        finally:
            if batch.session is not None:
                quietly(batch.session.close)
        for attempt, settlement in zip(live, settlements, strict=True):
            finish(attempt, settlement, done)
        return []

    def _run(self, batch: Batch) -> Settlements:
        def opened() -> Session:
            if batch.session is None:
                batch.check_open()
                self.open_session(batch)
            assert batch.session is not None
            return batch.session

        batch.begin()
        first = batch.attempts[0]
        renew = partial(self._renew, batch)
        ctx = BatchContext(batch.attempts, self.around.resources, opened, renew)
        if needs_session(type(first.job)):
            opened()
        value = self.around.handlers[first.kind].call(batch.jobs, ctx)
        settlements = batch.returned(value)
        if not batch.used:
            return settlements
        batch.check_open()
        batch.final = [row for row in settlements if row is not None]
        session = opened()
        session.connection(bind_arguments=bind_arguments(batch))
        session.commit()
        return [None] * len(settlements)

    def _renew(self, batch: Batch, for_: timedelta | None) -> None:
        for work in batch.renewals(for_):
            sent, answer = self.control.run(timed(work))
            batch.renewed(answer, sent, for_)

    def _failed(self, batch: Batch, exc: BaseException, done: Done) -> list[Attempt]:
        if batch.session is not None:
            quietly(batch.session.rollback)
        rest = batch.part(exc, self.around.dialect, done)
        if not rest:
            return []
        try:
            return again(rest, self._insist("a batch", rereading(rest)), done)
        except Exception as other:  # noqa: BLE001 - a failure of each, then
            fail_all(rest, other, self.around.dialect, done)
            return []


class AsyncBatches:
    """Runs batches with async handlers, each in a task of its own."""

    def __init__(self, single: AsyncExecution) -> None:
        self.around, self.control = single.around, single.control
        self.open_session, self._insist = single.open_session, single.insist

    async def __call__(
        self, attempts: Sequence[Attempt], done: Done, start: Start
    ) -> list[Attempt]:
        """
        Run the attempts together; return those that must run alone.

        Args:
            done: Called with each of the others.
            start: Makes the task that is cancelled when an attempt is interrupted: not
                this one, which has to clean up.
        """
        live = _decodable(attempts, done)
        if len(live) < 2:
            return live
        batch = Batch(live)
        opened: list[AsyncSession] = []
        task = start(self._guarded(batch, opened), live)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
        answer = TaskCancelled() if task.cancelled() else task.result()
        try:
            if isinstance(answer, BaseException):
                return await self._failed(batch, opened, answer, done)
        finally:
            for session in opened:
                await aquietly(session.close)
        for attempt, settlement in zip(live, answer, strict=True):
            finish(attempt, settlement, done)
        return []

    async def _guarded(
        self, batch: Batch, opened: list[AsyncSession]
    ) -> Settlements | BaseException:
        try:
            return await self._run(batch, opened)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task and task.cancelling():
                return TaskCancelled()
            return exc

    async def _run(self, batch: Batch, sessions: list[AsyncSession]) -> Settlements:
        def opened() -> AsyncSession:
            if not sessions:
                batch.check_open()
                sessions.append(self.open_session(batch))
            return sessions[0]

        batch.begin()
        first = batch.attempts[0]
        renew = partial(self._renew, batch)
        ctx = AsyncBatchContext(batch.attempts, self.around.resources, opened, renew)
        if needs_session(type(first.job)):
            opened()
        value = await self.around.handlers[first.kind].call(batch.jobs, ctx)
        settlements = batch.returned(value)
        if not batch.used:
            return settlements
        batch.check_open()
        batch.final = [row for row in settlements if row is not None]
        session = opened()
        await session.connection(bind_arguments=bind_arguments(batch))
        await session.commit()
        return [None] * len(settlements)

    async def _renew(self, batch: Batch, for_: timedelta | None) -> None:
        for work in batch.renewals(for_):
            sent, answer = await self.control.run(timed(work))
            batch.renewed(answer, sent, for_)

    async def _failed(
        self,
        batch: Batch,
        opened: Sequence[AsyncSession],
        exc: BaseException,
        done: Done,
    ) -> list[Attempt]:
        for session in opened:
            await aquietly(session.rollback)
        rest = batch.part(exc, self.around.dialect, done)
        if not rest:
            return []
        try:
            return again(rest, await self._insist("a batch", rereading(rest)), done)
        except Exception as other:  # noqa: BLE001 - a failure of each, then
            fail_all(rest, other, self.around.dialect, done)
            return []


def _renew(
    session: Session,
    *,
    tables: JobTables,
    pairs: Sequence[tuple[int, int]],
    length: timedelta,
) -> Renewed:
    return renew_many(session, tables, pairs, lease=length, at_least=length)
