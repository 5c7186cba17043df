"""Pick available jobs for a plain claim: locked ids, queue by queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    and_,
    case,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    union_all,
)

from sqla_jobs._core.memory import Mark
from sqla_jobs._core.states import SUSPECT_CRASHES, JobState, Lane
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import word
from sqla_jobs._store.take import Shape, claimable, is_managed
from sqla_jobs.models import JobTables

NO_TEXT = literal_column("''", Text())


def pick(
    tables: JobTables,
    dialect: JobDialect,
    shape: Shape,
    all_kinds: bool,
    late: bool = False,
) -> CTE:
    """
    The ids to take: up to ``slots`` of each subscription, the queues in turn.

    With *late* the retried and rescued jobs of each queue's top priority come first:
    at most so many of each.

    MATERIALIZED, so that a nested loop around it cannot run its LIMIT again and take
    far too many rows.
    """
    sources = [
        replace(source, managed=shape.managed)
        for source in _sources(tables, dialect, shape)
    ]
    if late or shape.prefixes or len(sources) > 1:
        return _pick_of_many(tables, dialect, sources, all_kinds=all_kinds, late=late)
    return _pick_of_one(tables, dialect, sources[0], all_kinds=all_kinds)


def pick_after(tables: JobTables, dialect: JobDialect, all_kinds: bool) -> CTE:
    """The ids to take after a place in each queue, of that priority and lane."""
    job = tables.table.c
    columns = {f"after_{name}": job[name].type for name in Mark._fields}
    given = dialect.rows("wanted", {"queue": Text(), "slots": Integer(), **columns})
    place = given.c
    conditions = (
        job.priority == place.after_priority,
        job.lane == place.after_lane,
        tuple_(job.run_at, job.id) > tuple_(place.after_run_at, place.after_id),
    )
    source = _Source(0, given, place.queue, place.slots, place.queue, conditions)
    return _pick_of_one(tables, dialect, source, all_kinds=all_kinds)


def _pick_of_one(
    tables: JobTables, dialect: JobDialect, source: _Source, *, all_kinds: bool
) -> CTE:
    """Pick from queues that are named one by one."""
    wanted = source.wanted
    found = _candidates(tables, dialect, source, all_kinds=all_kinds)
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


def _pick_of_many(
    tables: JobTables,
    dialect: JobDialect,
    sources: Sequence[_Source],
    *,
    all_kinds: bool,
    late: bool,
) -> CTE:
    """Pick where slots are shared, by the queues of a prefix or by late jobs."""
    parts = [
        _rows_of(source, _candidates(tables, dialect, source, all_kinds=all_kinds))
        for source in sources
    ]
    if late:
        first = _late(tables, dialect, sources, all_kinds=all_kinds)
        known = select(first.c.id).where(first.c.place <= bind("late", Integer()))
        parts = [part.where(part.selected_columns.id.not_in(known)) for part in parts]
        columns = (first.c[name] for name in (*ROW, "turn"))
        parts.append(
            select(*columns, literal_column("0").label("rank")).where(
                first.c.place <= bind("late", Integer())
            )
        )
    found = union_all(*parts).subquery("candidates")
    order = (found.c.rank, found.c.turn, func.random())
    shared = (found.c.source, found.c.part, found.c.channel)
    suspect = found.c.crashes >= SUSPECT_CRASHES
    ranked = select(
        found,
        suspect.label("suspect"),
        func.row_number().over(partition_by=shared, order_by=order).label("place"),
        func.row_number().over(partition_by=suspect, order_by=order).label("nth"),
    ).subquery("ranked")
    return (
        select(ranked.c.id)
        .where(
            ranked.c.place <= ranked.c.slots,
            or_(~ranked.c.suspect, ranked.c.nth == 1),
        )
        .order_by(ranked.c.rank, ranked.c.turn, func.random())
        .limit(bind("limit", Integer()))
        .cte("picked")
        .prefix_with("MATERIALIZED")
    )


ROW = ("id", "crashes", "source", "part", "channel", "slots")


def _rows_of(source: _Source, found: Any) -> Select[*tuple[Any, ...]]:
    return select(
        found.c.id,
        found.c.crashes,
        literal_column(str(source.number)).label("source"),
        source.part.label("part"),
        source.channel.label("channel"),
        source.slots.label("slots"),
        found.c.turn,
        literal_column("1").label("rank"),
    ).select_from(source.wanted.join(found, literal(True)))


def _late(
    tables: JobTables,
    dialect: JobDialect,
    sources: Sequence[_Source],
    *,
    all_kinds: bool,
) -> CTE:
    """The retried and the rescued of each source, placed in each lane."""
    parts = []
    for source in sources:
        for lane in (Lane.RETRIED, Lane.RESCUED):
            found = _candidates(tables, dialect, source, all_kinds=all_kinds, lane=lane)
            rows = _rows_of(source, found)
            parts.append(rows.add_columns(literal_column(str(lane)).label("lane")))
    found = union_all(*parts).subquery("late_ones")
    place = func.row_number().over(
        partition_by=found.c.lane, order_by=(found.c.turn, func.random())
    )
    # Locks rows: never inlined, so that both readers see the same ones.
    return select(found, place.label("place")).cte("late").prefix_with("MATERIALIZED")


@dataclass(frozen=True, slots=True)
class _Source:
    """One way of naming queues: rows of *wanted*, and what a job must be for them."""

    number: int
    wanted: FromClause
    queue: ColumnElement[str]
    slots: ColumnElement[int]
    part: ColumnElement[str]
    conditions: tuple[ColumnElement[bool], ...] = ()
    channel: ColumnElement[str] = NO_TEXT
    managed: bool = False


def _sources(tables: JobTables, dialect: JobDialect, shape: Shape) -> list[_Source]:
    if shape.all_queues:
        wanted = _all_queues(tables)
        return [_Source(0, wanted, wanted.c.queue, wanted.c.slots, wanted.c.queue)]
    alone = (_not_alone(tables, dialect),) if shape.pairs else ()
    names = _given_queues(dialect)
    columns = (names.c.queue, names.c.slots, names.c.queue)
    found = [_Source(0, names, *columns, alone)]
    if shape.prefixes:
        wanted = _of_prefixes(tables, dialect)
        columns = (wanted.c.queue, wanted.c.slots, wanted.c.prefix)
        found.append(_Source(1, wanted, *columns, alone))
    if shape.pairs:
        pairs = _given_pairs(dialect)
        given = pairs.c
        columns = (given.pair_queue, given.pair_slots, given.pair_queue)
        found += [
            _Source(number, pairs, *columns, (condition,), given.pair_channel)
            for number, condition in enumerate(_of_channel(tables, pairs), start=2)
        ]
    return found


def _of_channel(
    tables: JobTables, pairs: FromClause
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the conditions of a named channel and of none; one index has the first."""
    job = tables.table.c
    named = and_(job.channel == pairs.c.pair_channel, job.channel != NO_TEXT)
    blank = and_(job.channel == NO_TEXT, pairs.c.pair_channel == NO_TEXT)
    return named, blank


def _not_alone(tables: JobTables, dialect: JobDialect) -> ColumnElement[bool]:
    """Return whether a job is of no pair that is subscribed to on its own."""
    job = tables.table.c
    columns = {"pair_queue": Text(), "pair_channel": Text()}
    pairs = dialect.rows("alone", columns)
    mine = select(pairs.c.pair_queue).where(
        pairs.c.pair_queue == job.queue, pairs.c.pair_channel == job.channel
    )
    return ~mine.select_from(pairs).correlate(tables.table).exists()


def _candidates(
    tables: JobTables,
    dialect: JobDialect,
    source: _Source,
    *,
    all_kinds: bool,
    lane: int | None = None,
) -> Any:
    """
    Return the jobs of *source* that are locked, numbered in claim order.

    With *lane* only those in it, of the top priority there is.
    """
    job, wanted = tables.table.c, source.wanted
    conditions = _conditions(tables, source, all_kinds=all_kinds)
    limit = source.slots
    if lane is not None:
        top = (
            select(job.priority)
            .where(*conditions)
            .order_by(job.priority.desc())
            .limit(1)
            .correlate(wanted)
            .scalar_subquery()
        )
        number: ColumnElement[int] = literal_column(str(lane))
        conditions += [job.priority == top, job.lane == number]
        limit = func.least(source.slots, bind("late", Integer()))
    stmt: Select[*tuple[Any, ...]] = (
        select(job.id, job.crashes)
        .where(*conditions)
        .order_by(*rank_columns(tables.table))
        .limit(limit)
    )
    ready = dialect.lock(stmt, skip=True, of=tables.table)
    ready_rows = ready.correlate(wanted).lateral("ready")
    # Numbered as they come, in claim order: no second sort.
    turn = func.row_number().over().label("turn")
    return select(ready_rows.c.id, ready_rows.c.crashes, turn).lateral("found")


def _conditions(
    tables: JobTables, source: _Source, *, all_kinds: bool
) -> list[ColumnElement[bool]]:
    plain, wanted = not source.managed, source.wanted
    found = job_conditions(
        tables, wanted, source.queue, all_kinds=all_kinds, plain=plain
    )
    return [*found, *source.conditions]


def job_conditions(
    tables: JobTables,
    wanted: FromClause,
    name: ColumnElement[str],
    *,
    all_kinds: bool,
    plain: bool = False,
) -> list[ColumnElement[bool]]:
    """
    Return what a job of the queue *name*, a column of *wanted*, must be to be taken.

    Args:
        plain: Whether fair and limited queues are left alone. Default False.
    """
    job, queue = tables.table.c, tables.queues.c
    closed = or_(queue.paused, is_managed(tables)) if plain else queue.paused
    shut = select(queue.name).where(queue.name == name, closed)
    conditions: list[ColumnElement[bool]] = [
        job.queue == name,
        claimable(tables),
        ~shut.correlate(wanted).exists(),
        or_(bind("suspects", Boolean()), job.crashes < SUSPECT_CRASHES),
    ]
    if not all_kinds:
        conditions.append(job.kind == func.any(bind("kinds", ARRAY(Text()))))
    return conditions


def rank_columns(table: FromClause) -> tuple[ColumnElement[Any], ...]:
    """Return what jobs of one queue are claimed by, in turn."""
    job = table.c
    return (job.priority.desc(), job.lane, job.run_at, job.id)


def _given_queues(dialect: JobDialect) -> FromClause:
    return dialect.rows("wanted", {"queue": Text(), "slots": Integer()})


def _given_pairs(dialect: JobDialect) -> FromClause:
    texts = {"pair_queue": Text(), "pair_channel": Text()}
    return dialect.rows("pairs", {**texts, "pair_slots": Integer()})


def _all_queues(tables: JobTables) -> FromClause:
    names = _queue_names(tables)
    limit = bind("limit", Integer())
    return (
        select(names.c.queue, limit.label("slots"))
        .where(names.c.queue.is_not(null()))
        .subquery("wanted")
    )


def _of_prefixes(tables: JobTables, dialect: JobDialect) -> FromClause:
    """Every queue that is not named itself, with the longest prefix it has."""
    names = _queue_names(tables)
    given = dialect.rows("prefixes", {"prefix": Text(), "prefix_slots": Integer()})
    beginning = func.left(names.c.queue, func.length(given.c.prefix))
    longest = (
        select(given.c.prefix, given.c.prefix_slots)
        .where(beginning == given.c.prefix)
        .order_by(func.length(given.c.prefix).desc())
        .limit(1)
        .lateral("longest")
    )
    named = bind("queue", ARRAY(Text()))
    return (
        select(
            names.c.queue,
            longest.c.prefix_slots.label("slots"),
            longest.c.prefix,
        )
        .select_from(names.join(longest, literal(True)))
        .where(names.c.queue != func.all(named))
        .subquery("prefixed")
    )


def _queue_names(tables: JobTables) -> CTE:
    """Every queue with claimable jobs, by a loose scan of the claim index; and NULL."""
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
    return names.union_all(select(following).where(names.c.queue.is_not(None)))
