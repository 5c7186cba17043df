"""`AsyncRunner`: jobs with async handlers, each in a task; sync ones in threads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from sqla_jobs._core.plan import RETRY_SHARE, Claim, Queues, Stop, Sweep, Wait
from sqla_jobs._core.settle import Settlement
from sqla_jobs._core.states import JobState
from sqla_jobs._notify import ListenerTask, direct_engine
from sqla_jobs._store.runners import forget_runner
from sqla_jobs._store.schema import check_runnable
from sqla_jobs._store.sweep import MAX_CRASHES
from sqla_jobs.runner.attempt import Attempt, Interruption
from sqla_jobs.runner.base import FORCED_SECONDS, RunnerBase
from sqla_jobs.runner.batch import AsyncBatches, SyncBatches, units
from sqla_jobs.runner.control import Control, Outage, timed
from sqla_jobs.runner.execute import (
    Around,
    AsyncExecution,
    OnError,
    Surroundings,
    SyncExecution,
)
from sqla_jobs.runner.options import warn_small_pool
from sqla_jobs.runner.outbox import AGAIN, LINGER, Outgoing
from sqla_jobs.runner.sessions import (
    async_engine_of,
    async_opener,
    engine_of,
    sync_opener,
)
from sqla_jobs.runner.signals import stop_loop_on_signals
from sqla_jobs.runner.watch import LoopWatch
from sqla_jobs.runner.workers import Tasks, Workers

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import async_sessionmaker

log = logging.getLogger("sqla_jobs")


class AsyncRunner(RunnerBase):
    """
    Claims and runs jobs with async handlers, each in a task of the running loop.

    Options are those of `Runner`; it needs greenlet, from the extra ``asyncio``.

    Args:
        session_maker: The application's async_sessionmaker; handlers get its sessions,
            with ``expire_on_commit=False``.
        job_class: The root class of the jobs.
        middleware: Async functions for async handlers; sync ones, for sync handlers,
            only with *sync_session*.
        sync_session: A sessionmaker on the same database: with it, jobs with sync
            handlers run too, in threads. Default None.

    Raises:
        JobValueError: If an option cannot be used.
        JobDefinitionError: If *kinds* names a class without a handler it can run.
        UnsupportedDialect: If the database is not supported.
    """

    def __init__(  # noqa: PLR0913 - one keyword per option
        self,
        session_maker: async_sessionmaker[Any],
        job_class: type[Any],
        *,
        sync_session: sessionmaker[Any] | None = None,
        queues: Queues | None = None,
        kinds: Sequence[str | type[Any]] | None = None,
        concurrency: int | tuple[int, int] | None = None,
        threads: int | None = None,
        name: str | None = None,
        lease: timedelta | None = None,
        poll: timedelta = timedelta(seconds=1),
        grace: timedelta = timedelta(seconds=30),
        retry_share: float = RETRY_SHARE,
        listen: bool = True,
        listen_url: str | URL | None = None,
        resources: Any = None,
        middleware: Sequence[Around] = (),
        on_error: OnError | None = None,
        max_crashes: int = MAX_CRASHES,
    ) -> None:
        from sqla_jobs.runner.acontrol import AsyncControl

        super().__init__(
            job_class,
            runs=lambda handler: handler.is_async or sync_session is not None,
            queues=queues,
            kinds=kinds,
            concurrency=concurrency,
            threads=threads,
            name=name,
            lease=lease,
            poll=poll,
            grace=grace,
            retry_share=retry_share,
            listen=listen,
            listen_url=listen_url,
            resources=resources,
            middleware=middleware,
            on_error=on_error,
            max_crashes=max_crashes,
        )
        engine = self._engine = async_engine_of(session_maker, self.tables.root)
        self._direct = direct_engine(self.options.listen_url, like=engine)
        self.session_maker = session_maker
        self._control = AsyncControl(engine, self.limits)
        self._dialect = self._control.dialect
        around = self._around(asynchronous=True)
        opener = async_opener(session_maker, engine)
        self._execute = AsyncExecution(around, self._control, opener)
        self._sync = self._sync_execution(sync_session)
        self._batches = AsyncBatches(self._execute)
        self._tasks = Tasks(self.name)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_watch: LoopWatch | None = None
        self._woken = asyncio.Event()
        self._filled = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    def _around(self, *, asynchronous: bool) -> Surroundings:
        return Surroundings.of(
            self.options, self.handlers, self._dialect, asynchronous=asynchronous
        )

    def _sync_execution(self, maker: sessionmaker[Any] | None) -> SyncExecution | None:
        if maker is None:
            return None
        engine = engine_of(maker, self.tables.root)
        around = self._around(asynchronous=False)
        control = Control(engine, self.limits)
        return SyncExecution(around, control, sync_opener(maker, engine))

    # Public verbs

    async def run(self) -> None:
        """
        Run jobs until stopped.

        On the main thread SIGTERM and SIGINT stop it: the first lets jobs end for
        `grace`, the second hands them back at once.

        Raises:
            SchemaMismatch: If the database lacks job tables, or columns of them.
        """
        self._reset()
        with stop_loop_on_signals(self._signalled):
            await self._run(burst=False)

    async def run_until_idle(self) -> None:
        """
        Run what is due, and what that makes due, then return.

        Raises:
            SchemaMismatch: If the database lacks job tables, or columns of them.
        """
        self._reset()
        with stop_loop_on_signals(self._signalled):
            await self._run(burst=True)

    async def run_one(self) -> JobState | None:
        """
        Claim and run one job; return its new state, None without one.

        Raises:
            SchemaMismatch: If the database lacks job tables, or columns of them.
        """
        self._reset()
        try:
            await self._check_tables()
            self._start_watch(self._engine)
            await self._sweep()
            attempts = await self._claim(Claim(1, self._one_of_each_queue()))
            if not attempts:
                return None
            await self._work(attempts[0])
            while self._plan.unsettled:
                if batch := self._outbox.take():
                    await self._flush(batch)
                else:
                    await asyncio.sleep(AGAIN)
            return await self._control.run(
                partial(self._state_work, attempt=attempts[0])
            )
        finally:
            await asyncio.to_thread(self._stop_watch)
            await self._control.close()
            self._running = False

    async def start(self) -> None:
        """
        Run jobs in a background task until `stop`.

        Raises:
            SchemaMismatch: If the database lacks job tables, or columns of them.
            RuntimeError: If it runs already.
        """
        self._reset()
        try:
            await self._await_database()
        except BaseException:
            self._running = False
            await self._control.close()
            raise
        self._main = asyncio.create_task(self._run(burst=False), name=self.name)

    async def stop(self, *, grace: timedelta | None = None, wait: bool = True) -> None:
        """
        Stop claiming; let running jobs end, then hand the rest back.

        Args:
            grace: How long they may go on; default the runner's.
            wait: Whether to return only when everything ended. Default True.
        """
        self._stop_soon(self.options.grace if grace is None else grace)
        if wait and self._main is not None:
            await self._main

    async def __aenter__(self) -> Self:
        """Start the runner."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the runner and wait for its jobs."""
        await self.stop()

    # The loop

    def _reset(self) -> None:
        self._begin_run()
        self._loop = asyncio.get_running_loop()
        self._loop_watch = LoopWatch(self.name, self._loop)
        self._woken, self._filled = asyncio.Event(), asyncio.Event()

    async def _run(self, *, burst: bool) -> None:
        try:
            await self._await_database()
            await self._work_off(burst=burst)
        finally:
            await self._control.close()
            if self._sync is not None:
                self._sync.control.close()
            self._running = False

    async def _work_off(self, *, burst: bool) -> None:
        with self._lock:
            self._plan = self._new_plan(burst=burst)
            if self._stopping:
                self._plan.stop()
        warn_small_pool(self._engine, self.options.slots.most, self.name)
        self._say_hello()
        self._start_watch(self._engine)
        most = self.options.most_threads
        workers = Workers(self.name, self._work_in_thread, most)
        settler = asyncio.create_task(self._settle_loop())
        listener = self._new_listener()
        if listener is not None:
            listener.start()
        try:
            await self._steps(workers)
        except asyncio.CancelledError:
            # Whoever cancelled us waits: hand the jobs back, as on a second signal.
            self._stop_soon(timedelta(0))
            await self._steps(workers)
            raise
        except BaseException:
            self._stop_soon(timedelta(0))
            self._force()
            raise
        finally:
            workers.stop()
            if listener is not None:
                await listener.stop()
            await self._close(settler)

    def _new_listener(self) -> ListenerTask | None:
        found = self._find_listener(self._control.engine.sync_engine)
        if found is None:
            return None
        channel = self.tables.channel_in(self._engine.get_execution_options())
        return ListenerTask(*found, channel, on_wake=self._on_wake)

    async def _close(self, settler: asyncio.Task[None]) -> None:
        self._outbox.close()
        self._filled.set()
        await asyncio.wait([settler], timeout=FORCED_SECONDS if self.forced else None)
        settler.cancel()
        try:
            await self._control.run(
                partial(forget_runner, tables=self.tables, runner_id=self.id)
            )
        except Exception as exc:  # noqa: BLE001 - it is deleted later by others
            log.debug("%s: its row stays: %s", self.name, exc)
        finally:
            await asyncio.to_thread(self._stop_watch)
        log.info("%s: stopped", self.name)

    async def _steps(self, workers: Workers) -> None:
        while True:
            now = time.monotonic()
            with self._lock:
                step = self._plan.next_step(now)
            if now >= self._stop_by and not isinstance(step, Stop):
                self._force()
                step = Wait(0.05)
                if now >= self._stop_by + FORCED_SECONDS:
                    return
            try:
                match step:
                    case Stop():
                        return
                    case Wait(seconds=seconds):
                        await self._sleep(min(seconds, max(0.01, self._stop_by - now)))
                    case Sweep():
                        await self._sweep()
                        if self._chores_due():
                            await self._do_chores()
                    case Claim():
                        self._hand_over(await self._claim(step), workers)
            except Exception as exc:  # noqa: BLE001 - raised unless it is an outage
                self._database_failed(exc)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()

    def _hand_over(self, attempts: Sequence[Attempt], workers: Workers) -> None:
        for unit in units(attempts, self.handlers):
            if not self.handlers[unit[0].kind].is_async:
                workers.give([unit])
            elif len(unit) == 1:
                self._tasks.start(self._work(unit[0]), unit)
            else:
                self._tasks.start(self._work_batch(unit))

    async def _check_tables(self) -> None:
        engine = self._control.engine
        async with engine.connect() as connection:
            found = await connection.run_sync(check_runnable, self.tables)
        self._note_differences(found)

    async def _await_database(self) -> None:
        """Wait until the database answers, then check the tables."""
        while not self._stopping:
            try:
                await self._check_tables()
            except Exception as exc:
                if not self._outage_like(exc):
                    raise
                await self._sleep(self._outage.failed(exc))
            else:
                self._outage.worked()
                return

    async def _sweep(self) -> None:
        found = await self._control.run(self._sweep_work, single=True)
        if self._sweeps_more(found):
            more = partial(self._sweep_more_work, found=found)
            found = await self._control.run(more)
        self._outage.worked()
        self._swept(found)

    async def _do_chores(self) -> None:
        self._chores_done(await self._control.run(self._chores_work))

    async def _claim(self, step: Claim) -> list[Attempt]:
        work = timed(partial(self._claim_work, step=step))
        single = self._claims_by_one_statement()
        sent, jobs = await self._control.run(work, single=single)
        self._outage.worked()
        return self._claimed(step, jobs, sent)

    async def _work(self, attempt: Attempt) -> None:
        """Run one attempt in its own task."""
        settlement = None
        try:
            settlement = await self._execute(attempt)
        finally:
            self._after(attempt, settlement)

    async def _work_batch(self, unit: Sequence[Attempt]) -> None:
        """Run attempts together; each in its own task if that fails."""
        start = self._tasks.start
        for attempt in await self._batches(unit, self._after, start):
            await asyncio.wait([start(self._work(attempt), [attempt])])

    def _work_in_thread(self, unit: Sequence[Attempt]) -> None:
        assert self._sync is not None
        alone = unit if len(unit) == 1 else SyncBatches(self._sync)(unit, self._handed)
        for attempt in alone:
            self._handed(attempt, self._sync(attempt))

    def _handed(self, attempt: Attempt, settlement: Settlement | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._after, attempt, settlement)

    def _after(self, attempt: Attempt, settlement: Settlement | None) -> None:
        if self._ended(attempt, settlement):
            self._woken.set()
        if settlement is not None:
            self._filled.set()
        if attempt.stops_runner:
            self._stop_soon(self.options.grace)

    def _on_wake(self) -> None:
        super()._on_wake()
        self._woken.set()

    def _look_after(self, now: float) -> None:
        super()._look_after(now)
        if self._loop_watch is not None:
            self._loop_watch.look(now)

    def _deliver_interrupt(self, attempt: Attempt) -> None:
        """Cancel the handler's task; called from any thread."""
        super()._deliver_interrupt(attempt)
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._cancel, attempt)

    def _cancel(self, attempt: Attempt) -> None:
        self._filled.set()
        self._tasks.cancel(attempt)

    # Outcomes

    async def _settle_loop(self) -> None:
        while True:
            await self._filled.wait()
            if self._plan.running and not self._stopping:
                await asyncio.sleep(LINGER)
            self._filled.clear()
            while batch := self._outbox.take():
                await self._flush(batch)
            if self._outbox.closed:
                return

    async def _flush(self, batch: list[Outgoing]) -> None:
        """Write outcomes; kept and tried again until accepted or fenced off."""
        outage = Outage(f"{self.name}-settler")
        while True:
            try:
                work = partial(self._settle_work, batch=batch)
                states = await self._control.run(work, single=True)
            except Exception as exc:  # noqa: BLE001 - whatever it is may pass
                parts = self._refused(batch, exc, self._dialect)
                if parts is None:
                    await asyncio.sleep(outage.failed(exc))
                    continue
                for part in parts:
                    await self._flush(part)
            else:
                outage.worked()
                if again := self._settled(batch, states):
                    self._outbox.put_back(again)
                    asyncio.get_running_loop().call_later(AGAIN, self._filled.set)
                self._woken.set()
            return

    # Shutdown

    def _signalled(self) -> None:
        if self._stopping:
            self._stop_by = time.monotonic()
            self._woken.set()
        else:
            log.info(
                "%s: stopping, jobs may run on for %s", self.name, self.options.grace
            )
            self._stop_soon(self.options.grace)

    def _stop_soon(self, grace: timedelta) -> None:
        self._begin_stop()
        self._stop_by = min(self._stop_by, time.monotonic() + grace.total_seconds())
        self._woken.set()
        self._filled.set()

    def _force(self) -> None:
        """Hand unfinished jobs back at once."""
        if not self.forced:
            log.warning("%s: handing unfinished jobs back", self.name)
        self.forced = True
        for attempt in self._live():
            self._interrupt(attempt, Interruption.SHUTDOWN)
