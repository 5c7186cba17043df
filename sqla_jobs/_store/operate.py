"""What operators do to jobs that are there: cancel and requeue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    ColumnExpressionArgument,
    Executable,
    Select,
    Text,
    case,
    exists,
    func,
    null,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs._core.options import problem_of
from sqla_jobs._core.settle import REASON_BYTES
from sqla_jobs._core.states import CANCELLABLE, FINAL, LIVE, JobState, Lane
from sqla_jobs._core.text import clean_text
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store import wake
from sqla_jobs._store.base import (
    among,
    built_once,
    connection_of,
    execute,
    literal_states,
    word,
)
from sqla_jobs._store.changes import Changes, changes_of
from sqla_jobs._store.claim import MAX_LIMIT, check_limit
from sqla_jobs._store.enqueue import check_session, flush_before
from sqla_jobs._store.target import (
    Target,
    checked_ids,
    kinds_in,
    of_ids,
    of_kinds,
    target_of,
)
from sqla_jobs._store.unique import lock_keys_of
from sqla_jobs.errors import DuplicateJob, JobValueError
from sqla_jobs.models import JobTables, job_tables


@dataclass(frozen=True, slots=True)
class CancelResult:
    """Ids of jobs that are cancelled, asked to end, and already final or unknown."""

    cancelled: tuple[int, ...]
    requested: tuple[int, ...]
    unchanged: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RequeueResult:
    """
    Ids of jobs made available again, of those whose unique key is taken, and of those
    that are not final or unknown.
    """

    requeued: tuple[int, ...]
    duplicates: tuple[int, ...]
    unchanged: tuple[int, ...]


def request_cancel(
    session: Session,
    job_class: type[Any],
    ids: int | Iterable[int] | None = None,
    *,
    unique_key: str | None = None,
    fingerprint: str | None = None,
    where: ColumnExpressionArgument[bool] | None = None,
    reason: str = "cancelled on request",
    now: datetime | None = None,
) -> CancelResult:
    """
    Cancel waiting and held jobs at once and ask running ones to end; does not commit.

    A running job learns of it at its next heartbeat, checkpoint or look at
    ``ctx.cancelled``; if it succeeds nevertheless, it is completed, and if it fails, it
    is cancelled. It keeps its unique key until then. One statement, however many jobs;
    those that somebody is writing are waited for.

    Args:
        session: With an AsyncSession: ``await session.run_sync(request_cancel, ...)``.
        job_class: The root class; or a class under it, to cancel its kinds only.
        ids: One id or many.
        unique_key: Of the live job that has it.
        fingerprint: Of all live jobs that have it.
        where: Of all live jobs for which it is true: a condition on attributes of one
            job class, e.g. ``SendInvoice.subject == "Hi"``, then about its jobs only.
        reason: Kept in the row, cut to 1,000 bytes.

    Returns:
        Ids; ``unchanged`` has only such as were given by *ids*.

    Raises:
        JobValueError: Unless exactly one of *ids*, *unique_key*, *fingerprint* and
            *where* is given; or if it cannot be used.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "request_cancel")
    tables = job_tables(job_class)
    given = {
        "ids": ids,
        "unique_key": unique_key,
        "fingerprint": fingerprint,
        "where": where,
    }
    way = _one_way("request_cancel", given)
    params: dict[str, Any] = {
        "reason": clean_text(reason, REASON_BYTES),
        "now": now,
    }
    wanted = [] if ids is None else checked_ids(ids)
    build: Any = partial(_cancelling_by, way=way)
    if way == "where":
        build = partial(_cancelling_where, target_of(tables, job_class, where))
    else:
        value = wanted if way == "ids" else _checked_key(way, given[way])
        params |= {way: value, "kinds": kinds_in(tables, job_class)}
    rows = _cancel(session, tables, build, params)
    asked = {row.id for row in rows if row.state == JobState.RUNNING}
    done = {row.id for row in rows} - asked
    return CancelResult(
        tuple(sorted(done)),
        tuple(sorted(asked)),
        tuple(i for i in wanted if i not in done and i not in asked),
    )


def _one_way(verb: str, given: Mapping[str, Any]) -> str:
    ways = [name for name, value in given.items() if value is not None]
    if len(ways) == 1:
        return ways[0]
    *names, last = given
    raise JobValueError(
        f"{verb}() takes exactly one of {', '.join(names)} and {last};"
        f" got {' and '.join(ways) or 'none'}"
    )


def _checked_key(name: str, value: Any) -> str:
    if problem := problem_of(name, value):
        raise JobValueError(f"{name}={value!r} {problem}")
    return str(value)


def _cancel(
    session: Session, tables: JobTables, build: Any, params: dict[str, Any]
) -> Sequence[Any]:
    if "ids" not in params:
        flush_before(session)
    rows = execute(session, tables, build, params).all()
    # What waits behind an ordered job may go on.
    if any(row.ordered and row.state == JobState.CANCELLED for row in rows):
        wake.note(session, tables)
    return rows


@built_once
def _cancelling_by(tables: JobTables, dialect: JobDialect, *, way: str) -> Executable:
    job = tables.table.c
    wanted = of_ids(job.id) if way == "ids" else job[way] == bind(way, Text())
    return _cancelling(
        tables, dialect, select(job.id).where(wanted, of_kinds(tables), _live(tables))
    )


def _cancelling_where(
    target: Target, tables: JobTables, dialect: JobDialect
) -> Executable:
    return _cancelling(tables, dialect, target.ids(_live(tables)))


def _live(tables: JobTables) -> ColumnElement[bool]:
    """Return the predicate of the indexes on keys, literally."""
    return tables.table.c.state.not_in(literal_states(FINAL))


def _cancelling(
    tables: JobTables, dialect: JobDialect, found: Select[tuple[int]]
) -> Executable:
    job = tables.table.c
    waiting = job.state.in_(literal_states(CANCELLABLE))
    return (
        update(tables.table)
        .where(among(job.id, _locked(tables, dialect, found)))
        .values(
            state=case((waiting, JobState.CANCELLED.value), else_=job.state),
            finished_at=case((waiting, dialect.now())),
            cancel_requested_at=func.coalesce(job.cancel_requested_at, dialect.now()),
            reason=bind("reason", Text()),
        )
        .returning(job.id, job.state, job.ordered)
    )


def _locked(tables: JobTables, dialect: JobDialect, found: Select[tuple[int]]) -> Any:
    """Lock what is found in ascending order, as everybody does."""
    ordered = found.order_by(tables.table.c.id)
    return dialect.lock(ordered, skip=False, of=tables.table).cte("locked")


def requeue(
    session: Session,
    job_class: type[Any],
    ids: int | Iterable[int] | None = None,
    *,
    where: ColumnExpressionArgument[bool] | None = None,
    changes: Mapping[str, Any] | None = None,
    keep_state: bool = False,
    limit: int = MAX_LIMIT,
    now: datetime | None = None,
) -> RequeueResult:
    """
    Make final jobs available again with fresh attempts; does not commit.

    The id and the attempt history stay; ``ctx.state`` is cleared unless *keep_state*.
    An ordered job goes back to its place by its id. Runners are woken at the commit.

    Args:
        session: With an AsyncSession: ``await session.run_sync(requeue, ...)``.
        job_class: The root class; or a class under it, to requeue its kinds only.
        ids: One id, or many: then jobs whose unique key is taken by a live job are
            skipped and listed.
        where: Instead of ids: the dead letters, state `discarded`, for which it is
            true; a condition on attributes of one job class. Lowest ids first.
        changes: What the jobs get in the same moment, by keywords of the constructor:
            ``queue, channel, priority, run_at, delay, max_attempts, backoff, timeout,
            lease, tags, meta, fingerprint``, mapped columns, each `Arg`, ``payload``
            (which replaces all of it) and ``payload_bytes``. Default nothing.
        keep_state: Whether the next attempt sees the saved checkpoint. Default False.
        limit: Most jobs that *where* requeues at once, 1 to 10,000. Default 10,000.

    Raises:
        DuplicateJob: If *ids* is one id and a live job holds its unique key.
        JobValueError: Unless either *ids* or *where* is given; or if *changes* has an
            unknown name, a value that cannot be used or a part of the unique key.
        PayloadError: If an `Arg` in *changes* has the wrong type, or ``payload`` lacks
            one. Nothing is requeued then.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "requeue")
    check_limit(limit)
    tables = job_tables(job_class)
    _one_way("requeue", {"ids": ids, "where": where})
    target = None if ids is not None else target_of(tables, job_class, where)
    given = changes_of(target.job_class if target else job_class, changes or {})
    if ids is not None:
        wanted = checked_ids(ids)
    else:
        flush_before(session)
        wanted = _dead_ids(session, target, limit, taken=False) if target else []
    params = {
        "ids": wanted,
        "kinds": kinds_in(tables, job_class),
        "keep": keep_state,
        "now": now,
    }
    requeued = set[int]()
    if wanted:
        lock_keys_of(session, tables, wanted)
        requeued = _requeue_rows(session, tables, params, given)
    if requeued and not given.later:
        wake.note(session, tables)
    if target is not None:
        taken = _dead_ids(session, target, limit, taken=True)
        return RequeueResult(tuple(sorted(requeued)), tuple(taken), ())
    return _requeue_result(session, tables, ids, wanted=wanted, requeued=requeued)


def _requeue_result(
    session: Session,
    tables: JobTables,
    ids: Any,
    *,
    wanted: Sequence[int],
    requeued: set[int],
) -> RequeueResult:
    rest = [i for i in wanted if i not in requeued]
    taken = _duplicates(session, tables, rest) if rest else ()
    if isinstance(ids, int) and taken:
        raise DuplicateJob(
            f"job {ids} cannot be requeued: a live job holds its unique key"
        )
    return RequeueResult(
        tuple(sorted(requeued)), taken, tuple(i for i in rest if i not in taken)
    )


def _dead_ids(
    session: Session, target: Target, limit: int, *, taken: bool
) -> list[int]:
    """Return dead letters, locked in order; or those whose key a live job holds."""

    def build(tables: JobTables, dialect: JobDialect) -> Executable:
        job, key_taken = tables.table.c, _key_taken(tables)
        stmt = (
            target.ids(
                job.state == word(JobState.DISCARDED),
                key_taken if taken else ~key_taken,
            )
            .order_by(job.id)
            .limit(limit)
        )
        return stmt if taken else dialect.lock(stmt, skip=False, of=tables.table)

    return list(execute(session, target.tables, build, {}).scalars())


def _requeue_rows(
    session: Session, tables: JobTables, params: dict[str, Any], changes: Changes
) -> set[int]:
    """One retry: a raw INSERT meanwhile may take a key that looked free."""
    connection = connection_of(session, tables)
    build = partial(_requeueing_with, changes) if changes else _requeueing
    for last in (False, True):
        try:
            with connection.begin_nested():
                rows = execute(session, tables, build, params).all()
                changes.check_rows(tables, rows)
                return {row.id for row in rows}
        except IntegrityError:
            if last:
                raise
    raise AssertionError  # pragma: no cover


@built_once
def _requeueing(tables: JobTables, dialect: JobDialect) -> Executable:
    return _requeueing_with(Changes(), tables, dialect)


def _requeueing_with(
    changes: Changes, tables: JobTables, dialect: JobDialect
) -> Executable:
    job = tables.table.c
    final = job.state.in_(literal_states(FINAL))
    found = select(job.id).where(of_ids(job.id), of_kinds(tables), final)
    locked = _locked(tables, dialect, found)
    keep = bind("keep", Boolean())
    values: dict[Any, Any] = {
        job.state: JobState.AVAILABLE.value,
        job.run_at: dialect.now(),
        job.lane: Lane.FRESH,
        job.attempt: 0,
        job.crashes: 0,
        job.snoozes: 0,
        job.checkpoint: case((keep, job.checkpoint)),
        **{job[name]: null() for name in _EMPTIED},
    }
    return (
        update(tables.table)
        .where(among(job.id, locked), ~_key_taken(tables), _first_of_key(tables))
        .values(values | changes.values(tables, dialect))
        .returning(job.id, job.kind, job.unique_key)
    )


_EMPTIED = (
    *("progress", "result", "reason"),
    *("cancel_requested_at", "finished_at", "held_until"),
)


def _key_taken(tables: JobTables) -> ColumnElement[bool]:
    job, other = tables.table.c, tables.table.alias("other").c
    return exists().where(
        other.unique_key == job.unique_key, other.state.in_(literal_states(LIVE))
    )


def _first_of_key(tables: JobTables) -> ColumnElement[bool]:
    """Of several requeued jobs with one key only the lowest id may have it."""
    job, twin = tables.table.c, tables.table.alias("twin").c
    return ~exists().where(
        twin.unique_key == job.unique_key,
        twin.id < job.id,
        of_ids(twin.id),
        twin.state.in_(literal_states(FINAL)),
    )


def _duplicates(
    session: Session, tables: JobTables, ids: Sequence[int]
) -> tuple[int, ...]:
    rows = execute(session, tables, _finding_duplicates, {"ids": list(ids)})
    return tuple(row.id for row in rows)


@built_once
def _finding_duplicates(tables: JobTables, _dialect: JobDialect) -> Executable:
    job = tables.table.c
    final = job.state.in_(literal_states(FINAL))
    return (
        select(job.id).where(of_ids(job.id), final, _key_taken(tables)).order_by(job.id)
    )
