"""The rows of running runners: for people to see, never a fence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Executable,
    Interval,
    Text,
    Uuid,
    delete,
    func,
    select,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.options import RAW_KIND
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import built_once, execute
from sqla_jobs._store.take import claimable
from sqla_jobs.models import JobTables

STALE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """Who a runner is and what it takes."""

    id: UUID
    name: str
    host: str
    pid: int
    queues: Mapping[str, int] | None
    kinds: Sequence[str]


def upsert_runner(session: Session, tables: JobTables, info: RunnerInfo) -> None:
    """Write or refresh the runner's row; does not commit."""
    values = {
        "id": info.id,
        "name": info.name,
        "host": info.host,
        "pid": info.pid,
        "queues": None if info.queues is None else dict(info.queues),
        "kinds": list(info.kinds),
    }
    execute(session, tables, _upserting, values)


@built_once
def _upserting(tables: JobTables, dialect: JobDialect) -> Executable:
    names = ("id", "name", "host", "pid", "queues", "kinds")
    columns = tables.runners.c
    values: dict[str, Any] = {name: bind(name, columns[name].type) for name in names}
    values |= {"started_at": dialect.clock(), "seen_at": dialect.clock()}
    return dialect.upsert(
        tables.runners, values, key="id", change={"seen_at": dialect.clock()}
    )


def forget_runner(session: Session, tables: JobTables, runner_id: UUID) -> None:
    """Delete the runner's row, and those not seen for a day; does not commit."""
    execute(session, tables, _forgetting, {"runner": runner_id, "stale": STALE})


@built_once
def _forgetting(tables: JobTables, dialect: JobDialect) -> Executable:
    runner = tables.runners.c
    stale = dialect.clock() - bind("stale", Interval())
    mine = runner.id == bind("runner", Uuid())
    return delete(tables.runners).where(mine | (runner.seen_at < stale))


def unknown_kinds(
    session: Session, tables: JobTables, known: Sequence[str]
) -> list[str]:
    """Return kinds of available jobs, of the first 1,000 found, not among *known*."""
    return list(
        execute(session, tables, _unknown, {"known": [RAW_KIND, *known]}).scalars()
    )


@built_once
def _unknown(tables: JobTables, _dialect: JobDialect) -> Executable:
    job = tables.table.c
    known = bind("known", ARRAY(Text()))
    some = (
        select(job.kind)
        .where(claimable(tables), job.kind != func.all(known))
        .limit(1_000)
        .subquery("some")
    )
    return select(some.c.kind).distinct().order_by(some.c.kind)
