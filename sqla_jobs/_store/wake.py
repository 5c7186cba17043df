"""
Wake the runners: at most one notification per transaction and job table.

It is noted when jobs are written and sent right before COMMIT. A notification is a
hint, so what is lost here costs a poll interval, never a job.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Executable, TwoPhaseTransaction
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import Pool

from sqla_jobs._core.clock import SystemClock
from sqla_jobs._dialects import JobDialect, dialect_of
from sqla_jobs._store.base import Where, built_once, connection_of, execute
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables

COALESCE_SECONDS = 0.01
"""How long a committed notification stands for later ones of the same process."""

_KEY = "sqla_jobs.wake"


@dataclass(slots=True, eq=False)
class _Wakes:
    """What one session's transaction has to notify, and has notified."""

    # With the innermost transaction at that time, which may be a savepoint.
    noted: dict[tuple[JobTables, SessionTransaction | None], None] = field(
        default_factory=dict
    )
    sent: dict[JobTables, Connection | None] = field(default_factory=dict)
    committing: bool = False


def note(session: Session, tables: JobTables) -> None:
    """Note that the session's transaction adds available jobs; does not commit."""
    wakes: _Wakes = session.info.setdefault(_KEY, _Wakes())
    inner = session.get_nested_transaction() or session.get_transaction()
    wakes.noted[tables, inner] = None


def notify_runners(where: Session | Connection, job_class: type[Any]) -> None:
    """
    Wake runners for jobs that were inserted past the ORM; does not commit.

    As all wake-ups it takes effect at the commit, and may be left out within 10 ms of
    another one of this process: runners that were just woken look again by themselves.

    Args:
        where: What inserted them: a Session, or a Connection, also in autocommit.
        job_class: The root class of the jobs, or one under it.

    Raises:
        JobValueError: If *where* is something else, such as an AsyncSession.
        UnsupportedDialect: If the database is not supported.
    """
    tables = job_tables(job_class)
    if isinstance(where, Session):
        note(where, tables)
        return
    if not isinstance(where, Connection):
        raise JobValueError(
            f"notify_runners() needs a Session or a Connection, got"
            f" {type(where).__name__}; with an async one, call it by `run_sync`"
        )
    if isinstance(where.get_transaction(), TwoPhaseTransaction):
        return
    sent = _notify(where, tables)
    if sent is not None and getattr(where.connection, "autocommit", False):
        _recent.add(where.engine.pool, _channel(where, tables))


def begin_commit(session: Session) -> None:
    """Send what is noted; what later flushes of this commit note, `send` sends."""
    if _root_commits(session):
        session.info.setdefault(_KEY, _Wakes()).committing = True
        send(session)


def send(session: Session) -> None:
    """Send the notifications of a session that is committing; does not commit."""
    wakes: _Wakes | None = session.info.get(_KEY)
    if wakes is None or not wakes.committing:
        return
    for tables in {tables for tables, _ in wakes.noted} - wakes.sent.keys():
        # PostgreSQL refuses to prepare a transaction that has notified.
        wakes.sent[tables] = None if session.twophase else _notify(session, tables)


def end_commit(session: Session) -> None:
    """Let the notifications just committed suppress others for `COALESCE_SECONDS`."""
    wakes: _Wakes | None = session.info.get(_KEY)
    if wakes is None or session.in_nested_transaction():
        return
    del session.info[_KEY]
    for tables, connection in wakes.sent.items():
        # A connection that belongs to somebody else's transaction has not committed.
        if connection is not None and not connection.in_transaction():
            _recent.add(connection.engine.pool, _channel(connection, tables))


def forget(session: Session, transaction: SessionTransaction) -> None:
    """Drop what was noted inside *transaction*, which has been rolled back."""
    wakes: _Wakes | None = session.info.get(_KEY)
    if wakes is None:
        return
    if transaction.parent is None:
        del session.info[_KEY]
        return
    for key in [key for key in wakes.noted if _is_inside(key[1], transaction)]:
        del wakes.noted[key]


def forget_recent() -> None:
    """Forget which notifications were sent lately, so that the next one is sent."""
    _recent.clear()


def _is_inside(
    inner: SessionTransaction | None, transaction: SessionTransaction
) -> bool:
    while inner is not None and inner is not transaction:
        inner = inner.parent
    return inner is not None


def _root_commits(session: Session) -> bool:
    if not session.in_nested_transaction():
        return True
    # `with session.begin():` commits the root first, also over a savepoint left open.
    root = session.get_transaction()
    return getattr(root, "_current_fn", None) is not None


def _notify(where: Where, tables: JobTables) -> Connection | None:
    if not tables.notify:
        return None
    connection = connection_of(where, tables)
    if not dialect_of(connection).listen_notify:
        return None
    channel = _channel(connection, tables)
    if _recent.has(connection.engine.pool, channel):
        return None
    execute(connection, tables, partial(_notification, channel=channel), {})
    return connection


def _channel(connection: Connection, tables: JobTables) -> str:
    return tables.channel_in(connection.get_execution_options())


@built_once
def _notification(
    tables: JobTables, dialect: JobDialect, *, channel: str
) -> Executable:
    return dialect.notify(channel)


class _Recent:
    """When each channel of each database was last notified, by this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clock = SystemClock()
        self._times: WeakKeyDictionary[Pool, dict[str, float]] = WeakKeyDictionary()

    def add(self, pool: Pool, channel: str) -> None:
        now = self._clock.monotonic()
        with self._lock:
            self._times.setdefault(pool, {})[channel] = now

    def has(self, pool: Pool, channel: str) -> bool:
        now = self._clock.monotonic()
        with self._lock:
            at = self._times.get(pool, {}).get(channel)
        return at is not None and now - at < COALESCE_SECONDS

    def clear(self) -> None:
        with self._lock:
            self._times.clear()


_recent = _Recent()
