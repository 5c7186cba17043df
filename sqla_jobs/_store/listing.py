"""Jobs as plain rows, for people to look at: listed, counted and found by filters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Executable,
    Integer,
    Text,
    func,
    select,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.states import JobState
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import built_once, execute, literal_states
from sqla_jobs.models import JobTables
from sqla_jobs.models.columns import COLUMN_ORDER

SUMMARY = (
    "id", "kind", "queue", "channel", "priority", "state", "run_at", "attempt",
    "max_attempts", "reason", "last_error", "created_at", "started_at", "finished_at",
)  # fmt: skip
"""The columns that fit into a list; payloads may hold secrets."""


@dataclass(frozen=True, slots=True)
class Filter:
    """
    Which jobs; None means any.

    Args:
        states: In SQL literally, so that partial indexes serve.
    """

    ids: Sequence[int] | None = None
    queues: Sequence[str] | None = None
    kinds: Sequence[str] | None = None
    states: frozenset[JobState] | None = None
    unique_key: str | None = None
    fingerprint: str | None = None

    def params(self) -> dict[str, Any]:
        """Return the parameters of the statement, only those that it has."""
        given: dict[str, Any] = {
            "ids": None if self.ids is None else list(self.ids),
            "queues": None if self.queues is None else list(self.queues),
            "kinds": None if self.kinds is None else list(self.kinds),
            "unique_key": self.unique_key,
            "fingerprint": self.fingerprint,
        }
        return {name: value for name, value in given.items() if value is not None}

    def conditions(self, tables: JobTables) -> Iterable[ColumnElement[bool]]:
        """Yield the conditions on the table of jobs."""
        job = tables.table.c
        if self.ids is not None:
            yield job.id == func.any(bind("ids", ARRAY(BigInteger())))
        if self.queues is not None:
            yield job.queue == func.any(bind("queues", ARRAY(Text())))
        if self.kinds is not None:
            yield job.kind == func.any(bind("kinds", ARRAY(Text())))
        if self.states is not None:
            yield job.state.in_(literal_states(self.states))
        if self.unique_key is not None:
            yield job.unique_key == bind("unique_key", Text())
        if self.fingerprint is not None:
            yield job.fingerprint == bind("fingerprint", Text())


def list_jobs(
    session: Session,
    tables: JobTables,
    wanted: Filter,
    *,
    limit: int,
    before_id: int | None = None,
) -> list[dict[str, Any]]:
    """Return the `SUMMARY` of jobs, newest first."""
    params = wanted.params() | {"limit": limit}
    if before_id is not None:
        params["before"] = before_id
    build = partial(_listing, wanted=wanted, paged=before_id is not None)
    rows = execute(session, tables, build, params).mappings()
    return [dict(row) for row in rows]


def _listing(
    tables: JobTables, _dialect: JobDialect, *, wanted: Filter, paged: bool
) -> Executable:
    job = tables.table.c
    found = select(*(job[name] for name in SUMMARY)).where(*wanted.conditions(tables))
    if paged:
        found = found.where(job.id < bind("before", BigInteger()))
    return found.order_by(job.id.desc()).limit(bind("limit", Integer()))


def find_ids(
    session: Session,
    tables: JobTables,
    wanted: Filter,
    *,
    after_id: int,
    limit: int,
) -> list[int]:
    """Return ids above *after_id*, the lowest first: to work in batches."""
    params = wanted.params() | {"after": after_id, "limit": limit}
    found = execute(session, tables, partial(_finding, wanted=wanted), params)
    return list(found.scalars())


def _finding(tables: JobTables, _dialect: JobDialect, *, wanted: Filter) -> Executable:
    job = tables.table.c
    later = job.id > bind("after", BigInteger())
    found = select(job.id).where(later, *wanted.conditions(tables))
    return found.order_by(job.id).limit(bind("limit", Integer()))


def count_jobs(session: Session, tables: JobTables, wanted: Filter) -> int:
    """Return how many jobs there are; reads all of them."""
    build = partial(_counting, wanted=wanted)
    return int(execute(session, tables, build, wanted.params()).scalar_one())


def _counting(tables: JobTables, _dialect: JobDialect, *, wanted: Filter) -> Executable:
    counted = select(func.count()).select_from(tables.table)
    return counted.where(*wanted.conditions(tables))


def read_job(session: Session, tables: JobTables, job_id: int) -> dict[str, Any] | None:
    """Return all of the library's columns of a job; None if there is none."""
    found = execute(session, tables, _reading, {"job": job_id})
    row = found.mappings().one_or_none()
    return None if row is None else dict(row)


@built_once
def _reading(tables: JobTables, _dialect: JobDialect) -> Executable:
    job = tables.table.c
    found = select(*(job[name] for name in COLUMN_ORDER))
    return found.where(job.id == bind("job", BigInteger()))
