"""
Unique keys: at most one live job has one, and a sender never fails for it in SQL.

A sender locks its keys first, which makes it wait for others that are about to commit
the same ones, and then looks for live jobs. So what it does is certain before the first
INSERT, and its transaction stays usable whatever that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    Text,
    Update,
    and_,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy import inspect as state_of
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.attributes import flag_modified, set_committed_value

from sqla_jobs._core.states import FINAL, JobState
from sqla_jobs._core.unique import (
    REPLACED,
    Dropped,
    Group,
    Live,
    Refusal,
    dropped,
    duplicate_text,
    grouped,
    refusal,
)
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import (
    among,
    built_once,
    connection_of,
    execute,
    literal_states,
    word,
)
from sqla_jobs._store.locks import MOST_NAMES, lock_names
from sqla_jobs._store.times import tested_clock
from sqla_jobs.errors import DuplicateJob
from sqla_jobs.models import JobTables, job_tables
from sqla_jobs.models.unique import policy_of, set_key, unique_key_of

SPACE = "unique"
FINAL_VALUES = frozenset(state.value for state in FINAL)

Wanted = tuple[str, str]  # a key, and the policy


def keep_unique(session: Session, jobs: Sequence[Any]) -> Sequence[Any]:
    """
    Return those of the new *jobs* that are to be inserted; the others are expunged.

    Two statements per job table, none without a job that has a key.

    Raises:
        DuplicateJob: If a key is taken and the job's policy says so; nothing is
            changed then, but that job is expunged.
        JobValueError: If a key is not known before the flush.
    """
    keyed: dict[JobTables, list[tuple[Any, str]]] = {}
    for job in jobs:
        if job._duplicate_of is not None:  # of an earlier flush
            job._duplicate_of = None
        key = key_of(job)
        if key is not None:
            keyed.setdefault(job_tables(job), []).append((job, key))
    gone: set[int] = set()
    for tables in sorted(keyed, key=lambda one: one.table.fullname):
        gone |= _settle(session, tables, keyed[tables])
    return [job for job in jobs if id(job) not in gone] if gone else jobs


def add_key(job: Any) -> None:
    """Give a job that no flush has looked at its computed key; the index decides."""
    key = key_of(job)
    if key is not None:
        set_key(job, key)


def key_of(job: Any) -> str | None:
    """
    Return the unique key of a new *job*, None if it has none.

    Raises:
        JobValueError: If it is not known before the flush.
    """
    row = job.__dict__
    if row.get("unique_key") is None and not type(job).__job_options__.unique:
        return None
    if row.get("state") in FINAL_VALUES:
        return None
    return unique_key_of(type(job), row)


def _settle(
    session: Session, tables: JobTables, keyed: Sequence[tuple[Any, str]]
) -> set[int]:
    wanted = [(key, policy_of(job)) for job, key in keyed]
    found = take_keys(session, tables, wanted)
    if isinstance(found, Refusal):
        job = keyed[found.number][0]
        _expunge(session, job)
        raise_duplicate(repr(job), found)
    for job, key in keyed:
        set_key(job, key)
    for number, instead in found.items():
        job, winner = keyed[number][0], keyed[instead.winner][0]
        _expunge(session, job)
        job._duplicate_of = instead.job_id or winner
    return {id(keyed[number][0]) for number in found}


def raise_duplicate(what: str, refused: Refusal) -> NoReturn:
    """
    Raise the error for the new job *what*.

    Raises:
        DuplicateJob: Always.
    """
    job_id = refused.live.job_id if refused.live else None
    raise DuplicateJob(duplicate_text(what, refused), refused.key, job_id)


def _expunge(session: Session, job: Any) -> None:
    """Take a new *job* out of the session, and out of what its relationships fill."""
    related = {}
    for relation in state_of(type(job)).relationships:
        value = vars(job).get(relation.key)
        if value is not None and relation.back_populates and not relation.uselist:
            related[relation.key] = value
            setattr(job, relation.key, None)
    if job in session:
        session.expunge(job)
    # It keeps what it was given, in case somebody adds it again.
    for name, value in related.items():
        set_committed_value(job, name, value)
        flag_modified(job, name)


_locked: WeakKeyDictionary[SessionTransaction, int] = WeakKeyDictionary()


def take_keys(
    session: Session,
    tables: JobTables,
    wanted: Sequence[Wanted],
    *,
    more: bool = False,
) -> dict[int, Dropped] | Refusal:
    """
    Lock the keys of new jobs and return which of these are not to be inserted.

    Jobs that make room are cancelled by then, unless the answer is a refusal. Where one
    transaction takes more keys than the server has locks for, it locks all of them.

    Args:
        wanted: (key, policy) of each new job.
        more: Whether more of them are to come.
    """
    groups = grouped(wanted)
    _lock(session, tables, [group.key for group in groups], more=more)
    live = _find_live(session, tables, groups)
    return refusal(groups, live) or dropped(groups, live)


def _lock(
    session: Session, tables: JobTables, keys: Sequence[str], *, more: bool
) -> None:
    connection_of(session, tables)  # before a flush there may be no transaction yet
    transaction = session.get_transaction()
    assert transaction is not None
    count = _locked[transaction] = len(keys) + _locked.get(transaction, 0)
    whole = count > MOST_NAMES or more
    lock_names(session, tables, SPACE, [(key,) for key in keys], whole=whole)


def lock_keys_of(session: Session, tables: JobTables, ids: Sequence[int]) -> None:
    """Wait until nobody else is sending jobs with the keys of those final jobs."""
    rows = execute(session, tables, _finding_keys, {"ids": list(ids)})
    keys = list(rows.scalars())
    if keys:
        _lock(session, tables, keys, more=False)


@built_once
def _finding_keys(tables: JobTables, _dialect: JobDialect) -> Executable:
    job = tables.table.c
    return (
        select(job.unique_key)
        .distinct()
        .where(
            job.id == func.any(bind("ids", ARRAY(BigInteger()))),
            job.unique_key.is_not(null()),
            job.state.in_(literal_states(FINAL)),
        )
    )


def lock_all(session: Session, tables: JobTables) -> None:
    """Wait until no other transaction has taken a key that is not committed."""
    lock_names(session, tables, SPACE, (), whole=True)


def _find_live(
    session: Session, tables: JobTables, groups: Sequence[Group]
) -> dict[str, Live]:
    """Return who has, or had, the keys of *groups*, after waiting ones made room."""
    params: dict[str, Any] = {"keys": [group.key for group in groups]}
    replacing = [group.key for group in groups if group.replaces]
    if replacing and all(group.clash is None for group in groups):
        refusing = [g.key for g in groups if g.refusing is not None]
        now = tested_clock(session, tables)
        params |= {"replacing": replacing, "refusing": refusing, "now": now}
        rows = execute(session, tables, _replacing, params)
    else:
        rows = execute(session, tables, _finding, params)
    return {row.unique_key: Live(row.id, row.state) for row in rows}


def holds_key(tables: JobTables) -> ColumnElement[bool]:
    """Return whether a job is live and has a key, in the words of the index."""
    job = tables.table.c
    return and_(job.unique_key.is_not(null()), job.state.not_in(literal_states(FINAL)))


def _has_one_of(tables: JobTables, keys: ColumnElement[Any]) -> ColumnElement[bool]:
    return and_(tables.table.c.unique_key == func.any(keys), holds_key(tables))


@built_once
def _finding(tables: JobTables, _dialect: JobDialect) -> Executable:
    job = tables.table.c
    keys = bind("keys", ARRAY(Text()))
    return select(job.unique_key, job.id, job.state).where(_has_one_of(tables, keys))


@built_once
def _replacing(tables: JobTables, dialect: JobDialect) -> Executable:
    """
    Find the live jobs, and cancel those that make room if no new job must raise.

    A waiting one may be claimed, or end, until its row is locked. What runs already is
    not locked: its handler may have it locked for long.
    """
    job = tables.table.c
    keys, running = bind("keys", ARRAY(Text())), word(JobState.RUNNING)
    live = select(job.id, job.unique_key, job.state).where(_has_one_of(tables, keys))
    found = live.cte("found")
    replaced = found.c.unique_key == func.any(bind("replacing", ARRAY(Text())))
    refused = found.c.unique_key == func.any(bind("refusing", ARRAY(Text())))
    waits = and_(replaced, found.c.state != running)
    locked = _locked_rows(tables, dialect, select(found.c.id).where(waits))
    state = func.coalesce(locked.c.state, found.c.state)
    both = found.outerjoin(locked, found.c.id == locked.c.id)
    must_raise = or_(refused, and_(replaced, state == running))
    nobody = ~exists(select(literal(1)).select_from(both).where(must_raise))
    return (
        select(found.c.unique_key, found.c.id, state.label("state"))
        .select_from(both)
        .add_cte(_cancelling(tables, dialect, locked).where(nobody).cte("cancelled"))
    )


def _locked_rows(
    tables: JobTables, dialect: JobDialect, ids: Select[tuple[int]]
) -> CTE:
    job = tables.table.c
    live = job.state.not_in(literal_states(FINAL))
    wanted = job.id == func.any(func.array(ids.scalar_subquery()))
    rows = select(job.id, job.state).where(wanted, live).order_by(job.id)
    return dialect.lock(rows, skip=False).cte("locked")


def _cancelling(tables: JobTables, dialect: JobDialect, rows: CTE) -> Update:
    job = tables.table.c
    now = dialect.now()
    return (
        update(tables.table)
        .where(among(job.id, rows))
        .values(
            state=JobState.CANCELLED.value,
            finished_at=now,
            cancel_requested_at=func.coalesce(job.cancel_requested_at, now),
            reason=REPLACED,
        )
    )
