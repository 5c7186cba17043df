"""What a runner does with one job, inside a test's transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypedDict
from uuid import UUID, uuid4

from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs._core.limits import NO_FEATURES
from sqla_jobs._core.options import unknown
from sqla_jobs._core.outcomes import Outcome
from sqla_jobs._core.settle import Settlement, settle_error
from sqla_jobs._core.states import WAITING, JobState
from sqla_jobs._store.claim import (
    DEFAULT_LEASE,
    check_names,
    claim_jobs,
    load_relationships,
)
from sqla_jobs._store.holds import expire_holds
from sqla_jobs._store.lease import settled_state
from sqla_jobs._store.probe import claim_job, make_available
from sqla_jobs._store.settle import settle
from sqla_jobs._store.sweep import features_of, rescue, stage
from sqla_jobs.errors import JobDefinitionError, JobValueError
from sqla_jobs.handlers import Handler, handler_for, is_async
from sqla_jobs.models import JobMixin, JobTables, job_tables
from sqla_jobs.runner.attempt import Attempt
from sqla_jobs.runner.execute import (
    Around,
    AsyncExecution,
    OnError,
    Surroundings,
    SyncExecution,
)
from sqla_jobs.runner.options import check_callables, choose_handlers
from sqla_jobs.testing._clock import ManualClock
from sqla_jobs.testing._joined import USED, JoinedAttempt, Joint

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker


class RunOptions(TypedDict, total=False):
    """The keywords of `run_one`, which `drain` takes too."""

    queues: Sequence[str] | None
    kinds: Sequence[str | type[Any]] | None
    clock: ManualClock | None
    raise_errors: bool
    resources: Any
    middleware: Sequence[Around]
    on_error: OnError | None
    session_maker: sessionmaker[Any] | async_sessionmaker[Any] | None


@dataclass(frozen=True)
class Wanted:
    """What the caller of a helper asks for."""

    verb: str
    job: Any = None  # a job, a job class or None
    queues: Sequence[str] | None = None
    kinds: Sequence[str | type[Any]] | None = None
    clock: ManualClock | None = None
    raise_errors: bool = True
    resources: Any = None
    middleware: Sequence[Around] = ()
    on_error: OnError | None = None
    session_maker: sessionmaker[Any] | async_sessionmaker[Any] | None = None

    @classmethod
    def of(cls, verb: str, job: Any, options: RunOptions) -> Self:
        """
        Return what is asked for by keywords.

        Raises:
            TypeError: If one is unknown.
        """
        known = RunOptions.__annotations__
        for name in options:
            if name not in known:
                raise TypeError(f"{verb}(): {unknown('keyword', name, known)}")
        return cls(verb, job, **options)


class _Noting:
    """Added before an execution: keeps what the handler raised."""

    def _failed(self, attempt: Any, ctx: Any, exc: BaseException) -> Any:
        attempt.error = exc
        return super()._failed(attempt, ctx, exc)  # type: ignore[misc]

    def _resolve(self, attempt: Attempt, exc: BaseException) -> NoReturn:
        raise exc  # the test's only connection is lost


class _Sync(_Noting, SyncExecution):
    pass


class _Async(_Noting, AsyncExecution):
    pass


class _AwaitedJoint:
    """A `Joint` as the control of an AsyncExecution."""

    def __init__(self, joint: Joint, session: AsyncSession) -> None:
        self._joint, self._session, self.dialect = joint, session, joint.dialect

    async def run(self, work: Callable[[Session], Any]) -> Any:
        """Run *work* in a savepoint."""
        return await self._session.run_sync(lambda _: self._joint.run(work))


class Bench:
    """One job table, worked off in the test's own transaction."""

    def __init__(
        self,
        session: Session,
        tables: JobTables,
        wanted: Wanted,
        outer: AsyncSession | None,
    ) -> None:
        self.tables, self.wanted, self.outer = tables, wanted, outer
        self.joint = Joint(session, tables, wanted.clock, wanted.verb)
        self.handlers = _handlers(tables, wanted)
        self.runner_id: UUID = uuid4()
        self.features = NO_FEATURES

    # Before and after the handler: sync, also under an AsyncSession

    def take(self) -> JoinedAttempt | None:
        """Claim the next job that is due, or the wanted one; None without one."""
        sent = time.monotonic()
        with self.joint.explaining():
            self.joint.run(self._sweep)
            found = self.joint.run(self._claim)
        if not found:
            return None
        attempt = JoinedAttempt(
            found[0],
            self.tables,
            lease=DEFAULT_LEASE,
            claimed_at=sent,
            features=lambda: self.features,
        )
        return self.joint.attempt(attempt)

    def hurry(self, states: Sequence[JobState]) -> int:
        """Make waiting jobs available before their time; return how many."""
        if not states:
            return 0
        work = partial(make_available, tables=self.tables, states=states)
        return self.joint.run(work)

    def settle(
        self, attempt: JoinedAttempt, settlement: Settlement | None
    ) -> JobState | None:
        """Write what is left to settle, and return the job's new state."""
        if attempt.refusal is not None:
            raise attempt.refusal
        if settlement is not None:
            try:
                self._write(attempt, settlement)
            except Exception as exc:
                if not self.joint.dialect.is_refusal(exc):
                    raise
                # As a runner does: a value that no database takes is a failure.
                attempt.error = exc
                cause = getattr(exc, "orig", None) or exc
                self._write(attempt, settle_error(attempt.facts, cause))
        state = self.joint.run(
            partial(
                settled_state,
                tables=self.tables,
                job_id=attempt.job_id,
                token=attempt.token,
            )
        )
        error = attempt.error
        if error is not None and self._concerns_test(attempt, error):
            raise error
        return state

    def _concerns_test(self, attempt: JoinedAttempt, error: BaseException) -> bool:
        if attempt.interruption is not None or isinstance(error, Outcome):
            return False
        # What is no Exception is the test's own: KeyboardInterrupt, pytest.fail().
        return self.wanted.raise_errors or not isinstance(error, Exception)

    def _write(self, attempt: JoinedAttempt, settlement: Settlement) -> None:
        work = partial(
            settle, tables=self.tables, settlements=[settlement], now=attempt.now()
        )
        self.joint.run(work)

    def _sweep(self, session: Session) -> None:
        now = self.joint.now()
        rescue(session, self.tables.root, now=now)
        staged = stage(session, self.tables.root, now=now)
        if staged.holds_due:
            expire_holds(session, self.tables, now=now)
        self.features = features_of(session, self.tables, staged)

    def _claim(self, session: Session) -> list[Any]:
        now, one = self.joint.now(), self.wanted.job
        if isinstance(one, JobMixin):
            jobs = [self._claim_one(session, one)]
        else:
            names = check_names("queues", self.wanted.queues)
            jobs = claim_jobs(
                session,
                self.tables,
                kinds=list(self.handlers),
                queues=None if names is None else dict.fromkeys(names, 1),
                limit=1,
                lease=DEFAULT_LEASE,
                runner_id=self.runner_id,
                features=self.features,
                now=now,
            )
        for job in jobs:
            self._refuse_async(job)
        load_relationships(session, jobs)
        return jobs

    def _claim_one(self, session: Session, job: Any) -> Any:
        if job.id is None:
            raise JobValueError(
                f"{self.wanted.verb}(): {job!r} is not enqueued; session.add() it, or"
                " call perform(job), which needs no row"
            )
        found = claim_job(
            session,
            self.tables,
            job.id,
            lease=DEFAULT_LEASE,
            runner_id=self.runner_id,
            now=self.joint.now(),
        )
        if found is None:
            self.joint.outer.refresh(job)
            raise JobValueError(
                f"{self.wanted.verb}(): job {job.id} cannot run, it is {job.state}"
                + (f" until {job.run_at}" if job.state in WAITING else "")
            )
        return found

    def _refuse_async(self, job: Any) -> None:
        handler = self.handlers[job.kind]
        if handler.is_async and self.outer is None:
            raise JobDefinitionError(
                f"{self.wanted.verb}(): the handler of {type(job).__name__},"
                f" {handler.name}, is async; give an AsyncSession, or leave its kind"
                " out with kinds="
            )

    # The handler

    def run(self, attempt: JoinedAttempt) -> Settlement | None:
        """Run a sync handler."""
        maker = self.wanted.session_maker
        sync_maker = maker if isinstance(maker, sessionmaker) else None
        opener = self.joint.opener(sync_maker)
        run = _Sync(self.surroundings(False), self.joint, opener)  # type: ignore[arg-type]
        with attempt.watching():
            return run(attempt)

    async def arun(self, attempt: JoinedAttempt) -> Settlement | None:
        """Run a sync or async handler under the test's AsyncSession."""
        outer = self.outer
        assert outer is not None
        if not self.handlers[attempt.kind].is_async:
            return await outer.run_sync(lambda _: self.run(attempt))
        maker = self.wanted.session_maker
        async_maker = None if isinstance(maker, sessionmaker) else maker
        control: Any = _AwaitedJoint(self.joint, outer)
        opener = self.joint.async_opener(outer, async_maker)
        run = _Async(self.surroundings(True), control, opener)
        with attempt.watching():
            settlement = await run(attempt)
        if isinstance(attempt.error, asyncio.CancelledError):
            raise attempt.error
        return settlement

    def surroundings(self, asynchronous: bool) -> Surroundings:
        """Return what the attempt shares with others, for one kind of handler."""
        wanted = self.wanted
        around = Surroundings(
            self.handlers,
            [x for x in wanted.middleware if is_async(x) is asynchronous],
            wanted.on_error,
            wanted.resources,
            self.joint.dialect,
        )
        check_callables(around, lambda _: True)
        return around


def tables_of(session: Session, wanted: Wanted) -> list[JobTables]:
    """
    Return the job tables to look at: the wanted one's, else those the session used.

    Raises:
        JobValueError: If that cannot be told.
        JobDefinitionError: If the wanted class is no job class.
    """
    if wanted.job is not None:
        return [job_tables(wanted.job)]
    named = [kind for kind in wanted.kinds or () if isinstance(kind, type)]
    if named:
        return list(dict.fromkeys(map(job_tables, named)))
    used = {*session.info.get(USED, ())}
    used |= {job_tables(one) for one in session.new if isinstance(one, JobMixin)}
    used |= {
        job_tables(one)
        for one in session.identity_map.values()
        if isinstance(one, JobMixin)
    }
    found = sorted(used, key=lambda t: t.table.fullname) or _all_tables()
    if len(found) == 1 or used:
        return found
    names = ", ".join(t.root.__qualname__ for t in found) or "none"
    raise JobValueError(
        f"{wanted.verb}() cannot tell which job table is meant, of those mapped here:"
        f" {names}; give its class: {wanted.verb}(session, Job)"
    )


def _all_tables() -> list[JobTables]:
    classes: list[type[Any]] = [JobMixin]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    found = (cls.__dict__.get("__jobs__") for cls in classes)
    return [tables for tables in found if tables is not None]


def _handlers(tables: JobTables, wanted: Wanted) -> dict[str, Handler]:
    kinds = wanted.kinds
    cls = type(wanted.job) if isinstance(wanted.job, JobMixin) else wanted.job
    if kinds is None and cls is not None and cls is not tables.root:
        below = {c for c in tables.kinds.values() if issubclass(c, cls)}
        kinds = [cls, *(c for c in below - {cls} if handler_for(c) is not None)]
    return choose_handlers(tables, kinds, lambda _: True)


def show_new_values(session: Session, *, reload: bool) -> None:
    """
    Let the test's objects have the values that the handlers have written.

    With *reload* now: an AsyncSession cannot do it when an attribute is read.
    """
    if not reload:
        session.expire_all()
        return
    for obj in list(session.identity_map.values()):
        state = inspect(obj)
        columns = {one.key for one in state.mapper.column_attrs if not one.deferred}
        loaded = state.dict.keys() & state.mapper.attrs.keys()
        with suppress(InvalidRequestError):  # deleted meanwhile
            session.refresh(obj, columns | loaded)
