"""The guard of a handler's session: what its listeners ask before a commit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs._dialects import dialect_of, sockets
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables

COMMIT_SECONDS = 10.0  # from a fence to its COMMIT, which follows at once
LEAST_SECONDS = 0.5


_GUARD = "sqla_jobs.guard"


def _watch(connection: Connection, guard: Guard) -> None:
    # By the engine: to listen to each connection costs as much as a statement.
    vars(connection)[_GUARD] = guard
    if not event.contains(connection.engine, "commit", _before_commit):
        event.listen(connection.engine, "commit", _before_commit)


def _before_commit(connection: Connection) -> None:
    guard: Guard | None = vars(connection).get(_GUARD)
    transaction = connection.get_transaction()
    # Engines with options of their own hear what the engine behind them hears, too.
    if guard is not None and guard.fenced is not transaction:
        guard.fenced = transaction
        guard.on_commit(connection)


class Guard:
    """Lets no transaction of a session commit without the fence of its jobs."""

    tables: JobTables
    session: Session | None = None
    began = False  # a transaction, since the session was handed over
    begun_at: float | None = None  # the monotonic time of the last one
    commits = True  # what the fence precedes is a real COMMIT
    one_commit = False  # only the runner may commit, with the outcomes
    refused_commit: JobValueError | None = None  # once tried where it may not
    fenced: Any = None  # the last transaction whose commit was seen
    _open: tuple[Connection | None, Any] = (None, None)  # of the last transaction

    def within(self, held_until: float) -> timedelta | None:
        """
        Return how long after the fence its COMMIT may come; None where none follows.

        The lock that the fence takes must not outlast the lease, whose end is given.
        """
        if not self.commits:
            return None
        seconds = held_until - time.monotonic()
        return timedelta(seconds=max(LEAST_SECONDS, min(seconds, COMMIT_SECONDS)))

    @property
    def jobs(self) -> Sequence[Any]:
        """The jobs whose lease the fence checks."""
        raise NotImplementedError

    @property
    def ending(self) -> bool:
        """Whether the outcome is known and goes into the next commit."""
        raise NotImplementedError

    @property
    def used(self) -> bool:
        """Whether outcome and effects must be one commit."""
        session = self.session
        if session is None:
            return any(instance_state(job).modified for job in self.jobs)
        return bool(self.began or session.new or session.dirty or session.deleted)

    def check_open(self) -> None:
        """
        Refuse further work.

        Raises:
            AttemptInterrupted: If an attempt was interrupted or has ended.
            JobValueError: If a commit was refused before.
        """
        if self.refused_commit is not None:
            raise self.refused_commit

    def now(self) -> datetime | None:
        """Return the time that is written; None is the database's clock."""
        return None

    def on_begin(self, connection: Connection) -> None:
        """
        Watch the COMMIT of a transaction on the job's database.

        Raises:
            AttemptInterrupted: If an attempt was interrupted.
            JobValueError: If the connection is in AUTOCOMMIT mode.
        """
        self.check_open()
        self.began, self.begun_at = True, time.monotonic()
        dbapi = connection.connection.dbapi_connection
        self._open = connection, connection.connection.driver_connection
        if connection.dialect.detect_autocommit_setting(dbapi):  # type: ignore[arg-type]
            raise JobValueError(
                "a handler's session may not be in AUTOCOMMIT mode: its writes could"
                " not be taken back when the lease is lost"
            )
        _watch(connection, self)
        if dialect_of(connection).keeps_snapshot(connection):
            self.lock_jobs(connection)

    def lock_jobs(self, connection: Connection) -> None:
        """
        Lock the rows of the jobs until the transaction ends.

        Else the heartbeat would change them, and a fence with an older snapshot could
        not. What is locked needs no renewal: nobody can rescue it.

        Raises:
            AttemptInterrupted: If a lease is lost.
        """
        raise NotImplementedError

    def hang_up(self) -> None:
        """
        End the connection of an open transaction, which can no longer commit.

        Called from another thread: a statement to a server that vanished would be
        waited for as long as the system likes, and the slot with it.
        """
        connection, raw = self._open
        if connection is None or not self.commits:  # somebody else's goes on
            return
        if not (connection.closed or connection.invalidated):
            sockets.hang_up(raw)

    def on_commit(self, connection: Connection) -> None:
        """
        Write the fence as the last statement before a COMMIT.

        Raises:
            AttemptInterrupted: If a lease is lost; everything is rolled back.
            JobValueError: If only the runner may commit; likewise.
        """
        sent = time.monotonic()
        try:
            self.check_open()
            if self.one_commit and not self.ending:
                self.refused_commit = JobValueError(
                    "run_many() may not commit: its transaction is committed with the"
                    " outcomes of its jobs; use run() for checkpoints"
                )
                raise self.refused_commit
            self.write_fence(connection, sent)
        except BaseException:
            self._take_back(connection)
            raise

    def write_fence(self, connection: Connection, sent: float) -> None:
        """
        Check the leases; *sent* is the monotonic time from which they are renewed.

        Raises:
            AttemptInterrupted: If one is lost.
        """
        raise NotImplementedError

    def committed(self) -> None:
        """Note that a COMMIT took effect."""
        raise NotImplementedError

    def _take_back(self, connection: Connection) -> None:
        # Raising alone would leave the rows in an open transaction, for the pool's
        # next user to commit. Of a connection that broke nothing is left to take back.
        if connection.invalidated:
            return
        dbapi = connection.connection.dbapi_connection
        try:
            if dbapi is not None:
                dbapi.rollback()
        except Exception as exc:  # noqa: BLE001 - it broke, or `hang_up` was faster
            connection.invalidate(exc)
