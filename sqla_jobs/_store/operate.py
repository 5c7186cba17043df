"""What operators do to jobs by id: cancel, requeue, purge; and retention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Executable,
    Integer,
    Interval,
    Text,
    case,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs._core.settle import REASON_BYTES
from sqla_jobs._core.states import CANCELLABLE, FINAL, LIVE, JobState, Lane
from sqla_jobs._core.text import clean_text
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import (
    among,
    built_once,
    connection_of,
    execute,
    literal_states,
)
from sqla_jobs._store.claim import check_limit, check_names, kinds_of
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
    ids: Iterable[int],
    *,
    reason: str = "cancelled on request",
    now: datetime | None = None,
) -> CancelResult:
    """
    Cancel waiting jobs at once and ask running ones to end; does not commit.

    A running job learns of it at its next heartbeat, checkpoint or look at
    ``ctx.cancelled``; if it succeeds nevertheless, it is completed.

    Args:
        reason: Kept in the row, cut to 1,000 bytes.

    Raises:
        MissingTables: If the job tables are not there.
    """
    wanted = sorted(set(ids))
    params = {"ids": wanted, "reason": clean_text(reason, REASON_BYTES), "now": now}
    rows = execute(session, job_tables(job_class), _cancelling, params).all()
    asked = {row.id for row in rows if row.state == JobState.RUNNING}
    done = {row.id for row in rows} - asked
    return CancelResult(
        tuple(sorted(done)),
        tuple(sorted(asked)),
        tuple(i for i in wanted if i not in done and i not in asked),
    )


@built_once
def _cancelling(tables: JobTables, dialect: JobDialect) -> Executable:
    job = tables.table.c
    locked = _locked(tables, dialect, [job.state.in_(literal_states(LIVE))])
    waiting = job.state.in_(literal_states(CANCELLABLE))
    return (
        update(tables.table)
        .where(among(job.id, locked))
        .values(
            state=case((waiting, JobState.CANCELLED.value), else_=job.state),
            finished_at=case((waiting, dialect.now())),
            cancel_requested_at=func.coalesce(job.cancel_requested_at, dialect.now()),
            reason=bind("reason", Text()),
        )
        .returning(job.id, job.state)
    )


def _locked(
    tables: JobTables, dialect: JobDialect, where: Sequence[ColumnElement[bool]]
) -> Any:
    """Lock the bound ids in ascending order, as everybody does."""
    job = tables.table.c
    ids = bind("ids", ARRAY(BigInteger()))
    stmt = select(job.id).where(job.id == func.any(ids), *where).order_by(job.id)
    return dialect.lock(stmt, skip=False).cte("locked")


def requeue(
    session: Session,
    job_class: type[Any],
    ids: int | Iterable[int],
    *,
    keep_state: bool = False,
    now: datetime | None = None,
) -> RequeueResult:
    """
    Make final jobs available again with fresh attempts; does not commit.

    The id and the attempt history stay; ``ctx.state`` is cleared unless *keep_state*.

    Args:
        ids: One id, or many: then jobs whose unique key is taken by a live job are
            skipped and listed.
        keep_state: Whether the next attempt sees the saved checkpoint. Default False.

    Raises:
        DuplicateJob: If *ids* is one id and a live job holds its unique key.
        MissingTables: If the job tables are not there.
    """
    tables = job_tables(job_class)
    single = isinstance(ids, int)
    wanted = [ids] if isinstance(ids, int) else sorted(set(ids))
    params = {"ids": wanted, "keep": keep_state, "now": now}
    requeued = _requeue_rows(session, tables, params)
    rest = [i for i in wanted if i not in requeued]
    taken = _duplicates(session, tables, rest) if rest else ()
    if single and taken:
        raise DuplicateJob(
            f"job {ids} cannot be requeued: a live job holds its unique key"
        )
    return RequeueResult(
        tuple(sorted(requeued)), taken, tuple(i for i in rest if i not in taken)
    )


def _requeue_rows(
    session: Session, tables: JobTables, params: dict[str, Any]
) -> set[int]:
    """One retry: a job enqueued meanwhile may take a key that looked free."""
    connection = connection_of(session, tables)
    for last in (False, True):
        try:
            with connection.begin_nested():
                rows = execute(session, tables, _requeueing, params)
                return {row.id for row in rows}
        except IntegrityError:
            if last:
                raise
    raise AssertionError  # pragma: no cover


@built_once
def _requeueing(tables: JobTables, dialect: JobDialect) -> Executable:
    job = tables.table.c
    locked = _locked(tables, dialect, [job.state.in_(literal_states(FINAL))])
    keep = bind("keep", Boolean())
    return (
        update(tables.table)
        .where(among(job.id, locked), ~_key_taken(tables), _first_of_key(tables))
        .values(
            state=JobState.AVAILABLE.value,
            run_at=dialect.now(),
            lane=Lane.FRESH,
            attempt=0,
            crashes=0,
            snoozes=0,
            checkpoint=case((keep, job.checkpoint)),
            progress=null(),
            result=null(),
            reason=null(),
            cancel_requested_at=null(),
            finished_at=null(),
        )
        .returning(job.id)
    )


def _key_taken(tables: JobTables) -> ColumnElement[bool]:
    job, other = tables.table.c, tables.table.alias("other").c
    return exists().where(
        other.unique_key == job.unique_key, other.state.in_(literal_states(LIVE))
    )


def _first_of_key(tables: JobTables) -> ColumnElement[bool]:
    """Of several requeued jobs with one key only the lowest id may have it."""
    job, other = tables.table.c, tables.table.alias("twin").c
    ids = bind("ids", ARRAY(BigInteger()))
    return ~exists().where(
        other.unique_key == job.unique_key,
        other.id < job.id,
        other.id == func.any(ids),
        other.state.in_(literal_states(FINAL)),
    )


def _duplicates(
    session: Session, tables: JobTables, ids: Sequence[int]
) -> tuple[int, ...]:
    rows = execute(session, tables, _finding_duplicates, {"ids": list(ids)})
    return tuple(row.id for row in rows)


@built_once
def _finding_duplicates(tables: JobTables, _dialect: JobDialect) -> Executable:
    job = tables.table.c
    ids = bind("ids", ARRAY(BigInteger()))
    return (
        select(job.id)
        .where(
            job.id == func.any(ids),
            job.state.in_(literal_states(FINAL)),
            _key_taken(tables),
        )
        .order_by(job.id)
    )


def purge(
    session: Session,
    job_class: type[Any],
    *,
    queues: Sequence[str] | None = None,
    states: Iterable[JobState | str] = FINAL,
    older_than: timedelta = timedelta(0),
    limit: int = 10_000,
    now: datetime | None = None,
) -> int:
    """
    Delete jobs with their attempts and return how many; does not commit.

    Args:
        job_class: The root class; or a class under it, to delete its kinds only.
        queues: Names of queues; None means all.
        states: Which jobs; default the final ones. Never running ones.
        older_than: Only jobs that finished, or were to run, at least this long ago.
            Default 0.
        limit: Most jobs to delete at once, 1 to 10,000. Default 10,000.

    Raises:
        JobValueError: If *states* holds `running` or no state, *queues* is one text,
            or *limit* is out of range.
        MissingTables: If the job tables are not there.
    """
    check_limit(limit)
    tables = job_tables(job_class)
    params = {
        "states": _purgeable(states),
        "queues": check_names("queues", queues),
        "kinds": None if job_class is tables.root else kinds_of(tables, job_class),
        "age": older_than,
        "limit": limit,
        "now": now,
    }
    return int(execute(session, tables, _purging, params).scalar_one())


def _purgeable(states: Iterable[JobState | str]) -> list[str]:
    try:
        wanted = {JobState(state) for state in states}
    except ValueError as exc:
        raise JobValueError(f"{exc}; states are {', '.join(JobState)}") from None
    if JobState.RUNNING in wanted or not wanted:
        raise JobValueError(
            "purge does not delete running jobs; request_cancel() them first"
            if wanted
            else "purge needs at least one state"
        )
    return sorted(wanted)


@built_once
def _purging(tables: JobTables, dialect: JobDialect) -> Executable:
    job, attempt = tables.table.c, tables.attempts.c
    queues = bind("queues", ARRAY(Text()))
    kinds = bind("kinds", ARRAY(Text()))
    states = bind("states", ARRAY(Text()))
    since = func.coalesce(job.finished_at, job.run_at)
    old = dialect.lock(
        select(job.id)
        .where(
            job.state == func.any(states),
            since <= dialect.now() - bind("age", Interval()),
            or_(queues.is_(null()), job.queue == func.any(queues)),
            or_(kinds.is_(null()), job.kind == func.any(kinds)),
        )
        .order_by(job.id)
        .limit(bind("limit", Integer())),
        skip=True,
        delete=True,
    ).cte("old")
    gone = delete(tables.table).where(among(job.id, old)).returning(job.id).cte("gone")
    log = delete(tables.attempts).where(attempt.job_id == gone.c.id).cte("logged")
    return select(func.count()).select_from(gone).add_cte(log)


def apply_retention(
    session: Session,
    tables: JobTables,
    *,
    limit: int = 1_000,
    now: datetime | None = None,
) -> int:
    """
    Delete finished jobs that are older than their class's retention.

    One statement per distinct (state, age); kinds this process does not map are left
    alone. Does not commit. Returns how many were deleted.
    """
    deleted = 0
    for (state, age), kinds in retention_groups(tables).items():
        params = {
            "state": state,
            "kinds": kinds,
            "age": age,
            "limit": limit,
            "now": now,
        }
        deleted += int(execute(session, tables, _retaining, params).scalar_one())
    return deleted


def retention_groups(tables: JobTables) -> dict[tuple[str, timedelta], list[str]]:
    """Return the kinds that share a state and an age."""
    groups: dict[tuple[str, timedelta], list[str]] = {}
    for kind, job_class in tables.kinds.items():
        retention = job_class.__job_options__.retention
        for state in sorted(FINAL):
            age = getattr(retention, state.value)
            if age is not None:
                groups.setdefault((state.value, age), []).append(kind)
    return groups


@built_once
def _retaining(tables: JobTables, dialect: JobDialect) -> Executable:
    """As `_purging`, but by the index on finished jobs: oldest first."""
    job, attempt = tables.table.c, tables.attempts.c
    old = dialect.lock(
        select(job.id)
        .where(
            job.state.in_(literal_states(FINAL)),  # what the index is on
            job.state == bind("state", Text()),
            job.finished_at <= dialect.now() - bind("age", Interval()),
            job.kind == func.any(bind("kinds", ARRAY(Text()))),
        )
        .order_by(job.finished_at)
        .limit(bind("limit", Integer())),
        skip=True,
        delete=True,
    ).cte("old")
    gone = delete(tables.table).where(among(job.id, old)).returning(job.id).cte("gone")
    log = delete(tables.attempts).where(attempt.job_id == gone.c.id).cte("logged")
    return select(func.count()).select_from(gone).add_cte(log)
