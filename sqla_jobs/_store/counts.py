"""How many jobs there are, and where one is, without reading the backlog."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    func,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy import exists as any_row
from sqlalchemy.orm import Session

from sqla_jobs._core.states import FINAL, WAITING, JobState
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import Where, built_once, execute, literal_states, word
from sqla_jobs._store.claim import check_names
from sqla_jobs._store.enqueue import check_session
from sqla_jobs._store.target import checked_ids, kinds_in, of_kinds
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables

AT_MOST = 10_000
MAX_AT_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class JobCount:
    """
    How many jobs of one queue are in one state.

    Args:
        cut: Whether there may be more: `counts` stopped counting.
    """

    queue: str
    state: JobState
    count: int
    cut: bool


def exists(session: Session, job_class: type[Any], job_id: int) -> bool:
    """
    Return whether the job table has this job, in whatever state.

    Args:
        session: With an AsyncSession: ``await session.run_sync(exists, ...)``.
        job_class: The root class; or a class under it, to see its kinds only.

    Raises:
        JobValueError: If *job_id* is no integer.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "exists")
    tables = job_tables(job_class)
    (number,) = checked_ids(job_id)
    params = {"id": number, "kinds": kinds_in(tables, job_class)}
    return bool(execute(session, tables, _existing, params).scalar_one())


@built_once
def _existing(tables: JobTables, _dialect: JobDialect) -> Executable:
    wanted = tables.table.c.id == bind("id", BigInteger())
    return select(any_row().where(wanted, of_kinds(tables)))


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job is; *result* is what its handler returned."""

    job_id: int
    state: JobState
    result: Any
    reason: str | None
    last_error: str | None


def status_of(session: Where, tables: JobTables, job_id: int) -> JobStatus | None:
    """
    Return the status of a job, also of an archived one; None if it is in no table.

    Raises:
        MissingTables: If the job tables are not there.
    """
    row = execute(session, tables, _status, {"id": job_id}).first()
    if row is None:
        return None
    return JobStatus(row.id, JobState(row.state), *row[2:])


@built_once
def _status(tables: JobTables, _dialect: JobDialect) -> Executable:
    names = ("id", "state", "result", "reason", "last_error")
    return union_all(
        *(
            select(*(table.c[name] for name in names)).where(
                table.c.id == bind("id", BigInteger())
            )
            for table in (tables.table, tables.archive)
        )
    ).limit(1)


def counts(
    session: Session,
    job_class: type[Any],
    *,
    queues: Sequence[str] | None = None,
    at_most: int = AT_MOST,
) -> list[JobCount]:
    """
    Count jobs per queue and state, reading a bounded part of the indexes.

    Available jobs are counted up to *at_most* per queue. Of other states the first
    *at_most* are read, over all queues: if there are more, the counts of that state are
    ``cut``, for each queue, and say only "at least". One statement.

    Args:
        session: With an AsyncSession: ``await session.run_sync(counts, ...)``.
        job_class: The root class; or a class under it, to count its kinds only.
        queues: Names of queues; None means all that are met.
        at_most: 1 to 1,000,000. Default 10,000.

    Returns:
        Sorted by queue; counts of 0 only where they are cut.

    Raises:
        JobValueError: If *at_most* is out of range or *queues* is one text.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "counts")
    _check_at_most(at_most)
    tables = job_tables(job_class)
    kinds = kinds_in(tables, job_class)
    params: dict[str, Any] = {"most": at_most + 1}
    if kinds is not None:
        params["kinds"] = kinds
    names = check_names("queues", queues)
    if names is not None:
        params["queue"] = names
    build = partial(_counting, by_kind=kinds is not None, all_queues=names is None)
    rows = execute(session, tables, build, params).all()
    return _merged(rows, names, at_most)


def _check_at_most(at_most: object) -> None:
    whole = at_most if type(at_most) is int else 0
    if not 1 <= whole <= MAX_AT_MOST:
        raise JobValueError(f"at_most must be 1 to {MAX_AT_MOST}, got {at_most!r}")


def _merged(
    rows: Iterable[Any], names: Sequence[str] | None, at_most: int
) -> list[JobCount]:
    found: Counter[tuple[str, str]] = Counter()
    read: Counter[tuple[str, str | None]] = Counter()
    for row in rows:
        found[row.queue, row.state] += row.counted
        read[row.part, row.queue if row.part in _BY_QUEUE else None] += row.read
    cut = {part for part, count in read.items() if count > at_most}
    queues = sorted(set(names) if names is not None else {queue for queue, _ in found})
    made = []
    for queue, state in product(queues, JobState):
        parts = {*product(_PARTS[state], (None, queue))}
        count = min(found[queue, state], at_most)
        if count or parts & cut:
            made.append(JobCount(queue, state, count, bool(parts & cut)))
    return made


@built_once
def _counting(
    tables: JobTables, dialect: JobDialect, *, by_kind: bool, all_queues: bool
) -> Executable:
    job = tables.table.c
    final = job.state.in_(literal_states(FINAL))  # what the index is on
    samples = [
        ("waiting", job.state.in_(literal_states(WAITING)), job.run_at),
        ("running", job.state == word(JobState.RUNNING), job.leased_until),
        ("held", job.state == word(JobState.HELD), job.held_until),
        *(
            (state, and_(final, job.state == word(state)), job.finished_at)
            for state in sorted(FINAL)
        ),
    ]
    return union_all(
        *(_by_queue(tables, dialect, part, by_kind, all_queues) for part in _BY_QUEUE),
        *(_sample(tables, *sample, by_kind=by_kind) for sample in samples),
    )


def _sample(
    tables: JobTables, part: str, wanted: Any, order: Any, *, by_kind: bool
) -> Select[*tuple[Any, ...]]:
    """Read the first of one index, and count them per queue and state."""
    job = tables.table.c
    columns = [job.queue, job.state, *([job.kind] if by_kind else [])]
    most = bind("most", Integer())
    first = select(*columns).where(wanted).order_by(order).limit(most).subquery()
    return select(
        literal_column(f"'{part}'", Text()).label("part"),
        first.c.queue,
        first.c.state,
        *_numbers(first, by_kind=by_kind),
    ).group_by(first.c.queue, first.c.state)


def _by_queue(
    tables: JobTables, dialect: JobDialect, part: str, by_kind: bool, all_queues: bool
) -> Select[*tuple[Any, ...]]:
    """Read the first available jobs of each queue."""
    names: FromClause = dialect.rows("names", {"queue": Text()})
    if all_queues:
        names = _names(tables, _BY_QUEUE[part], f"{part}_names")
    table = tables.table.alias(f"{part}_jobs")
    job = table.c
    order = (
        (job.channel, job.id)
        if part == "ordered"
        else (job.priority.desc(), job.lane, job.run_at, job.id)
    )
    # The claim's index has no state: reading it would read every row.
    state = job.state if part == "ordered" else word(JobState.AVAILABLE)
    wanted = select(state.label("state"), *([job.kind] if by_kind else []))
    wanted = wanted.where(_BY_QUEUE[part](table), job.queue == names.c.queue)
    wanted = wanted.order_by(*order).limit(bind("most", Integer()))
    first = wanted.correlate(names).lateral(f"{part}_first")
    available = first.c.state == word(JobState.AVAILABLE)
    numbers = select(*_numbers(first, available, by_kind=by_kind)).lateral(part)
    return select(
        literal_column(f"'{part}'", Text()).label("part"),
        names.c.queue,
        word(JobState.AVAILABLE).label("state"),
        numbers.c.read,
        numbers.c.counted,
    ).select_from(names.join(numbers, true()))


def _numbers(
    first: FromClause, *conditions: ColumnElement[bool], by_kind: bool
) -> list[ColumnElement[Any]]:
    count: Any = func.count()
    if by_kind:
        kinds = bind("kinds", ARRAY(Text()))
        conditions = (*conditions, first.c.kind == func.any(kinds))
    if conditions:
        count = count.filter(*conditions)
    return [func.count().label("read"), count.label("counted")]


def _names(
    tables: JobTables, wanted: Callable[[Any], ColumnElement[bool]], name: str
) -> FromClause:
    """Find the queues of an index by a loose scan: one look for each."""
    first = tables.table.alias(f"{name}_first")
    lowest = select(func.min(first.c.queue).label("queue")).where(wanted(first))
    found = lowest.cte(name, recursive=True)
    other = tables.table.alias(f"{name}_next")
    following = select(func.min(other.c.queue)).where(
        wanted(other), other.c.queue > found.c.queue
    )
    step = select(following.scalar_subquery()).where(found.c.queue.is_not(None))
    found = found.union_all(step)
    queues = select(found.c.queue).where(found.c.queue.is_not(None))
    # Estimated as 10 rows, the recursion as 100: what such a plan seems to cost would
    # have it compiled (JIT), for seconds.
    each = func.unnest(func.array(queues.scalar_subquery()), type_=Text())
    return select(each.label("queue")).subquery(f"{name}_each")


def _plain(table: FromClause) -> ColumnElement[bool]:
    return and_(table.c.state == word(JobState.AVAILABLE), ~table.c.ordered)


def _live_ordered(table: FromClause) -> ColumnElement[bool]:
    return and_(table.c.ordered, table.c.state.not_in(literal_states(FINAL)))


# The claim's indexes are read queue by queue, the others over all queues.
_BY_QUEUE = {"plain": _plain, "ordered": _live_ordered}
_PARTS: dict[JobState, tuple[str, ...]] = {
    **{state: (state.value,) for state in JobState},
    **dict.fromkeys(WAITING, ("waiting",)),
    JobState.AVAILABLE: tuple(_BY_QUEUE),
}
