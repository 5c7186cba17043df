"""
Sends to ordered channels: ids are given in the order of commits.

A job's place in its channel is its id, which the database gives at the INSERT. Without
a lock a sender that commits late would put its job in front of one that runs already.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from sqlalchemy import ClauseElement, Connection

from sqla_jobs._core.options import DEFAULTS
from sqla_jobs._store.base import Where, connection_of
from sqla_jobs._store.locks import lock_names
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables


def lock_channels(session: Where, jobs: Iterable[Any]) -> None:
    """
    Wait until nobody else is sending to the channels of the ordered ones of *jobs*.

    One statement per job table, none without ordered jobs. The locks end with the
    transaction, or with the rollback of its savepoint.

    Raises:
        JobValueError: If the channel of an ordered job is an SQL expression, or the
            connection is in AUTOCOMMIT mode.
    """
    channels: dict[JobTables, set[tuple[str, ...]]] = {}
    for job in jobs:
        if is_ordered(job):
            found = channels.setdefault(job_tables(job), set())
            found.add(_channel_of(job))
    for tables in sorted(channels, key=lambda one: one.table.fullname):
        _refuse_autocommit(connection_of(session, tables))
        lock_names(session, tables, "channel", channels[tables])


def is_ordered(job: Any) -> bool:
    """Return whether a new *job* keeps its place among those added before and after."""
    return vars(job).get("ordered", False) is not False


def refuse_ordered(job_class: type[Any], verb: str) -> NoReturn:
    """
    Refuse ordered jobs where their order could not be kept.

    Raises:
        JobValueError: Always.
    """
    name = job_class.__name__
    raise JobValueError(
        f"{verb}({name}) takes no ordered jobs: rows of one statement, and those of"
        " other senders, may get their ids in another order; use"
        f" session.add_all([{name}(...), ...])"
    )


def _refuse_autocommit(connection: Connection) -> None:
    dbapi: Any = connection.connection.dbapi_connection
    if connection.dialect.detect_autocommit_setting(dbapi):
        raise JobValueError(
            "ordered jobs need a transaction, this session is in AUTOCOMMIT mode: the"
            " lock on their channel would not last until their INSERT"
        )


def _channel_of(job: Any) -> tuple[str, str]:
    row = vars(job)
    queue, channel = row.get("queue", DEFAULTS.queue), row.get("channel", "")
    for name, value in (("queue", queue), ("channel", channel), ("ordered", True)):
        if isinstance(row.get(name, value), ClauseElement):
            raise JobValueError(
                f"{type(job).__name__}.{name} is an SQL expression, but an ordered job"
                " waits for its channel before the INSERT; give a plain value"
            )
    return queue, channel
