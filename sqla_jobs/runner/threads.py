"""`Runner`: jobs with sync handlers, each in a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from sqla_jobs._core.plan import RETRY_SHARE, Claim, Queues, Stop, Sweep, Wait
from sqla_jobs._core.settle import Settlement
from sqla_jobs._core.states import JobState
from sqla_jobs._notify import ListenerThread, direct_engine
from sqla_jobs._store.runners import forget_runner
from sqla_jobs._store.schema import check_runnable
from sqla_jobs._store.sweep import MAX_CRASHES
from sqla_jobs.handlers import Handler
from sqla_jobs.runner.attempt import Attempt, Interruption
from sqla_jobs.runner.base import FORCED_SECONDS, RunnerBase
from sqla_jobs.runner.batch import SyncBatches, units
from sqla_jobs.runner.control import Control, Outage, timed
from sqla_jobs.runner.execute import Around, OnError, Surroundings, SyncExecution
from sqla_jobs.runner.options import warn_small_pool
from sqla_jobs.runner.outbox import Outgoing
from sqla_jobs.runner.sessions import engine_of, sync_opener
from sqla_jobs.runner.signals import stop_on_signals
from sqla_jobs.runner.workers import Workers

log = logging.getLogger("sqla_jobs")


class Runner(RunnerBase):
    """
    Claims and runs jobs with sync handlers, each in a thread.

    It runs the job classes that are mapped when it is made: import them first.

    Args:
        session_maker: The application's sessionmaker; handlers get its sessions. Its
            engine is only used by handlers: the runner opens at most 6 connections
            of its own with the same connect arguments.
        job_class: The root class of the jobs.
        queues: Slots per queue as a mapping, or names that share *concurrency*.
            Beside names there are (queue, channel) pairs and `Prefix` values; a job
            that several match counts for the pair, then the name, then the longest
            prefix. Default all queues.
        kinds: Kinds or classes to run. Default every kind with a sync handler.
        concurrency: Jobs at once; ``(min, max)`` refills up to max only when fewer
            than min run. Default 10, or the sum of the slots per queue.
        threads: Most threads that run jobs; claimed ones wait for a thread. Default
            one for each slot. 2 or 3 are the fastest where jobs are short and use the
            database; what waits for other things needs its slot's own.
        name: For logs and the runner's row. Default host and process id.
        lease: How long a claim holds between heartbeats, 3 s or more; it has nothing
            to do with how long jobs run. Default 30 s.
        poll: The longest time between looks at an idle database. Default 1 s.
        grace: How long running jobs may go on after a stop. Default 30 s.
        retry_share: The part of the claimed jobs, 0 to 1, that retried jobs get
            before fresh ones of the same priority when there are more jobs than
            slots; rescued jobs get as much. Default 0.1.
        listen: Whether to hold a connection that wakes the runner. Default True.
        listen_url: The URL of that connection, straight to PostgreSQL, where the
            engine goes through a pooler such as PgBouncer; its driver may differ.
            Default a connection like the engine's.
        resources: Any value, for handlers as ``ctx.resources``.
        middleware: Sync functions ``around(job, ctx, call_next)``, first outermost.
        on_error: Called as ``on_error(job, ctx, exc)`` when an attempt fails; sync.
        max_crashes: Lost leases after which a job is discarded. Default 3.

    Raises:
        JobValueError: If an option cannot be used.
        JobDefinitionError: If *kinds* names a class without a sync handler.
        UnsupportedDialect: If the database is not supported.
    """

    def __init__(  # noqa: PLR0913 - one keyword per option
        self,
        session_maker: sessionmaker[Any],
        job_class: type[Any],
        *,
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
        super().__init__(
            job_class,
            runs=_is_sync,
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
        self._engine = engine_of(session_maker, self.tables.root)
        self._direct = direct_engine(self.options.listen_url, like=self._engine)
        self.session_maker = session_maker
        self._control = Control(self._engine, self.limits)
        self._dialect = self._control.dialect
        around = Surroundings.of(
            self.options, self.handlers, self._control.dialect, asynchronous=False
        )
        opener = sync_opener(session_maker, self._engine)
        self._execute = SyncExecution(around, self._control, opener)
        self._batches = SyncBatches(self._execute)
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._settler: threading.Thread | None = None
        self._listener: ListenerThread | None = None

    # Public verbs

    def run(self) -> None:
        """
        Run jobs until stopped; blocks.

        On the main thread SIGTERM and SIGINT stop it: the first lets jobs end for
        `grace`, the second hands them back at once.

        Raises:
            SchemaMismatch: If the database lacks job tables, or columns of them.
        """
        self._reset()
        with stop_on_signals(self._signalled):
            self._run(burst=False)

    def run_until_idle(self) -> None:
        """
        Run what is due, and what that makes due, then return; blocks.

        Raises:
            SchemaMismatch: If the database lacks job tables, or columns of them.
        """
        self._reset()
        with stop_on_signals(self._signalled):
            self._run(burst=True)

    def run_one(self) -> JobState | None:
        """
        Claim and run one job in this thread; return its new state, None without one.

        Raises:
            SchemaMismatch: If the database lacks job tables, or columns of them.
        """
        self._reset()
        try:
            self._check_tables()
            self._start_watch(self._engine)
            self._sweep()
            attempts = self._claim(Claim(1, self._one_of_each_queue()))
            if not attempts:
                return None
            self._work(attempts)
            self._outbox.close()
            self._settle_loop()
            return self._control.run(partial(self._state_work, attempt=attempts[0]))
        finally:
            self._stop_watch()
            self._control.close()
            self._running = False

    def start(self) -> None:
        """
        Run jobs in a background thread until `stop`.

        Raises:
            SchemaMismatch: If the database lacks job tables, or columns of them.
            RuntimeError: If it runs already.
        """
        self._reset()
        try:
            self._await_database()
        except BaseException:
            self._running = False
            self._control.close()
            raise
        self._thread = threading.Thread(
            target=self._run, kwargs={"burst": False}, name=self.name, daemon=True
        )
        self._thread.start()

    def stop(self, *, grace: timedelta | None = None, wait: bool = True) -> None:
        """
        Stop claiming; let running jobs end, then hand the rest back.

        Args:
            grace: How long they may go on; default the runner's.
            wait: Whether to block until everything ended. Default True.
        """
        seconds = (self.options.grace if grace is None else grace).total_seconds()
        self._begin_stop()
        self._stop_by = min(self._stop_by, time.monotonic() + seconds)
        self._woken.set()
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Self:
        """Start the runner."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the runner and wait for its jobs."""
        self.stop()

    # The loop

    def _reset(self) -> None:
        self._begin_run()
        self._woken.clear()

    def _run(self, *, burst: bool) -> None:
        try:
            self._await_database()
            self._work_off(burst=burst)
        finally:
            self._control.close()
            self._running = False

    def _work_off(self, *, burst: bool) -> None:
        with self._lock:
            self._plan = self._new_plan(burst=burst)
            if self._stopping:
                self._plan.stop()
        workers = Workers(self.name, self._work, self.options.most_threads)
        self._open()
        try:
            self._loop(workers)
        except BaseException:
            self._begin_stop()
            self._stop_by = time.monotonic()
            self._force()
            raise
        finally:
            workers.stop()
            self._close()

    def _open(self) -> None:
        warn_small_pool(self._engine, self.options.most_threads, self.name)
        self._say_hello()
        self._settler = threading.Thread(
            target=self._settle_loop, name=f"{self.name}-settler", daemon=True
        )
        self._settler.start()
        self._start_watch(self._engine)
        self._listener = self._new_listener()
        if self._listener is not None:
            self._listener.start()

    def _new_listener(self) -> ListenerThread | None:
        found = self._find_listener(self._control.engine)
        if found is None:
            return None
        channel = self.tables.channel_in(self._engine.get_execution_options())
        return ListenerThread(*found, channel, on_wake=self._on_wake)

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.stop()
        self._outbox.close()
        if self._settler is not None:
            self._settler.join(FORCED_SECONDS if self.forced else None)
        self._outbox.drop()
        try:
            self._control.run(
                partial(forget_runner, tables=self.tables, runner_id=self.id)
            )
        except Exception as exc:  # noqa: BLE001 - it is deleted later by others
            log.debug("%s: its row stays: %s", self.name, exc)
        finally:
            self._stop_watch()
        log.info("%s: stopped", self.name)

    def _loop(self, workers: Workers) -> None:
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
                        self._woken.wait(min(seconds, self._until_forced(now)))
                        self._woken.clear()
                    case Sweep():
                        self._sweep()
                        if self._chores_due():
                            self._do_chores()
                    case Claim():
                        workers.give(units(self._claim(step), self.handlers))
            except Exception as exc:  # noqa: BLE001 - raised unless it is an outage
                self._database_failed(exc)

    def _until_forced(self, now: float) -> float:
        return max(0.01, self._stop_by - now)

    def _check_tables(self) -> None:
        self._note_differences(check_runnable(self._control.engine, self.tables))

    def _await_database(self) -> None:
        """Wait until the database answers, then check the tables."""
        while not self._stopping:
            try:
                self._check_tables()
            except Exception as exc:
                if not self._outage_like(exc):
                    raise
                self._woken.wait(self._outage.failed(exc))
            else:
                self._outage.worked()
                return

    def _sweep(self) -> None:
        found = self._control.run(self._sweep_work, single=True)
        if self._sweeps_more(found):
            found = self._control.run(partial(self._sweep_more_work, found=found))
        self._outage.worked()
        self._swept(found)

    def _do_chores(self) -> None:
        self._chores_done(self._control.run(self._chores_work))

    def _claim(self, step: Claim) -> list[Attempt]:
        work = timed(partial(self._claim_work, step=step))
        single = self._claims_by_one_statement()
        sent, jobs = self._control.run(work, single=single)
        self._outage.worked()
        return self._claimed(step, jobs, sent)

    def _work(self, unit: Sequence[Attempt]) -> None:
        """Run one attempt, or a batch; called in a worker thread."""
        alone = unit if len(unit) == 1 else self._batches(unit, self._after)
        for attempt in alone:
            self._after(attempt, self._execute(attempt))

    def _after(self, attempt: Attempt, settlement: Settlement | None) -> None:
        if self._ended(attempt, settlement):
            self._woken.set()
        if attempt.stops_runner:
            self.stop(wait=False)

    def _on_wake(self) -> None:
        super()._on_wake()
        self._woken.set()

    # Outcomes

    def _settle_loop(self) -> None:
        while (batch := self._outbox.gather()) is not None:
            self._flush(batch)

    def _flush(self, batch: list[Outgoing]) -> None:
        """Write outcomes; kept and tried again until accepted or fenced off."""
        outage = Outage(f"{self.name}-settler")
        while not (self.forced and time.monotonic() > self._stop_by + FORCED_SECONDS):
            try:
                work = partial(self._settle_work, batch=batch)
                states = self._control.run(work, single=True)
            except Exception as exc:  # noqa: BLE001 - whatever it is may pass
                parts = self._refused(batch, exc, self._dialect)
                if parts is None:
                    time.sleep(outage.failed(exc))
                    continue
                for part in parts:
                    self._flush(part)
            else:
                outage.worked()
                self._outbox.put_back(self._settled(batch, states))
                self._woken.set()
            return
        log.error("%s: %s outcomes could not be written", self.name, len(batch))

    # Shutdown

    def _signalled(self) -> None:
        if self._begin_stop():
            log.info(
                "%s: stopping, jobs may run on for %s", self.name, self.options.grace
            )
            self._stop_by = time.monotonic() + self.options.grace.total_seconds()
        else:
            self._stop_by = time.monotonic()
        self._woken.set()

    def _force(self) -> None:
        """Hand unfinished jobs back at once."""
        if not self.forced:
            log.warning("%s: handing unfinished jobs back", self.name)
        self.forced = True
        for attempt in self._live():
            self._interrupt(attempt, Interruption.SHUTDOWN)


def _is_sync(handler: Handler) -> bool:
    return not handler.is_async
