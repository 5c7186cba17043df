"""Why is a job not running? A handful of reads; none of them scans a backlog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    FromClause,
    Select,
    SmallInteger,
    Text,
    and_,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.orm import Session

from sqla_jobs._core import explanation as say
from sqla_jobs._core.explanation import Explanation, Reason
from sqla_jobs._core.limits import Bucket, QueueSettings
from sqla_jobs._core.options import RAW_KIND
from sqla_jobs._core.states import FINAL, SUSPECT_CRASHES, JobState
from sqla_jobs._core.subscriptions import read_label, subscription_of
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import built_once, execute, literal_states, word
from sqla_jobs._store.take import claimable
from sqla_jobs._store.target import checked_ids
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables

STALE = timedelta(seconds=60)
"""A runner whose row is older than that counts as dead; it writes it much oftener."""
MOST_AHEAD = 1_000
_SHOWN = 5  # jobs that hold the slots of a limit
_RUNNERS = 1_000


def explain(
    session: Session,
    job: Any,
    job_id: int | None = None,
    *,
    now: datetime | None = None,
) -> Explanation:
    """
    Tell why a job is not running, or who runs it; reads only.

    A handful of statements, whatever the size of the queue: one for a job that has
    ended, five at most for others. It tells what the database shows: whether a process
    that should run jobs hangs, or its slots are all taken, no row says.

    Args:
        session: Any session on the job table's database; with an AsyncSession: ``await
            session.run_sync(explain, Job, job_id)``.
        job: A job that is in the database; or a job class, with *job_id*.
        now: The time to use instead of the database's clock, for tests.

    Raises:
        JobValueError: If *job* is a class and *job_id* is no whole number, or *job* has
            no id yet, or both an instance and an id are given.
        MissingTables: If the job tables are not there.
    """
    wanted = _id_of(job, job_id)
    tables = job_tables(job)
    row = execute(session, tables, _reading, {"job": wanted, "now": now}).first()
    if row is None:
        return _gone(session, tables, wanted)
    state = JobState(row.state)
    if state in FINAL:
        reasons = [say.ended(row)]
    elif state is JobState.RUNNING:
        reasons = _while_running(session, tables, row)
    else:
        reasons = _before_running(session, tables, row)
    return say.explained(wanted, state, reasons)


def _id_of(job: Any, job_id: Any) -> int:
    if isinstance(job, type):
        if type(job_id) is int:
            return checked_ids(job_id)[0]
        raise JobValueError(
            f"explain(session, {job.__name__}, ...) needs the id of a job, got"
            f" {job_id!r}"
        )
    if job_id is not None:
        raise JobValueError(
            f"explain() takes a job, or a class and an id, got {job!r} and {job_id!r}"
        )
    tables = job_tables(job)
    found = getattr(job, tables.table.c.id.key, None)
    if found is None:
        raise JobValueError(f"{job!r} has no id yet; flush the session first")
    return int(found)


JOB_COLUMNS = (
    "id", "kind", "queue", "channel", "priority", "lane", "state", "run_at", "attempt",
    "max_attempts", "crashes", "leased_until", "runner_id", "ordered", "held_until",
    "cancel_requested_at", "reason", "last_error", "started_at", "finished_at",
)  # fmt: skip
_SETTINGS = tuple(one.name for one in fields(QueueSettings))


@built_once
def _reading(tables: JobTables, dialect: JobDialect) -> Executable:
    """The job, the row of its queue, its holder, and the clock."""
    job, queue, runner = tables.table.c, tables.queues.c, tables.runners.c
    names = dict.fromkeys((*_SETTINGS, "tokens", "tokens_at"))
    joined = tables.table.outerjoin(tables.queues, queue.name == job.queue)
    joined = joined.outerjoin(tables.runners, runner.id == job.runner_id)
    return (
        select(
            *(job[name] for name in JOB_COLUMNS),
            *(queue[name].label(f"queue_{name}") for name in names),
            *(runner[name].label(f"runner_{name}") for name in ("name", "host", "pid")),
            dialect.now().label("now"),
        )
        .select_from(joined)
        .where(job.id == bind("job", BigInteger()))
    )


def _gone(session: Session, tables: JobTables, job_id: int) -> Explanation:
    row = execute(session, tables, _reading_archive, {"job": job_id}).first()
    if row is None:
        return say.explained(job_id, None, [say.no_job(job_id)])
    reason = say.archived(row.state, row.finished_at, row.archived_at)
    return say.explained(job_id, JobState(row.state), [reason])


@built_once
def _reading_archive(tables: JobTables, _dialect: JobDialect) -> Executable:
    old = tables.archive.c
    wanted = select(old.state, old.finished_at, old.archived_at)
    return wanted.where(old.id == bind("job", BigInteger()))


def _while_running(session: Session, tables: JobTables, row: Any) -> list[Reason]:
    reasons = say.runs(row, row.now)
    if reasons[0].code is say.Why.LEASE_EXPIRED:
        runners = read_runners(session, tables)
        reasons += _nobody(runners, row.now)
    return reasons


def _before_running(session: Session, tables: JobTables, row: Any) -> list[Reason]:
    settings = _settings(row)
    reasons = _hindrances(session, tables, row, settings)
    if row.state != JobState.AVAILABLE:
        own = say.waits(row, row.now)
        return [*reasons, own] if _is_over(row) else [own, *reasons]
    if settings is not None and settings.limited:
        reasons += _limits(session, tables, row, settings)
    hindered = bool(reasons)
    if row.crashes >= SUSPECT_CRASHES:
        reasons.append(say.suspect(row.crashes))
    if not hindered:
        fair = settings is not None and settings.fair
        reasons.append(_in_line(session, tables, row, fair=fair))
    return reasons


def _hindrances(
    session: Session, tables: JobTables, row: Any, settings: QueueSettings | None
) -> list[Reason]:
    """Return what would hold the job even if it were available."""
    runners = read_runners(session, tables)
    reasons = _unserved(row, runners)
    if settings is not None and settings.paused:
        reasons.append(say.paused(row.queue))
    if row.ordered:
        reasons += _in_channel(session, tables, row, settings)
    return reasons


def _is_over(row: Any) -> bool:
    """Return whether the job's time has come, so that only a runner is missing."""
    until = row.held_until if row.state == JobState.HELD else row.run_at
    return until is not None and until <= row.now


def _settings(row: Any) -> QueueSettings | None:
    """Return the settings of the job's queue, if it has a row."""
    if row.queue_name is None:
        return None
    return QueueSettings(**{name: getattr(row, f"queue_{name}") for name in _SETTINGS})


# Who could run it


def read_runners(session: Session, tables: JobTables) -> Sequence[Any]:
    """Return the rows of runners, the last seen first, 1,000 at most."""
    return execute(session, tables, _reading_runners, {}).all()


@built_once
def _reading_runners(tables: JobTables, _dialect: JobDialect) -> Executable:
    runner = tables.runners.c
    names = ("name", "host", "pid", "queues", "kinds", "seen_at")
    found = select(*(runner[name] for name in names))
    return found.order_by(runner.seen_at.desc()).limit(_RUNNERS)


def _nobody(runners: Sequence[Any], now: datetime) -> list[Reason]:
    if any(one.seen_at > now - STALE for one in runners):
        return []
    return [say.no_runner(runners[0] if runners else None, STALE)]


def _unserved(row: Any, runners: Sequence[Any]) -> list[Reason]:
    """Return why no runner that is alive would claim the job, if so."""
    if row.kind == RAW_KIND:
        return []  # for workers without a runner, who leave no row
    nobody = _nobody(runners, row.now)
    if nobody:
        return nobody
    alive = [one for one in runners if one.seen_at > row.now - STALE]
    knowing = [one for one in alive if row.kind in (one.kinds or ())]
    if not knowing:
        return [say.unknown_kind(row.kind, alive[:_SHOWN])]
    if not any(_takes_from(one.queues, row.queue, row.channel) for one in knowing):
        return [say.not_served(row, knowing[:_SHOWN])]
    return []


def _takes_from(labels: Any, queue: str, channel: str) -> bool:
    if labels is None:
        return True
    try:
        known = [read_label(label) for label in labels]
    except (ValueError, LookupError, TypeError):  # a row of a newer version
        return True
    return subscription_of(known, queue, channel) is not None


# What comes first


def _in_channel(
    session: Session, tables: JobTables, row: Any, settings: QueueSettings | None
) -> list[Reason]:
    """Return what of its ordered channel holds the job."""
    params = {"job": row.id, "queue": row.queue, "channel": row.channel}
    found = {one.role: one for one in execute(session, tables, _channel, params)}
    head, running, dead = (found.get(role) for role in ("head", "running", "dead"))
    reasons = []
    if head is not None:
        reasons.append(say.behind(head, head.ahead, MOST_AHEAD, row.now))
    elif running is not None:
        reasons.append(say.beside(running.id))
    if dead is not None and settings is not None and settings.on_discard == "block":
        first = head is None or dead.id < head.id
        at = 0 if first else len(reasons)
        reasons.insert(at, say.blocked(dead.id, row.queue))
    return reasons


@built_once
def _channel(tables: JobTables, _dialect: JobDialect) -> Executable:
    """The first live job of the channel, one that runs, and the first dead one."""
    job = tables.table.c
    live = job.state.not_in(literal_states(FINAL))
    return union_all(
        _of_channel(tables, "head", live, MOST_AHEAD + 1),
        _of_channel(tables, "running", job.state == word(JobState.RUNNING), 1),
        _of_channel(tables, "dead", job.state == word(JobState.DISCARDED), 1),
    )


def _of_channel(
    tables: JobTables, role: str, where: ColumnElement[bool], limit: int
) -> Any:
    front = _from_line(tables, ("queue", "channel"), [tables.table.c.ordered, where])
    names = ("id", "state", "run_at", "held_until", "leased_until")
    found = front.order_by(tables.table.c.id).limit(limit).subquery(role)
    first = found.c
    earlier = first.id < bind("job", BigInteger())
    same = _same_line(found, ("queue", "channel"))
    return (
        select(
            literal(role).label("role"),
            *(first[name] for name in names),
            func.count().over().label("ahead"),
        )
        .where(*same, *([] if role == "running" else [earlier]))
        .order_by(first.id)
        .limit(1)
    )


def _from_line(
    tables: JobTables, line: Sequence[str], where: Sequence[ColumnElement[bool]]
) -> Select[*tuple[Any, ...]]:
    """
    Select jobs by the index that begins with *line*, from the bound values on.

    Where the line ends, others follow, for `_same_line` to leave out. A planner that
    is asked for just this line may take it for short, and sort all of it.
    """
    job = tables.table.c
    columns = [job[name] for name in line]
    given = tuple_(*(bind(name, Text()) for name in line))
    found = select(*(job[name] for name in JOB_COLUMNS))
    return found.where(tuple_(*columns) >= given, *where).order_by(*columns)


def _same_line(found: FromClause, line: Sequence[str]) -> list[ColumnElement[bool]]:
    return [found.c[name] == bind(name, Text()) for name in line]


def _limits(
    session: Session, tables: JobTables, row: Any, settings: QueueSettings
) -> list[Reason]:
    params = {"queue": row.queue, "channel": row.channel}
    running = execute(session, tables, _running, params).all()
    bucket = Bucket.of(
        settings,
        tokens=row.queue_tokens,
        filled_at=row.queue_tokens_at,
        now=row.now,
    )
    return say.limits(settings, row, running, bucket=bucket, now=row.now)


@built_once
def _running(tables: JobTables, _dialect: JobDialect) -> Executable:
    """A few running jobs of a queue, the channel's first; by the index on leases."""
    job = tables.table.c
    same = job.channel == bind("channel", Text())
    return (
        select(
            job.id,
            job.channel,
            func.count().over().label("total"),
            func.count().filter(same).over().label("in_channel"),
        )
        .where(job.state == word(JobState.RUNNING), job.queue == bind("queue", Text()))
        .order_by(same.desc(), job.started_at, job.id)
        .limit(_SHOWN)
    )


def _in_line(session: Session, tables: JobTables, row: Any, *, fair: bool) -> Reason:
    if row.ordered:
        where = f"ordered channel {row.channel!r} of queue {row.queue!r}"
        return say.in_line(row, 0, MOST_AHEAD, where=where)
    where, build = f"queue {row.queue!r}", _ahead
    if fair and row.channel:
        where, build = f"channel {row.channel!r} of fair {where}", _ahead_in_channel
    names = ("queue", "channel", "priority", "lane", "run_at")
    params = {name: getattr(row, name) for name in names} | {"job": row.id}
    ahead = execute(session, tables, build, params).scalar_one()
    return say.in_line(row, ahead, MOST_AHEAD, where=where)


@built_once
def _ahead(tables: JobTables, _dialect: JobDialect) -> Executable:
    return _counting(tables, ("queue",))


@built_once
def _ahead_in_channel(tables: JobTables, _dialect: JobDialect) -> Executable:
    return _counting(tables, ("queue", "channel"))


def _counting(tables: JobTables, line: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """
    Count those before the job among the first ones of its *line*.

    A search for all that come before it would, where they are few, read the line to
    its end.
    """
    job = tables.table.c
    where = [claimable(tables)]
    if "channel" in line:  # what the index is on
        where.append(job.channel != word(""))
    order = (job.priority.desc(), job.lane, job.run_at, job.id)
    front = _from_line(tables, line, where).order_by(*order)
    found = front.limit(MOST_AHEAD + 1).subquery("front")
    first, priority = found.c, bind("priority", SmallInteger())
    later = tuple_(
        bind("lane", SmallInteger()),
        bind("run_at", DateTime(timezone=True)),
        bind("job", BigInteger()),
    )
    same_priority = tuple_(first.lane, first.run_at, first.id) < later
    before = or_(
        first.priority > priority,
        and_(first.priority == priority, same_priority),
    )
    counted = select(func.count()).select_from(found)
    return counted.where(*_same_line(found, line), before)
