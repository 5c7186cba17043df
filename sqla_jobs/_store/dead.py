"""Dead letters: list them, and see every attempt that they had."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnExpressionArgument, Select, select
from sqlalchemy.orm import Session

from sqla_jobs._core.payloads import check_json
from sqla_jobs._core.states import JobState
from sqla_jobs._store.base import naming_missing_tables, word
from sqla_jobs._store.claim import check_limit, check_names
from sqla_jobs._store.enqueue import check_session
from sqla_jobs._store.target import Target, checked_ids, target_of
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import job_tables
from sqla_jobs.models.construct import check_time
from sqla_jobs.models.support import AttemptRow

T = TypeVar("T")


def dead_letters(  # noqa: PLR0913 - one keyword per condition
    session: Session,
    job_class: type[T],
    *,
    queues: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    reason: str | None = None,
    since: datetime | None = None,
    where: ColumnExpressionArgument[bool] | None = None,
    limit: int = 50,
    before_id: int | None = None,
) -> list[T]:
    """
    Return discarded jobs as mapped instances, those with the highest ids first.

    All conditions must hold. The next page is ``before_id=found[-1].id``, also when the
    jobs of this one have been requeued or deleted meanwhile.

    Args:
        session: With an AsyncSession: ``await session.run_sync(dead_letters, ...)``.
        job_class: The root class; or a class under it, to see its kinds only.
        queues: Names of queues; None means all.
        kinds: Kinds, mapped or not; None means all of *job_class*.
        reason: A part of the column ``reason``, e.g. ``"poison"``.
        since: An aware datetime: only those discarded then or later.
        where: A condition on attributes of one job class, e.g.
            ``Job.last_error.startswith("ConnectionError")``.
        limit: Most jobs to return, 1 to 10,000. Default 50.
        before_id: Only jobs with lower ids.

    Raises:
        JobValueError: If *limit* is out of range, *queues* or *kinds* is one text,
            *since* has no time zone, or *where* cannot be used.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "dead_letters")
    check_limit(limit)
    tables = job_tables(job_class)
    target = target_of(tables, job_class, where)
    job = tables.table.c
    # Not by the primary key: it would read every job that came after the dead ones.
    newest_first = (job.id + 0).desc()
    stmt = (
        select(target.job_class)
        .where(job.state == word(JobState.DISCARDED), target.where)
        .order_by(newest_first)
        .limit(limit)
    )
    for name, names, column in (
        ("queues", queues, job.queue),
        ("kinds", kinds, job.kind),
    ):
        chosen = check_names(name, names)
        if chosen is not None:
            stmt = stmt.where(column.in_(chosen))
    stmt = _narrowed(stmt, target, reason=reason, since=since, before_id=before_id)
    with naming_missing_tables(tables):
        return list(session.scalars(stmt))


def _narrowed(
    stmt: Select[Any],
    target: Target,
    *,
    reason: str | None,
    since: datetime | None,
    before_id: int | None,
) -> Select[Any]:
    job = target.tables.table.c
    if reason is not None:
        if not isinstance(reason, str):
            raise JobValueError(f"reason must be a text, got {reason!r}")
        check_json(reason, "reason")
        stmt = stmt.where(job.reason.contains(reason, autoescape=True))
    if since is not None:
        check_time(f"since={since!r}", since)
        stmt = stmt.where(job.finished_at >= since)
    if before_id is not None:
        (number,) = checked_ids(before_id)
        stmt = stmt.where(job.id < number)
    return stmt


def history(session: Session, job_class: type[Any], job_id: int) -> list[AttemptRow]:
    """
    Return the attempts of a job that did not complete, as mapped rows, oldest first.

    They stay when the job is requeued or archived, and go when it is deleted. An
    unknown job has none.

    Args:
        session: With an AsyncSession: ``await session.run_sync(history, ...)``.
        job_class: The root class, or any class under it.
        job_id: The job's id.

    Raises:
        JobValueError: If *job_id* is no integer.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "history")
    tables = job_tables(job_class)
    (number,) = checked_ids(job_id)
    row: Any = tables.root.Attempt
    stmt = select(row).where(row.job_id == number).order_by(row.lease_token)
    with naming_missing_tables(tables):
        return list(session.scalars(stmt))
