"""Two-phase enqueue: a held job has its place and waits to be confirmed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NoReturn

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Executable,
    Integer,
    Interval,
    Text,
    and_,
    case,
    func,
    literal,
    null,
    select,
    update,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.backoff import duration_problem
from sqla_jobs._core.settle import REASON_BYTES
from sqla_jobs._core.states import JobState
from sqla_jobs._core.text import clean_text
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store import wake
from sqla_jobs._store.base import among, built_once, execute, word
from sqla_jobs._store.enqueue import check_session
from sqla_jobs._store.times import tested_clock
from sqla_jobs.errors import HoldExpired, JobValueError
from sqla_jobs.models import JobTables, job_tables

EXPIRED = "hold expired"
BATCH = 1_000
"""Most holds that one sweep cancels."""

_PAST = {"confirm": "confirmed", "extend": "extended", "abort": "aborted"}


def confirm_hold(
    session: Session,
    job_class: type[Any],
    ids: int | Iterable[int],
    *,
    now: datetime | None = None,
) -> None:
    """
    Let held jobs run, all of *ids* or none; does not commit.

    They become `available`, or `scheduled` if their ``run_at`` is still ahead. Runners
    are woken at the commit. One statement, in any session: it waits for others that
    are changing these jobs.

    Args:
        session: With an AsyncSession: ``await session.run_sync(confirm_hold, ...)``.
        job_class: The root class or any class under it.
        ids: One id, or many.

    Raises:
        HoldExpired: If one of them is not held any more, or its time is over.
        JobValueError: If an id is no integer, as before the flush.
        MissingTables: If the job tables are not there.
    """
    _change(session, job_class, ids, verb="confirm", now=now)


def extend_hold(
    session: Session,
    job_class: type[Any],
    ids: int | Iterable[int],
    for_: timedelta,
    *,
    now: datetime | None = None,
) -> None:
    """
    Hold jobs for *for_* from now on, all of *ids* or none; does not commit.

    Args:
        for_: Above zero. It may also end the hold earlier.

    Raises:
        HoldExpired: If one of them is not held any more, or its time is over.
        JobValueError: If *for_* is no such timedelta, or an id is no integer.
        MissingTables: If the job tables are not there.
    """
    problem = duration_problem(for_) or (None if for_ else "must be above zero")
    if problem:
        raise JobValueError(f"extend_hold(for_={for_!r}) {problem}")
    _change(session, job_class, ids, verb="extend", now=now, hold_for=for_)


def abort_hold(
    session: Session,
    job_class: type[Any],
    ids: int | Iterable[int],
    reason: str = "hold aborted",
    *,
    now: datetime | None = None,
) -> None:
    """
    Cancel held jobs, all of *ids* or none; does not commit.

    That frees their unique keys, and the jobs behind them in ordered channels.

    Args:
        reason: Kept in the row, cut to 1,000 bytes.

    Raises:
        HoldExpired: If one of them is not held any more.
        JobValueError: If an id is no integer, as before the flush.
        MissingTables: If the job tables are not there.
    """
    text = clean_text(reason, REASON_BYTES)
    _change(session, job_class, ids, verb="abort", now=now, reason=text)


def _change(
    session: Session,
    job_class: type[Any],
    ids: int | Iterable[int],
    *,
    verb: str,
    now: datetime | None,
    **params: Any,
) -> None:
    check_session(session, f"{verb}_hold")
    tables, wanted = job_tables(job_class), _checked_ids(ids, verb)
    if not wanted:
        return
    now = now or tested_clock(session, tables)
    params |= {"ids": wanted, "count": len(wanted), "now": now}
    rows = execute(session, tables, partial(_changing, verb=verb), params).all()
    if any(row.changed is None for row in rows) or len(rows) < len(wanted):
        _raise_expired(verb, wanted, rows)
    freed = verb == "abort" and any(row.ordered for row in rows)
    if freed or any(row.changed == JobState.AVAILABLE for row in rows):
        wake.note(session, tables)


def _checked_ids(ids: Any, verb: str) -> list[int]:
    wanted = set(ids) if isinstance(ids, Iterable) else {ids}
    for one in wanted:
        if type(one) is not int:
            raise JobValueError(
                f"{verb}_hold() needs ids, got {one!r}; a job has its id after"
                " session.flush()"
            )
    return sorted(wanted)


@built_once
def _changing(tables: JobTables, dialect: JobDialect, *, verb: str) -> Executable:
    """The rows are locked first, so that each is as it is now, and all are judged."""
    job = tables.table.c
    over = _is_over(job, dialect)
    found = select(job.id, job.state, job.reason, job.held_until, job.ordered, over)
    ids = bind("ids", ARRAY(BigInteger()))
    locked = dialect.lock(
        found.where(job.id == func.any(ids)).order_by(job.id), skip=False
    ).cte("locked")
    good = locked.c.state == word(JobState.HELD)
    if verb != "abort":
        good = and_(good, ~locked.c.over)
    all_good = select(func.count()).select_from(locked).where(good).scalar_subquery()
    changed = (
        update(tables.table)
        .where(among(job.id, locked), all_good == bind("count", Integer()))
        .values(**_VALUES[verb](job, dialect))
        .returning(job.id, job.state)
        .cte("changed")
    )
    return (
        select(locked, good.label("good"), changed.c.state.label("changed"))
        .select_from(locked.outerjoin(changed, changed.c.id == locked.c.id))
        .order_by(locked.c.id)
    )


def _is_over(job: Any, dialect: JobDialect) -> ColumnElement[bool]:
    # NULL, as after a raw INSERT, is no hold that could expire later.
    return func.coalesce(job.held_until <= dialect.now(), literal(False)).label("over")


def _confirmed(job: Any, dialect: JobDialect) -> dict[str, Any]:
    later = job.run_at > dialect.now()
    state = case((later, word(JobState.SCHEDULED)), else_=word(JobState.AVAILABLE))
    return {"state": state, "held_until": null()}


def _extended(_job: Any, dialect: JobDialect) -> dict[str, Any]:
    return {"held_until": dialect.now() + bind("hold_for", Interval())}


def _aborted(_job: Any, dialect: JobDialect) -> dict[str, Any]:
    return {
        "state": JobState.CANCELLED.value,
        "finished_at": dialect.now(),
        "reason": bind("reason", Text()),
    }


_VALUES = {"confirm": _confirmed, "extend": _extended, "abort": _aborted}


def _raise_expired(verb: str, wanted: Sequence[int], rows: Sequence[Any]) -> NoReturn:
    found = {row.id: row for row in rows}
    bad = [one for one in wanted if one not in found or not found[one].good]
    row = found.get(bad[0])
    state, reason = (None, None) if row is None else (row.state, row.reason)
    if row is None:
        why = "there is no such job"
    elif state == JobState.HELD:
        reason, why = EXPIRED, f"its hold expired at {row.held_until}"
    elif reason:
        why = f"it is {state}: {reason}"
    else:
        why = f"it is {state}, no longer held"
    others = f", nor {len(bad) - 1} more" if len(bad) > 1 else ""
    text = f"job {bad[0]} cannot be {_PAST[verb]}{others}: {why}"
    if len(wanted) > len(bad):
        text += f"; none of the {len(wanted)} jobs was"
    raise HoldExpired(text, bad[0], state, reason)


def expire_holds(
    session: Session, tables: JobTables, *, now: datetime | None = None
) -> int:
    """
    Cancel held jobs whose time is over and return how many; does not commit.

    At most `BATCH`, and none that somebody is confirming at the moment. Runners are
    woken at the commit if ordered jobs may follow.
    """
    params = {"limit": BATCH, "now": now}
    count, ordered = execute(session, tables, _expiring, params).one()
    if ordered:
        wake.note(session, tables)
    return int(count)


@built_once
def _expiring(tables: JobTables, dialect: JobDialect) -> Executable:
    job = tables.table.c
    over = dialect.lock(
        select(job.id)
        .where(job.state == word(JobState.HELD), job.held_until <= dialect.now())
        .order_by(job.held_until)
        .limit(bind("limit", Integer())),
        skip=True,
    ).cte("over")
    expired = (
        update(tables.table)
        .where(among(job.id, over))
        .values(
            state=JobState.CANCELLED.value, finished_at=dialect.now(), reason=EXPIRED
        )
        .returning(job.ordered)
        .cte("expired")
    )
    ordered = func.count().filter(expired.c.ordered)
    return select(func.count(), ordered).select_from(expired)
