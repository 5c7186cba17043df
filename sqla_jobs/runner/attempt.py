"""One attempt at a job: its facts, its interruption, its session and its outcome."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from sqla_jobs._core.limits import NO_FEATURES, Features
from sqla_jobs._core.outcomes import Outcome
from sqla_jobs._core.payloads import check_json, dump
from sqla_jobs._core.settle import (
    AttemptFacts,
    Settlement,
    settle_conflict,
    settle_error,
    settle_outcome,
    settle_release,
    settle_result,
)
from sqla_jobs._core.states import JobState
from sqla_jobs._store.lease import fence, lock_held
from sqla_jobs._store.settle import settle
from sqla_jobs.errors import AttemptInterrupted, JobValueError
from sqla_jobs.models import JobTables
from sqla_jobs.models.backoffs import backoff_for, backoff_of_queue
from sqla_jobs.runner.guard import Guard

if TYPE_CHECKING:
    from sqla_jobs._dialects import JobDialect


class Interruption(StrEnum):
    """Why an attempt must end before its handler is done."""

    LOST = "the lease is lost"
    CANCELLED = "a cancel was requested"
    TIMEOUT = "timed out"
    SHUTDOWN = "the runner is shutting down"


class TaskCancelled(BaseException):
    """Somebody else than the runner cancelled the task of an async handler."""


class Attempt(Guard):
    """
    A claimed job while it runs; the guard of its handler's session.

    Its values are copied from the row: after a commit the row may be a new holder's.
    What few attempts change are attributes of the class: thousands are made a second.
    """

    interruption: Interruption | None = None
    begun = False  # not waiting for a thread, or a task, any more
    ends_at: float | None = None  # by its timeout, once it has begun
    draining = False  # a graceful shutdown: the next checkpoint ends it
    ended = False  # the handler has returned or raised
    stops_runner = False  # it raised SystemExit or KeyboardInterrupt
    progress: str | None = None
    progress_sent: str | None = None  # by the heartbeat's last renewal
    progress_saved: str | None = None
    final: Settlement | None = None
    final_state: JobState | None = None  # once committed by the handler
    fence_sent = False
    pinned = False  # its transactions keep a snapshot, and its row locked
    next_extra = 0
    next_lease: timedelta | None = None
    _taken = False
    _state: dict[str, Any] | None = None
    _next_state: JobState | None = None
    _committing: tuple[str | None, bool] | None = None

    def __init__(
        self,
        job: Any,
        tables: JobTables,
        *,
        lease: timedelta,
        claimed_at: float,
        features: Callable[[], Features] = lambda: NO_FEATURES,
    ) -> None:
        self.job, self.tables, self.features = job, tables, features
        row = self.values_of(job)
        self.job_id: int = row["id"]
        self.token: int = row["lease_token"]
        self.kind: str = row["kind"]
        self.queue: str = row["queue"]
        self.channel: str = row["channel"]
        self.ordered: bool = row["ordered"]
        self.number: int = row["attempt"]
        self.max_attempts: int = row["max_attempts"]
        self.suspect: int = row["crashes"]
        self.lane: int = row["lane"]
        self.lease: timedelta = row["lease"] or lease
        self.timeout: timedelta | None = row["timeout"]
        self.started_at: datetime = row["started_at"]
        self.claimed_at = self.renewed_at = claimed_at
        self.held_until = claimed_at + self.lease.total_seconds()
        self._lock = threading.Lock()
        self._saved = dump(row["checkpoint"]) if row["checkpoint"] else ""
        self._backoff: str = row["backoff"]

    @staticmethod
    def values_of(job: Any) -> Mapping[str, Any]:
        """Return the columns of *job*, which has just been loaded."""
        values: Mapping[str, Any] = job.__dict__
        return values

    # What the handler sees

    @property
    def state(self) -> dict[str, Any]:
        """The decoded checkpoint; changes in place are saved by the next commit."""
        if self._state is None:
            self._state = dict(self.job.checkpoint or {}) if self._saved else {}
        return self._state

    @state.setter
    def state(self, values: Mapping[str, Any]) -> None:
        self._state = dict(values)

    def unsaved_state(self) -> str | None:
        """
        Return the state as JSON text if it differs from the saved one.

        Raises:
            PayloadError: If it is not JSON.
        """
        if not self._state and not self._saved:
            return None
        if self._state is None:
            return None
        check_json(self._state, "state")
        text = dump(self._state)
        return None if text == self._saved else text

    @property
    def unsaved_progress(self) -> str | None:
        """The progress as JSON text if it differs from the saved one."""
        return None if self.progress is self.progress_saved else self.progress

    # Interruption

    def interrupt(self, why: Interruption, *, waiting: bool = False) -> bool:
        """
        End the attempt as soon as possible; return whether this was news.

        Args:
            waiting: Do so only if it has not begun. Default False.
        """
        with self._lock:
            if self.interruption is not None or self.ended:
                return False
            if waiting and self.begun:
                return False
            self.interruption = why
            return True

    def take(self) -> bool:
        """Return True once: to whoever may settle this attempt."""
        with self._lock:
            taken, self._taken = self._taken, True
            return not taken

    def check_open(self) -> None:
        """
        Refuse further work.

        Raises:
            AttemptInterrupted: If the attempt was interrupted or has ended.
            JobValueError: If a commit was refused before.
        """
        if self.interruption is not None:
            raise AttemptInterrupted(self.job_id, self.interruption.value)
        if self.ended:
            raise AttemptInterrupted(self.job_id, "the attempt has ended")
        super().check_open()

    def put_off(self, job: Any) -> None:
        """Take *job*, read afresh, for another run; its timeout counts from that."""
        self.job, self.ends_at, self.begun = job, None, False

    def begin(self, now: float | None = None) -> None:
        """
        Note that the handler is about to run: the timeout counts from *now*.

        Raises:
            AttemptInterrupted: If the attempt was interrupted while it waited.
        """
        with self._lock:
            self.begun = True
        if self.timeout is not None:
            now = time.monotonic() if now is None else now
            self.ends_at = now + self.timeout.total_seconds()
        self.check_open()

    def renewed(self, at: float, lease: timedelta | None = None) -> None:
        """Note that the lease was renewed by a statement sent at monotonic *at*."""
        self.renewed_at = at
        seconds = (lease or self.lease).total_seconds()
        self.held_until = max(self.held_until, at + seconds)

    # The fence: called by the session's listeners

    @property
    def jobs(self) -> Sequence[Any]:
        """The job, alone."""
        return (self.job,)

    @property
    def ending(self) -> bool:
        """Whether the outcome is known and goes into the next commit."""
        return self.final is not None

    def lock_jobs(self, connection: Connection) -> None:
        """
        Lock the row of the job.

        Raises:
            AttemptInterrupted: If the lease is lost.
        """
        self.pinned = True
        if not lock_held(connection, self.tables, [(self.job_id, self.token)]):
            self.interrupt(Interruption.LOST)
            self.check_open()

    def write_fence(self, connection: Connection, sent: float) -> None:
        """
        Check and renew the lease, and save the state; or write the outcome.

        Raises:
            AttemptInterrupted: If the lease is lost.
        """
        text = self.unsaved_state()
        held, cancel = self._fence(connection, text)
        if not held:
            self.interrupt(Interruption.LOST)
            self.check_open()
        self.renewed(sent, self.next_lease)
        self.progress_saved = self.progress
        self._committing = (text, cancel)

    def _fence(self, connection: Connection, text: str | None) -> tuple[bool, bool]:
        if self.final is not None:
            states = settle(
                connection,
                self.tables,
                [self.final],
                within=self.within(self.held_until),
                now=self.now(),
            )
            self.fence_sent = True
            self._next_state = states.get(self.job_id)
            return self._next_state is not None, False
        renewed = time.monotonic() + self.lease.total_seconds()
        held = fence(
            connection,
            self.tables,
            self.job_id,
            self.token,
            lease=self.lease,
            at_least=self.next_lease,
            checkpoint=text,
            progress=self.progress,
            extra_attempts=self.next_extra,
            within=self.within(renewed),
            now=self.now(),
        )
        return held is not None, held is not None and held.cancel_requested

    def committed(self) -> None:
        """Note that a COMMIT took effect; decide whether the attempt goes on."""
        if self._committing is None:
            return  # a savepoint, or another database
        text, cancel = self._committing
        self._committing = self.begun_at = None
        if text is not None:
            self._saved = text
        self.max_attempts += self.next_extra
        self.next_extra, self.next_lease = 0, None
        if self.final is not None:
            self.final_state = self._next_state
            return
        if cancel:
            self.interrupt(Interruption.CANCELLED)
        elif self.draining:
            self.interrupt(Interruption.SHUTDOWN)

    # The outcome

    @property
    def facts(self) -> AttemptFacts:
        """What the settlement is made from."""
        of_queue = backoff_of_queue(self.features(), self.queue)
        backoff = backoff_for(self.tables, self.kind, self._backoff, of_queue)
        rand = random.random()  # noqa: S311 - spreads retries, keeps no secret
        return AttemptFacts(self.job_id, self.token, self.number, backoff, rand)

    def returned(self, value: Any) -> Settlement | None:
        """
        Return the settlement of a handler that returned *value*.

        Raises:
            PayloadError: If the value or the state is not JSON.
            JobValueError: If a commit was refused, though the handler hides it.
        """
        super().check_open()
        if self.interruption is not None:
            return self.interrupted()
        state = self.unsaved_state()
        if isinstance(value, Outcome):
            settlement = settle_outcome(self.facts, value, checkpoint=state)
        else:
            settlement = settle_result(self.job_id, self.token, value, checkpoint=state)
        return self._with_progress(settlement)

    def _with_progress(self, settlement: Settlement) -> Settlement:
        progress = self.unsaved_progress
        if progress is None:
            return settlement
        return settlement._replace(progress=progress)

    def raised(self, exc: BaseException, dialect: JobDialect) -> Settlement | None:
        """Return the settlement of a handler that raised *exc*."""
        if self.interruption is not None:
            return self.interrupted()
        try:
            settlement = self._raised(exc, dialect)
        except BaseException as failure:  # noqa: BLE001 - code of the exception's own
            names = type(exc).__name__, type(failure).__name__
            told = RuntimeError(
                "{}, which itself raised {} when looked at".format(*names)
            )
            settlement = settle_error(self.facts, told)
        return self._with_progress(settlement)

    def _raised(self, exc: BaseException, dialect: JobDialect) -> Settlement:
        if isinstance(exc, Outcome):
            return self._raised_outcome(exc)
        if isinstance(exc, SystemExit | KeyboardInterrupt):
            self.stops_runner = True
            return settle_release(self.facts)
        if isinstance(exc, TaskCancelled):
            return settle_release(self.facts)
        if dialect.is_conflict(exc):
            # Where transactions keep a snapshot, conflicts are how they wait.
            return settle_conflict(self.facts, exc, counted=not self.pinned)
        # Any other too: handed back uncounted, the job would come again at once.
        return settle_error(self.facts, exc)

    def _raised_outcome(self, outcome: Outcome) -> Settlement:
        try:
            return settle_outcome(self.facts, outcome)
        except JobValueError as exc:  # such as a result that is not JSON
            return settle_error(self.facts, exc)

    def interrupted(self) -> Settlement | None:
        """Return the settlement of an interrupted attempt; None if it is lost."""
        match self.interruption:
            case Interruption.CANCELLED:
                return Settlement(self.job_id, self.token, "cancel")
            case Interruption.TIMEOUT:
                seconds = self.timeout.total_seconds() if self.timeout else 0.0
                late = TimeoutError(f"timed out after {seconds:g} s")
                return settle_error(self.facts, late)
            case Interruption.SHUTDOWN:
                return settle_release(self.facts)
            case _:
                return None
