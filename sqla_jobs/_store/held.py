"""Jobs as those see them who know an id only: rows, and a held lease."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Executable, func, select
from sqlalchemy.orm import Session

from sqla_jobs._core.states import JobState
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import built_once, execute
from sqla_jobs._store.claim import Claim, claim_of
from sqla_jobs.errors import LeaseLost
from sqla_jobs.models import JobTables
from sqla_jobs.models.columns import COLUMN_ORDER


def find_rows(
    session: Session, tables: JobTables, ids: Iterable[int]
) -> dict[int, Any]:
    """
    Return the library's columns of the jobs that are there, by id.

    Neither options of the application's sessions nor its classes change what is found.
    Beside them there is ``queue_backoff``, the queue's own.
    """
    rows = execute(session, tables, _finding, {"ids": list(ids)})
    return {row.id: row for row in rows}


@built_once
def _finding(tables: JobTables, _dialect: JobDialect) -> Executable:
    job, queue = tables.table.c, tables.queues.c
    ids = bind("ids", ARRAY(BigInteger()))
    columns = [job[name] for name in COLUMN_ORDER]
    return (
        select(*columns, queue.backoff.label("queue_backoff"))
        .select_from(tables.table.outerjoin(tables.queues, queue.name == job.queue))
        .where(job.id == func.any(ids))
    )


def find_claim(
    session: Session, tables: JobTables, job_id: int, token: int
) -> Claim | None:
    """
    Return the claim of whoever holds the job with *token*; None if there is no job.

    Takes no lock: the verbs are fenced, and raise if the lease is lost meanwhile.

    Raises:
        LeaseLost: If the job is not held with that token.
    """
    row = find_rows(session, tables, [job_id]).get(job_id)
    if row is None:
        return None
    if row.lease_token != token or row.state != JobState.RUNNING:
        raise LeaseLost(job_id, row.attempt)
    return claim_of(row, tables, row.queue_backoff)
