"""What any runner does at each poll: rescue expired leases, stage due jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Executable,
    Integer,
    Interval,
    Text,
    case,
    cast,
    exists,
    extract,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.limits import NO_FEATURES, Features
from sqla_jobs._core.states import FINAL, WAITING, JobState, Lane
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import (
    among,
    built_once,
    execute,
    literal_states,
    state_rule,
    word,
)
from sqla_jobs._store.claim import check_limit, check_names
from sqla_jobs._store.features import feature_flags, read_queues
from sqla_jobs._store.settle import ATTEMPT_COLUMNS
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables

MAX_CRASHES = 3
BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Rescued:
    """One job taken back from a holder whose lease had expired."""

    job_id: int
    kind: str
    queue: str
    state: JobState
    attempt: int
    crashes: int
    runner_id: UUID | None


def rescue(
    session: Session,
    job_class: type[Any],
    *,
    queues: Sequence[str] | None = None,
    expired_for: timedelta = timedelta(0),
    max_crashes: int = MAX_CRASHES,
    limit: int = BATCH,
    now: datetime | None = None,
) -> list[Rescued]:
    """
    Take back jobs whose lease expired and return them; does not commit.

    They become `available` in the lane after fresh and retried ones, or `discarded`
    when attempts or crashes are used up, or `cancelled` when that was requested. Rows
    their holder is writing at the moment are skipped.

    Args:
        queues: Names of queues; None means all.
        expired_for: Only leases that expired at least this long ago. Default 0.
        max_crashes: Crashes at which a job is discarded as poison, 1 or more.
            Default 3.
        limit: Most jobs to take back at once. Default 1,000.

    Raises:
        JobValueError: If *limit* or *max_crashes* is below 1, or *queues* is one text.
        MissingTables: If the job tables are not there.
    """
    check_limit(limit)
    if max_crashes < 1:
        raise JobValueError(f"max_crashes must be 1 or more, got {max_crashes}")
    params = {
        "queues": check_names("queues", queues),
        "expired_for": expired_for,
        "max_crashes": max_crashes,
        "limit": limit,
        "now": now,
    }
    rows = execute(session, job_tables(job_class), _rescuing, params)
    return [
        Rescued(r.id, r.kind, r.queue, JobState(r.state), r.attempt, r.crashes, r.held)
        for r in rows
    ]


@built_once
def _rescuing(tables: JobTables, dialect: JobDialect) -> Executable:
    job = tables.table.c
    expired = _expired(tables, dialect)
    crashes = job.crashes + 1
    poison = crashes >= bind("max_crashes", Integer())
    exhausted = job.attempt >= job.max_attempts
    wanted = job.cancel_requested_at.is_not(null())
    conditions = {"cancel_requested": wanted, "exhausted": exhausted, "poison": poison}
    state = state_rule("rescue", conditions)
    reason = case(
        (wanted, job.reason),  # the request's
        (poison, func.concat("poison: ", crashes, " crashes")),
        (exhausted, "attempts used up"),
    )
    rescued = (
        update(tables.table)
        .where(among(job.id, expired))
        .values(
            state=state,
            lane=Lane.RESCUED,
            crashes=crashes,
            lease_token=job.lease_token + 1,
            leased_until=null(),
            finished_at=case((state.in_(literal_states(FINAL)), dialect.now())),
            reason=reason,
            last_error=_CRASHED,
        )
        .returning(
            job.id, job.kind, job.queue, job.state, job.attempt, job.crashes,
            job.runner_id.label("held"), job.started_at, job.lease_token,
        )
        .cte("rescued")
    )  # fmt: skip
    rows = select(
        rescued.c.id,
        rescued.c.lease_token - 1,
        rescued.c.attempt,
        func.coalesce(rescued.c.started_at, dialect.now()),
        dialect.now(),
        rescued.c.held,
        literal("crash"),
        literal(_CRASHED),
        null(),
    )
    log = insert(tables.attempts).from_select(ATTEMPT_COLUMNS, rows).cte("logged")
    return select(rescued).add_cte(log)


_CRASHED = "the lease expired: its runner crashed, hung or lost the database"


def _expired(tables: JobTables, dialect: JobDialect) -> Any:
    job = tables.table.c
    queues = bind("queues", ARRAY(Text()))
    late = dialect.now() - bind("expired_for", Interval())
    return dialect.lock(
        select(job.id)
        .where(
            job.state == word(JobState.RUNNING),
            job.leased_until < late,
            or_(queues.is_(null()), job.queue == func.any(queues)),
        )
        .order_by(job.leased_until)
        .limit(bind("limit", Integer())),
        skip=True,
    ).cte("expired")


@dataclass(frozen=True, slots=True)
class Staged:
    """
    How many jobs became available, and the seconds until the next one is due.

    ``holds_due`` tells whether held jobs have expired, ``has_ordered`` and
    ``has_queues`` what else claims have to look for.
    """

    count: int
    next_due: float | None
    holds_due: bool = field(default=False, kw_only=True)
    has_ordered: bool = field(default=False, kw_only=True)
    has_queues: bool = field(default=False, kw_only=True)


def stage(
    session: Session,
    job_class: type[Any],
    *,
    limit: int = BATCH,
    now: datetime | None = None,
) -> Staged:
    """
    Make due `scheduled` and `retryable` jobs `available`; does not commit.

    One statement; ``next_due`` is 0 when more are due than *limit* and None when none
    is waiting.

    Raises:
        JobValueError: If *limit* is below 1.
        MissingTables: If the job tables are not there.
    """
    check_limit(limit)
    params = {"limit": limit, "now": now}
    row: Any = execute(session, job_tables(job_class), _staging, params).one()
    waits = [float(wait) for wait in (row.next_due, row.next_hold) if wait is not None]
    return Staged(
        row.count,
        max(0.0, min(waits)) if waits else None,
        holds_due=row.holds_due,
        has_ordered=row.has_ordered,
        has_queues=row.has_queues,
    )


@built_once
def _staging(tables: JobTables, dialect: JobDialect) -> Executable:
    job = tables.table.c
    waiting = or_(*(job.state == word(state) for state in sorted(WAITING)))
    due = dialect.lock(
        select(job.id)
        .where(waiting, job.run_at <= dialect.now())
        .order_by(job.run_at)
        .limit(bind("limit", Integer())),
        skip=True,
    ).cte("due")
    staged = (
        update(tables.table)
        .where(among(job.id, due))
        .values(state=JobState.AVAILABLE.value)
        .returning(job.id)
        .cte("staged")
    )
    # The snapshot still shows the staged rows as waiting: leave them out by time,
    # unless the batch was full and more of them are due.
    full = select(func.count()).select_from(staged).scalar_subquery()
    limit = bind("limit", Integer())
    later = (
        select(extract("epoch", func.min(job.run_at) - dialect.now()))
        .where(waiting, job.run_at > dialect.now())
        .scalar_subquery()
    )
    due_next = case((full >= limit, cast(literal(0), Integer)), else_=later)
    held = job.state == word(JobState.HELD)
    # Not those that are over: one that is being confirmed would be due all the time.
    hold = (
        select(extract("epoch", func.min(job.held_until) - dialect.now()))
        .where(held, job.held_until > dialect.now())
        .scalar_subquery()
    )
    over = exists().where(held, job.held_until <= dialect.now())
    return select(
        full.label("count"),
        due_next.label("next_due"),
        hold.label("next_hold"),
        over.label("holds_due"),
        *feature_flags(tables, backoffs=True),
    )


def features_of(session: Session, tables: JobTables, staged: Staged) -> Features:
    """Return what claims have to look for; one statement if queues are managed."""
    if not staged.has_ordered and not staged.has_queues:
        return NO_FEATURES
    queues = read_queues(session, tables) if staged.has_queues else {}
    return Features(staged.has_ordered, queues)
