"""
Count what runs in queues with limits, and keep their token buckets.

A claim locks the rows of the queues first and counts by a later statement, so that it
sees what all claims before it took; the locks end with its transaction. A claim that
takes something also writes the row: in a transaction with an older snapshot, which
would not see the jobs, the lock then fails.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    DateTime,
    Double,
    Executable,
    Text,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from sqla_jobs._core.limits import Bucket, QueueSettings
from sqla_jobs._core.states import FINAL, JobState
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import built_once, execute, literal_states, word
from sqla_jobs._store.take import is_managed
from sqla_jobs.models import JobTables

_SETTINGS = tuple(QueueSettings.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class OpenQueue:
    """
    A queue that is fair or limited, not paused, and has jobs that may be ready.

    Args:
        settings: None if it is limited and another transaction has its row.
        bucket: The tokens of its rate, at *at*; None without one.
        at: When the bucket was looked at, by the database's clock.
    """

    name: str
    settings: QueueSettings | None
    bucket: Bucket | None
    at: datetime


def open_queues(
    session: Session,
    tables: JobTables,
    names: Sequence[str],
    *,
    now: datetime | None = None,
) -> list[OpenQueue]:
    """Return those of *names* that are open; locks the rows of those with limits."""
    rows = execute(session, tables, _opening, {"names": list(names), "now": now})
    return [_open_queue(row) for row in rows]


def _open_queue(row: Any) -> OpenQueue:
    values = row._mapping
    if row.limited and row.locked_name is None:
        return OpenQueue(row.name, None, None, row.at)
    of = "locked_" if row.limited else ""
    settings = QueueSettings(**{name: values[of + name] for name in _SETTINGS})
    at = max(row.at, row.locked_tokens_at or row.at)
    bucket = Bucket.of(
        settings, tokens=row.locked_tokens, filled_at=row.locked_tokens_at, now=at
    )
    return OpenQueue(row.name, settings, bucket, at)


@built_once
def _opening(tables: JobTables, dialect: JobDialect) -> Executable:
    queue = tables.queues.c
    limits = (queue.max_running, queue.max_running_per_channel, queue.rate_limit)
    wanted = (
        select(
            *(queue[name] for name in _SETTINGS),
            or_(*(limit.is_not(None) for limit in limits)).label("limited"),
        )
        .where(
            queue.name == func.any(bind("names", ARRAY(Text()))),
            is_managed(tables),
            ~queue.paused,
            has_jobs(tables, queue.name),
        )
        .cte("wanted")
    )
    columns = (*_SETTINGS, "tokens", "tokens_at")
    rows = (
        select(*(queue[name].label(f"locked_{name}") for name in columns))
        .where(queue.name.in_(select(wanted.c.name).where(wanted.c.limited)))
        .order_by(queue.name)
    )
    locked = dialect.lock(rows, skip=True, of=tables.queues).cte("locked")
    return select(wanted, locked, dialect.now().label("at")).select_from(
        wanted.outerjoin(locked, wanted.c.name == locked.c.locked_name)
    )


def has_jobs(tables: JobTables, name: ColumnElement[str]) -> ColumnElement[bool]:
    """
    Return whether the queue *name* has available jobs, or ordered ones that are live.

    Each is asked for in the order of its index: any other plan may read all rows.
    """
    job = tables.table.alias("ready").c
    states = literal_states(FINAL)
    ready = (
        select(job.id)
        .where(job.queue == name, job.state == word(JobState.AVAILABLE), ~job.ordered)
        .order_by(job.priority.desc(), job.lane, job.run_at, job.id)
    )
    ordered = (
        select(job.id)
        .where(job.queue == name, job.ordered, job.state.not_in(states))
        .order_by(job.channel, job.id)
    )
    found = [one.limit(1).scalar_subquery() for one in (ready, ordered)]
    return or_(*(one.is_not(None) for one in found))


def count_running(
    session: Session, tables: JobTables, names: Sequence[str]
) -> Mapping[str, Counter[str]]:
    """Return how many jobs run in each channel of each of *names*."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in execute(session, tables, _counting, {"names": list(names)}):
        found[row.queue][row.channel] = row.running
    return found


@built_once
def _counting(tables: JobTables, _dialect: JobDialect) -> Executable:
    job = tables.table.c
    return (
        select(job.queue, job.channel, func.count().label("running"))
        .where(
            job.state == word(JobState.RUNNING),
            job.queue == func.any(bind("names", ARRAY(Text()))),
        )
        .group_by(job.queue, job.channel)
    )


def charge(
    session: Session, tables: JobTables, taken: Sequence[tuple[OpenQueue, int]]
) -> None:
    """Take a token for each job from the locked *taken* queues; does not commit."""
    tokens = [
        None if queue.bucket is None else queue.bucket.tokens - count
        for queue, count in taken
    ]
    params = {
        "charged": [queue.name for queue, _ in taken],
        "tokens": tokens,
        "at": [queue.at for queue, _ in taken],
    }
    execute(session, tables, _charging, params)


@built_once
def _charging(tables: JobTables, dialect: JobDialect) -> Executable:
    columns: dict[str, TypeEngine[Any]] = {
        "charged": Text(),
        "tokens": Double(),
        "at": DateTime(timezone=True),
    }
    given = dialect.rows("given", columns).c
    return (
        update(tables.queues)
        .where(tables.queues.c.name == given.charged)
        .values(tokens=given.tokens, tokens_at=given.at)
    )
