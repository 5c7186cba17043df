"""Pick available jobs for a plain claim: locked ids, queue by queue."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    Boolean,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    case,
    func,
    literal,
    null,
    or_,
    select,
)

from sqla_jobs._core.states import SUSPECT_CRASHES, JobState
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import word
from sqla_jobs._store.take import claimable, is_managed
from sqla_jobs.models import JobTables


def pick(
    tables: JobTables, dialect: JobDialect, all_queues: bool, all_kinds: bool
) -> CTE:
    """
    The ids to take: up to ``slots`` of each queue, the queues in turn.

    MATERIALIZED, so that a nested loop around it cannot run its LIMIT again and take
    far too many rows.
    """
    wanted = _all_queues(tables) if all_queues else _given_queues(dialect)
    found = _candidates(tables, dialect, wanted, all_kinds=all_kinds)
    suspect = found.c.crashes >= SUSPECT_CRASHES
    ranked = (
        select(
            found.c.id,
            found.c.turn,
            suspect.label("suspect"),
            func.count(case((suspect, 1))).over(rows=(None, 0)).label("suspects"),
        )
        .select_from(wanted.join(found, literal(True)))
        .subquery("ranked")
    )
    # Equal turns of several queues: at random, so that none is always last.
    return (
        select(ranked.c.id)
        .where(or_(~ranked.c.suspect, ranked.c.suspects == 1))
        .order_by(ranked.c.turn, func.random())
        .limit(bind("limit", Integer()))
        .cte("picked")
        .prefix_with("MATERIALIZED")
    )


def _candidates(
    tables: JobTables, dialect: JobDialect, wanted: FromClause, *, all_kinds: bool
) -> Any:
    job = tables.table.c
    queue = tables.queues.c
    closed = (
        select(queue.name)
        .where(queue.name == wanted.c.queue, or_(queue.paused, is_managed(tables)))
        .correlate(wanted)
        .exists()
    )
    conditions: list[ColumnElement[bool]] = [
        job.queue == wanted.c.queue,
        claimable(tables),
        ~closed,
        or_(bind("suspects", Boolean()), job.crashes < SUSPECT_CRASHES),
    ]
    if not all_kinds:
        conditions.append(job.kind == func.any(bind("kinds", ARRAY(Text()))))
    stmt: Select[*tuple[Any, ...]] = (
        select(job.id, job.crashes)
        .where(*conditions)
        .order_by(job.priority.desc(), job.lane, job.run_at, job.id)
        .limit(wanted.c.slots)
    )
    ready = dialect.lock(stmt, skip=True, of=tables.table)
    ready_rows = ready.correlate(wanted).lateral("ready")
    # Numbered as they come, in claim order: no second sort.
    turn = func.row_number().over().label("turn")
    return select(ready_rows.c.id, ready_rows.c.crashes, turn).lateral("found")


def _given_queues(dialect: JobDialect) -> FromClause:
    return dialect.rows("wanted", {"queue": Text(), "slots": Integer()})


def _all_queues(tables: JobTables) -> FromClause:
    """Every queue with claimable jobs, by a loose scan of the claim index."""
    job = tables.table.alias("head")
    first = select(func.min(job.c.queue).label("queue")).where(
        job.c.state == word(JobState.AVAILABLE), ~job.c.ordered
    )
    names = first.cte("names", recursive=True)
    job = tables.table.alias("next")
    following = (
        select(func.min(job.c.queue))
        .where(
            job.c.state == word(JobState.AVAILABLE),
            ~job.c.ordered,
            job.c.queue > names.c.queue,
        )
        .scalar_subquery()
    )
    names = names.union_all(select(following).where(names.c.queue.is_not(None)))
    limit = bind("limit", Integer())
    return (
        select(names.c.queue, limit.label("slots"))
        .where(names.c.queue.is_not(null()))
        .subquery("wanted")
    )
