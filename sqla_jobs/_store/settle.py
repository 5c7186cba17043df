"""Write what attempts ended in: any number of them in one guarded statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    DateTime,
    Executable,
    Float,
    FromClause,
    Integer,
    Select,
    Text,
    Update,
    case,
    func,
    insert,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from sqla_jobs._core.settle import Settlement
from sqla_jobs._core.states import FINAL, STATES, JobState, Lane
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import (
    Where,
    execute,
    is_running,
    literal_states,
    state_rule,
    word,
)
from sqla_jobs._store.lease import commit_limit
from sqla_jobs.models import JobTables

_COLUMNS: dict[str, TypeEngine[Any]] = {
    "job_id": BigInteger(),
    "token": BigInteger(),
    "action": Text(),
    "delay": Float(),
    "at": DateTime(timezone=True),
    "result": Text(),
    "checkpoint": Text(),
    "progress": Text(),
    "reason": Text(),
    "error": Text(),
    "traceback": Text(),
}
SPENT = "attempts used up"
ONE, ZERO = literal_column("1", Integer()), literal_column("0", Integer())
_LOGGED = ("retry", "cancel", "discard")  # a good job costs no attempt row


def settle(
    session: Where,
    tables: JobTables,
    settlements: Sequence[Settlement],
    *,
    wait: bool = True,
    within: timedelta | None = None,
    now: datetime | None = None,
) -> dict[int, JobState]:
    """
    Settle attempts in one statement and return the new states by job id.

    A job that is missing in the answer was no longer held with its token: nothing was
    written for it. Attempts that did not complete are logged. Does not commit.

    Args:
        wait: Whether to wait for rows that another transaction is writing; else they
            are missing in the answer too. Default True.
        within: How long the COMMIT may take to come; see `fence`. Implies *wait*.
    """
    if not settlements:
        return {}
    # Of two outcomes of one attempt the first counts.
    rows = list({(row[0], row[1]): row for row in reversed(settlements)}.values())
    # By column: most are empty in all rows.
    values = dict(zip(Settlement._fields, zip(*rows, strict=True), strict=True))
    names = _names(values)
    params: dict[str, Any] = {"now": now, **commit_limit(within)}
    limited = within is not None
    if len(rows) == 1 and wait and "action" not in names:
        build = partial(_completing, names=names, limited=limited)
        params |= {name: values[name][0] for name in names}
    else:
        build = partial(_settling, names=names, skip=not wait, limited=limited)
        params |= {name: list(values[name]) for name in names}
    found = execute(session, tables, build, params).all()
    return {row[0]: STATES[row[1]] for row in found}


def _names(values: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Return the columns to send: good jobs alone need few, by a short statement."""
    if values["action"].count("complete") < len(values["action"]):
        return tuple(_COLUMNS)
    given = [name for name in ("result", "checkpoint", "progress") if any(values[name])]
    return ("job_id", "token", *given)


@lru_cache(maxsize=256)
def _completing(
    tables: JobTables, dialect: JobDialect, *, names: tuple[str, ...], limited: bool
) -> Executable:
    """Settle one job that completed, as a handler's own transaction does."""
    job = tables.table.c
    given = {name: bind(name, _COLUMNS[name]) for name in names}
    stmt = (
        update(tables.table)
        .where(
            job.id == given["job_id"],
            job.lease_token == given["token"],
            is_running(job.state),
        )
        .values(_completed(tables, dialect, given))
    )
    limit = [dialect.limit_commit(bind("within", Text()))] if limited else []
    return stmt.returning(job.id, job.state, *limit)


@lru_cache(maxsize=256)
def _settling(
    tables: JobTables,
    dialect: JobDialect,
    *,
    names: tuple[str, ...],
    skip: bool,
    limited: bool,
) -> Executable:
    held = _held(tables, dialect, names, skip=skip)
    good = "action" not in names
    update_ = (_settled_good if good else _settled)(tables, dialect, held)
    settled = update_.cte("settled")
    stmt: Select[*tuple[Any, ...]] = select(settled.c.id, settled.c.state)
    if not good:
        stmt = stmt.add_cte(_logged(tables, dialect, settled).cte("logged"))
    if limited:
        stmt = stmt.add_columns(dialect.limit_commit(bind("within", Text())))
    return stmt


def _held(
    tables: JobTables, dialect: JobDialect, names: Sequence[str], *, skip: bool
) -> CTE:
    """
    The given outcomes of attempts that hold their job, the rows locked in id order.

    An UPDATE alone locks in the order of its plan: a deadlock with whoever locks by id.
    The next state is worked out once, here: psycopg parses a statement of more than
    4,096 characters anew each time.
    """
    given = dialect.rows("given", {name: _COLUMNS[name] for name in names})
    job, state = tables.table.c, state_rule("complete", {})
    if "action" in names:
        conditions = {
            "cancel_requested": job.cancel_requested_at.is_not(null()),
            "exhausted": job.attempt >= job.max_attempts,
        }
        state = state_rule(given.c.action, conditions)
    held = (
        select(state.label("next"), *(c for c in given.c if c.key != "token"))
        .where(
            job.id == given.c.job_id,
            job.lease_token == given.c.token,
            is_running(job.state),
        )
        .order_by(job.id)
    )
    return dialect.lock(held, skip=skip, of=tables.table).cte("held")


def _settled_good(tables: JobTables, dialect: JobDialect, held: CTE) -> Update:
    job, new = tables.table.c, dict(held.c.items())
    stmt = update(tables.table).where(job.id == new["job_id"])
    return stmt.values(_completed(tables, dialect, new)).returning(job.id, job.state)


def _completed(
    tables: JobTables, dialect: JobDialect, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what changes in a job that completed; the rest stays."""
    job = tables.table.c
    saved = {
        name: func.coalesce(dialect.json(given[name]), job[name])
        for name in ("checkpoint", "progress")
        if name in given
    }
    return {
        "state": state_rule("complete", {}),
        "leased_until": null(),
        "finished_at": dialect.now(),
        "result": dialect.json(given["result"]) if "result" in given else null(),
        "reason": null(),
        **saved,
    }


def _settled(tables: JobTables, dialect: JobDialect, held: CTE) -> Update:
    job, new = tables.table.c, held.c
    final = new.next.in_(literal_states(FINAL))
    is_retry, is_snooze = new.action == word("retry"), new.action == word("snooze")
    back = is_snooze | (new.action == word("release"))
    # Cancelled without a reason of the handler's: the request has one.
    own_reason = new.reason.is_not(null()) & (new.action == word("cancel"))
    own_reason |= new.next != word("cancelled")
    spent = is_retry & (new.next == word("discarded"))
    due = func.coalesce(new.at, dialect.now() + dialect.seconds(new.delay), job.run_at)
    return (
        update(tables.table)
        .where(job.id == new.job_id)
        .values(
            state=new.next,
            attempt=job.attempt - case((back, ONE), else_=ZERO),
            snoozes=job.snoozes + case((is_snooze, ONE), else_=ZERO),
            lane=case((is_retry, literal_column(str(Lane.RETRIED))), else_=job.lane),
            run_at=due,
            leased_until=null(),
            finished_at=case((final, dialect.now())),
            result=dialect.json(new.result),
            checkpoint=func.coalesce(dialect.json(new.checkpoint), job.checkpoint),
            progress=func.coalesce(dialect.json(new.progress), job.progress),
            reason=case(
                (own_reason, func.coalesce(new.reason, case((spent, word(SPENT))))),
                else_=job.reason,  # the request's
            ),
            last_error=func.coalesce(new.error, job.last_error),
        )
        .returning(
            job.id,
            job.state,
            job.lease_token,
            job.attempt,
            job.started_at,
            job.runner_id,
            *(new[name] for name in ("action", "reason", "error", "traceback")),
        )
    )


def _logged(tables: JobTables, dialect: JobDialect, settled: FromClause) -> Any:
    rows = select(
        settled.c.id,
        settled.c.lease_token,
        settled.c.attempt,
        func.coalesce(settled.c.started_at, dialect.now()),
        dialect.now(),
        settled.c.runner_id,
        settled.c.action,
        func.coalesce(settled.c.error, settled.c.reason),
        settled.c.traceback,
    ).where(settled.c.action.in_([word(action) for action in _LOGGED]))
    return insert(tables.attempts).from_select(ATTEMPT_COLUMNS, rows)


ATTEMPT_COLUMNS = [
    "job_id", "lease_token", "number", "started_at", "finished_at", "runner_id",
    "outcome", "error", "traceback",
]  # fmt: skip
