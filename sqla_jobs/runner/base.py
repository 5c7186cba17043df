"""What both runners share: options, bookkeeping and the work on the database."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs._core.limits import Features
from sqla_jobs._core.memory import Memory
from sqla_jobs._core.plan import Claim, Plan, Queues, Slots
from sqla_jobs._core.settle import Settlement, settle_error
from sqla_jobs._core.states import SUSPECT_CRASHES, JobState, Lane
from sqla_jobs._core.subscriptions import Subscription, label
from sqla_jobs._dialects import JobDialect
from sqla_jobs._notify import Listener, checked_url, direct_engine, listener_for
from sqla_jobs._store.claim import (
    DEFAULT_LEASE,
    claim_jobs,
    load_relationships,
)
from sqla_jobs._store.entities import are_plain
from sqla_jobs._store.lease import settled_state, still_held
from sqla_jobs._store.settle import settle
from sqla_jobs.errors import Difference
from sqla_jobs.handlers import Handler
from sqla_jobs.models import JobTables, job_tables
from sqla_jobs.runner.attempt import Attempt, Interruption
from sqla_jobs.runner.control import Limits, Outage
from sqla_jobs.runner.execute import Around, OnError, log_fields, log_settled
from sqla_jobs.runner.options import (
    Options,
    check_callables,
    choose_handlers,
    default_name,
    shortest_lease,
)
from sqla_jobs.runner.outbox import Outbox, Outgoing
from sqla_jobs.runner.upkeep import Upkeep
from sqla_jobs.runner.watch import Heartbeat, Watchdog

log = logging.getLogger("sqla_jobs")
Key = tuple[int, int]
FORCED_SECONDS = 2.0  # for outcomes to be written after a forced stop


class RunnerBase(Upkeep):
    """Bookkeeping of slots, attempts and outcomes; a lock guards all of it."""

    _dialect: JobDialect

    _engine: Engine  # that the application's sessions use for the job table
    _direct: Engine | None  # of listen_url

    def __init__(  # noqa: PLR0913 - one keyword per option
        self,
        job_class: type[Any],
        *,
        runs: Callable[[Handler], bool],
        queues: Queues | None,
        kinds: Sequence[str | type[Any]] | None,
        concurrency: int | tuple[int, int] | None,
        threads: int | None,
        name: str | None,
        lease: timedelta | None,
        poll: timedelta,
        grace: timedelta,
        retry_share: float,
        listen: bool,
        listen_url: str | URL | None,
        resources: Any,
        middleware: Sequence[Around],
        on_error: OnError | None,
        max_crashes: int,
    ) -> None:
        self.tables: JobTables = job_tables(job_class)
        self._pid, self._name = os.getpid(), name
        self.id = uuid4()
        self.options = Options(
            slots=Slots.of(concurrency, queues),
            threads=threads,
            name=name or default_name(),
            lease=lease or DEFAULT_LEASE,
            poll=poll,
            grace=grace,
            retry_share=retry_share,
            listen=listen,
            listen_url=checked_url(listen_url),
            resources=resources,
            middleware=tuple(middleware),
            on_error=on_error,
            max_crashes=max_crashes,
        )
        check_callables(self.options, runs)
        self.handlers = choose_handlers(self.tables, kinds, runs)
        self.limits = Limits(shortest_lease(self.tables, self.options))
        self.forced = False
        self.failures = 0  # attempts since `run` that ended retryable or discarded
        self._runs, self._slots_asked = runs, (concurrency, queues)
        self._outage = Outage(self.name)
        self._lock = threading.Lock()
        self._plan = self._new_plan(burst=False)
        self._attempts: dict[Key, Attempt] = {}
        self._outbox = Outbox()
        self._stopping = self._running = False
        self._stop_by = float("inf")
        self._differences: tuple[Difference, ...] = ()
        ordered = any(c.__job_options__.ordered for c in self.tables.kinds.values())
        self._features = Features(ordered)  # as the last sweep found them
        self._memory = Memory()
        self._heartbeat: Heartbeat | None = None
        self._watchdog: Watchdog | None = None

    @property
    def name(self) -> str:
        """The runner's name in logs and in its row; default host and process id."""
        return self.options.name

    def configure(  # noqa: PLR0913 - one keyword per option
        self,
        *,
        queues: Queues | None = None,
        kinds: Sequence[str | type[Any]] | None = None,
        concurrency: int | tuple[int, int] | None = None,
        threads: int | None = None,
        grace: timedelta | None = None,
        name: str | None = None,
        lease: timedelta | None = None,
        poll: timedelta | None = None,
        retry_share: float | None = None,
        listen: bool | None = None,
        listen_url: str | URL | None = None,
    ) -> None:
        """
        Change options before the runner runs, as if it had been made with them.

        None, the default, keeps what it was made with.

        Raises:
            JobValueError: If an option cannot be used; nothing is changed then.
            JobDefinitionError: If *kinds* names a class without a usable handler.
        """
        asked = self._slots_asked
        asked = (
            asked[0] if concurrency is None else concurrency,
            asked[1] if queues is None else queues,
        )
        handlers = dict(self.handlers)
        if kinds is not None:
            handlers = choose_handlers(self.tables, kinds, self._runs)
        given: dict[str, Any] = {
            "threads": threads,
            "grace": grace,
            "lease": lease,
            "poll": poll,
            "retry_share": retry_share,
            "listen": listen,
            "listen_url": checked_url(listen_url),
        }
        kept = {key: value for key, value in given.items() if value is not None}
        options = replace(
            self.options, slots=Slots.of(*asked), name=name or self.name, **kept
        )
        self._name = name or self._name
        self._direct = direct_engine(options.listen_url, like=self._engine)
        self.options = options
        self._slots_asked = asked
        # In place: what runs the attempts holds the same mapping.
        self.handlers.clear()
        self.handlers.update(handlers)
        self._outage.name = self.name
        self.limits.lease = shortest_lease(self.tables, self.options)
        self._plan = self._new_plan(burst=False)

    def _new_plan(self, *, burst: bool) -> Plan:
        return Plan(
            self.options.slots,
            self.options.poll.total_seconds(),
            burst=burst,
            retry_share=self.options.retry_share,
        )

    def _begin_run(self) -> None:
        """
        Note that the runner runs from now on.

        Raises:
            RuntimeError: If it does already.
        """
        if self._pid != os.getpid():
            self._begin_child()
        with self._lock:
            if self._running:
                raise RuntimeError(f"{self.name} runs already")
            self._running, self._stopping, self.forced = True, False, False
            self.failures = 0
            self._plan, self._outbox = self._new_plan(burst=False), Outbox()
            self._stop_by = float("inf")
            self._attempts.clear()

    def _begin_child(self) -> None:
        """Be another runner, in a fork of the process: leave its connections alone."""
        self._pid, self.id, self._lock = os.getpid(), uuid4(), threading.Lock()
        if self._name is None:
            self.options = replace(self.options, name=default_name())
        self._running = False
        self.limits.begin_child()

    # Threads beside the jobs

    def _find_listener(self, engine: Engine) -> tuple[Listener, Engine] | None:
        """Return what listens, and on which engine: *engine* unless told otherwise."""
        if not (self.options.listen and self.tables.notify):
            return None
        engine = self._direct or engine
        found = listener_for(engine)
        if found is not None:
            return found, engine
        log.info(
            "%s: no wake-ups through the driver %s, polling every %g s",
            self.name, engine.dialect.driver, self.options.poll.total_seconds(),
        )  # fmt: skip
        return None

    def _start_watch(self, engine: Engine) -> None:
        self._heartbeat = Heartbeat(
            self.name,
            engine,
            self.tables,
            attempts=self._live,
            interrupt=self._interrupt,
            limits=self.limits,
        )
        self._watchdog = Watchdog(
            self.name,
            attempts=self._live,
            interrupt=self._interrupt,
            look_after=self._look_after,
        )
        self._heartbeat.start()
        self._watchdog.start()

    def _stop_watch(self) -> None:
        for thread in (self._heartbeat, self._watchdog):
            if thread is not None:
                thread.stop()

    def _look_after(self, now: float) -> None:
        """Give up connections whose server is too long about its answer, or dead."""
        forced = now > self._stop_by + FORCED_SECONDS
        longest = FORCED_SECONDS if forced else self.limits.transaction.total_seconds()
        self.limits.hang_up(longest)

    def _database_failed(self, exc: Exception) -> None:
        if not isinstance(exc, DBAPIError | OSError) and not self._outage_like(exc):
            raise exc
        pause = self._outage.failed(exc)
        with self._lock:
            self._plan.away(time.monotonic(), pause)

    def _outage_like(self, exc: Exception) -> bool:
        return self._dialect.is_outage(exc)

    def _live(self) -> list[Attempt]:
        with self._lock:
            return list(self._attempts.values())

    # Work on the database, inside a transaction of the runner's own

    def _note_differences(self, found: tuple[Difference, ...]) -> None:
        """Warn once of what differs in the database but hinders no runner."""
        if found and found != self._differences:
            log.warning(
                "%s: the job tables in the database differ from the code: %s",
                self.name,
                "; ".join(map(str, found)),
            )
        self._differences = found

    def _claim_work(self, session: Session, step: Claim) -> list[Any]:
        self._memory.begin()
        with self._lock:
            suspects = not any(
                a.suspect >= SUSPECT_CRASHES for a in self._attempts.values()
            )
        jobs = claim_jobs(
            session,
            self.tables,
            kinds=list(self.handlers),
            queues=step.queues,
            limit=step.limit,
            lease=self.options.lease,
            runner_id=self.id,
            suspects=suspects,
            late=step.late,
            features=self._features,
            memory=self._memory,
        )
        load_relationships(session, jobs)
        return jobs

    def _claims_by_one_statement(self) -> bool:
        """Whether the next claim is a statement that may commit by itself."""
        features = self._features
        if features.ordered or features.managed:
            return False
        classes = (self.tables.kinds[kind] for kind in self.handlers)
        loads = any(cls.__job_options__.load for cls in classes)
        return not loads and are_plain(self.tables)

    def _found(self) -> Features:
        return self._features

    def _source(self, attempt: Attempt) -> Subscription:
        return self.options.slots.source(attempt.queue, attempt.channel)

    def _claimed(self, step: Claim, jobs: Sequence[Any], sent: float) -> list[Attempt]:
        tables, lease = self.tables, self.options.lease
        attempts = [
            Attempt(job, tables, lease=lease, claimed_at=sent, features=self._found)
            for job in jobs
        ]
        now = time.monotonic()
        with self._lock:
            late = sum(attempt.lane != Lane.FRESH for attempt in attempts)
            counts = Counter(map(self._source, attempts))
            self._plan.claimed(now, step, counts, late=late, took=now - sent)
            again = self._memory.take_again()
            if again is not None:
                self._plan.look(now, again, unfinished=self._memory.unfinished)
            for attempt in attempts:
                self._attempts[attempt.job_id, attempt.token] = attempt
            stopping = self._stopping
        if stopping:
            self._drain(attempts)
        if self._watchdog is not None:
            for attempt in attempts:
                self._watchdog.expect(attempt)
        return attempts

    def _settle_work(
        self, session: Session, batch: Sequence[Outgoing]
    ) -> dict[Key, JobState | None]:
        """
        Write a batch and return the new states; None for what is no longer held.

        A row that another transaction writes, be it the handler's own, is still
        running in the answer: to wait for it would keep all other outcomes waiting.
        """
        rows = [item.settlement for item in batch]
        # One job twice in a batch, by an old and a new holder: the token decides.
        states = settle(session, self.tables, rows, wait=False)
        written = {(row.job_id, row.token): states.get(row.job_id) for row in rows}
        missing = [key for key, state in written.items() if state is None]
        if missing:
            locked = still_held(session, self.tables, missing)
            written |= dict.fromkeys(locked, JobState.RUNNING)
        return written

    def _state_work(self, session: Session, attempt: Attempt) -> JobState | None:
        return settled_state(session, self.tables, attempt.job_id, attempt.token)

    def _one_of_each_queue(self) -> dict[Subscription, int] | None:
        names = self.options.slots.names
        return None if names is None else dict.fromkeys(names, 1)

    # Bookkeeping

    def _ended(self, attempt: Attempt, settlement: Settlement | None) -> bool:
        """Free the slot of an attempt; return whether the loop should look."""
        due = False
        if attempt.final is not None and attempt.final_state is not None:
            due = self._note(attempt, attempt.final, attempt.final_state)
        with self._lock:
            if self._attempts.pop((attempt.job_id, attempt.token), None) is None:
                return False  # a thread that an earlier run could not wait for
            look = self._plan.finished(self._source(attempt)) or due
            if settlement is None or not attempt.take():
                return look
            self._plan.unsettled += 1
            hurry = not self._plan.running
        self._outbox.put(Outgoing(attempt, settlement), hurry=hurry)
        return look

    def _settled(
        self, batch: Sequence[Outgoing], states: Mapping[Key, JobState | None]
    ) -> list[Outgoing]:
        """Note what was written; return what must be tried again."""
        again = []
        for item in batch:
            row = item.settlement
            state = states[row.job_id, row.token]
            if state is JobState.RUNNING:
                again.append(item)
                continue
            self._note(item.attempt, row, state)
        with self._lock:
            self._plan.settled(len(batch) - len(again))
        return again

    def _refused(
        self, batch: Sequence[Outgoing], exc: Exception, dialect: JobDialect
    ) -> list[list[Outgoing]] | None:
        """
        Return the batches to try instead when the database refused a value in one, as a
        time beyond its calendar; None if *exc* is something else, that may pass.
        """
        if not dialect.is_refusal(exc):
            return None
        if len(batch) > 1:
            middle = len(batch) // 2
            return [list(batch[:middle]), list(batch[middle:])]
        (item,) = batch
        if item.refused:
            return None
        failure = settle_error(item.attempt.facts, getattr(exc, "orig", None) or exc)
        return [[item._replace(settlement=failure, refused=True)]]

    def _note(self, attempt: Attempt, row: Settlement, state: JobState | None) -> bool:
        """Note what became of an attempt; return whether its job is due again soon."""
        if state is JobState.COMPLETED and not log.isEnabledFor(logging.DEBUG):
            return self._free(attempt)
        log_settled(attempt, state)
        if state in (JobState.RETRYABLE, JobState.DISCARDED):
            with self._lock:
                self.failures += 1
        again = state in (JobState.RETRYABLE, JobState.SCHEDULED) and row.at is None
        if again:
            with self._lock:
                self._plan.due_in(time.monotonic(), row.delay or 0.0)
        return self._free(attempt) or again

    def _free(self, attempt: Attempt) -> bool:
        """Return whether a settled attempt may have held others back; look then."""
        queue = self._features.queues.get(attempt.queue)
        if not attempt.ordered and not (queue and queue.limited):
            return False
        self._memory.settled(attempt.queue, attempt.channel, ordered=attempt.ordered)
        with self._lock:
            self._plan.look(time.monotonic())
        return True

    def _interrupt(self, attempt: Attempt, why: Interruption) -> None:
        """End an attempt from outside its handler, and settle it at once."""
        if not attempt.interrupt(why):
            return
        log.warning(
            "job %s: attempt %s interrupted: %s",
            attempt.job_id, attempt.number, why.value, extra=log_fields(attempt),
        )  # fmt: skip
        self._settle_interrupted(attempt)
        self._deliver_interrupt(attempt)

    def _settle_interrupted(self, attempt: Attempt) -> None:
        settlement = attempt.interrupted()
        if settlement is not None and attempt.take():
            with self._lock:
                self._plan.unsettled += 1
            self._outbox.put(Outgoing(attempt, settlement), hurry=True)

    def _deliver_interrupt(self, attempt: Attempt) -> None:
        """Make the handler notice; a thread does so where it uses the database."""
        if attempt.interruption is Interruption.LOST:
            attempt.hang_up()

    def _on_wake(self) -> None:
        self._memory.woke()
        with self._lock:
            self._plan.woke(time.monotonic())

    def _begin_stop(self) -> bool:
        """Stop claiming; return False if that was so already."""
        with self._lock:
            first = not self._stopping
            self._stopping = True
            self._plan.stop()
        if first:
            self._drain(self._live())
        return first

    def _drain(self, attempts: Sequence[Attempt]) -> None:
        """Let attempts end at their next checkpoint; hand back what has not begun."""
        for attempt in attempts:
            attempt.draining = True
            if attempt.interrupt(Interruption.SHUTDOWN, waiting=True):
                log.info(
                    "job %s: handed back before it began",
                    attempt.job_id, extra=log_fields(attempt),
                )  # fmt: skip
                self._settle_interrupted(attempt)

    def _say_hello(self) -> None:
        slots = self.options.slots
        log.info(
            "%s: running kinds %s; queues %s; concurrency %s",
            self.name,
            ", ".join(sorted(self.handlers)) or "none",
            "all" if slots.names is None else ", ".join(map(label, slots.names)),
            slots.most,
        )
        missing = sorted(set(self.tables.kinds) - set(self.handlers))
        if missing:
            log.warning(
                "%s: these kinds have no handler here and stay untouched: %s",
                self.name,
                ", ".join(missing),
            )
