"""
Look at heads of ordered channels, and lease those that are ready.

The head is the job with the lowest id that is not final. Looks are a loose scan of the
index of heads, without locks; the lease states every condition on the locked row again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    Executable,
    Integer,
    Text,
    and_,
    case,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs._core.memory import Channel
from sqla_jobs._core.states import FINAL, SUSPECT_CRASHES, JobState
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import connection_of, execute, literal_states, word
from sqla_jobs._store.take import Ask, Shape, is_managed, take
from sqla_jobs.models import JobTables

ONE, ZERO = literal_column("1", Integer()), literal_column("0", Integer())
ALL = ""
"""The chain through all queues; no queue has that name."""


@dataclass(frozen=True, slots=True)
class Look:
    """
    Which heads to look at.

    Args:
        after: Chains: a queue or `ALL`, and the channel at which to begin.
        named: Channels to look at in any case.
        vain: Most heads of each chain to look at in vain.
        plain: Whether to leave out fair and limited queues.
    """

    after: Mapping[str, Channel]
    named: Sequence[Channel]
    vain: int
    plain: bool


def look_at_heads(
    session: Session, tables: JobTables, ask: Ask, look: Look
) -> Sequence[Any]:
    """Return the heads that look ready, and the last one of each chain, in order."""
    starts = [
        (name, queue or name, channel) for name, (queue, channel) in look.after.items()
    ]
    rows = [*starts, *((None, *pair) for pair in look.named)]
    params = ask.params() | {
        "chain": [chain for chain, _, _ in rows],
        "from_queue": [queue for _, queue, _ in rows],
        "from_channel": [channel for _, _, channel in rows],
        "vain": look.vain,
        "enough": enough(ask),
    }
    variant = ask.shape, ALL in look.after, ask.kinds is None, look.plain
    build = partial(_looking, variant=variant)
    return execute(session, tables, build, params).all()


def enough(ask: Ask) -> int:
    """Return how many ready heads of a chain end a look: others may be at them too."""
    return 2 * ask.limit


def lease_heads(
    session: Session, tables: JobTables, ask: Ask, ids: Sequence[int], *, plain: bool
) -> list[Any] | None:
    """
    Lease those of *ids* that are ready heads still; does not commit.

    Returns:
        None if an earlier job of a channel was requeued and claimed meanwhile, which
        only the unique index on running ordered jobs sees: then nothing is leased.
    """
    variant = ask.kinds is None, plain
    try:
        with connection_of(session, tables).begin_nested():
            return take(session, tables, ask, _pick_heads, *variant, ids=list(ids))
    except IntegrityError:
        return None


@lru_cache(maxsize=256)
def _looking(
    tables: JobTables, dialect: JobDialect, variant: tuple[Shape, bool, bool, bool]
) -> Executable:
    """Return the heads that look ready, and the last one of each chain, in order."""
    shape, through_all, all_kinds, plain = variant
    job = tables.table.alias("head").c
    ready = _looks_ready(tables, job, all_kinds=all_kinds, plain=plain)
    if through_all and not shape.all_queues:
        ready &= _is_subscribed(dialect, job, shape)
    visited = _visited(dialect, job, ready, through_all=through_all)
    number = func.max(visited.c.n).over(partition_by=visited.c.chain)
    seen = select(visited, number.label("last")).subquery("seen").c
    return (
        select(*seen)
        .where(or_(seen.ready == ONE, seen.n == seen.last))
        .order_by(seen.n)
    )


def _visited(
    dialect: JobDialect, job: Any, ready: ColumnElement[bool], *, through_all: bool
) -> CTE:
    """
    Go from channel to channel: ``n`` counts the looks, ``found`` those not in vain.

    Each queue that is asked for is a chain of its own, or all queues are one. A channel
    that is named is a chain of one look, which may be at the channel after it.
    """
    texts = {"chain": Text(), "from_queue": Text(), "from_channel": Text()}
    given = dialect.rows("given", texts).c
    first = _head(job, ready, _from(job, given, through_all=through_all))
    visited = select(
        given.chain, ONE.label("n"), first.c.ready.label("found"), *first.c
    ).cte("visited", recursive=True)
    last = visited.c
    here, there = (job.queue, job.channel), (last.queue, last.channel)
    if through_all:
        beyond: ColumnElement[bool] = tuple_(*here) > tuple_(*there)
    else:
        beyond = and_(job.queue == last.queue, job.channel > last.channel)
    following = _head(job, ready, beyond)
    vain, enough = bind("vain", Integer()), bind("enough", Integer())
    return visited.union_all(
        select(last.chain, last.n + ONE, last.found + following.c.ready, *following.c)
        .select_from(visited.join(following, literal(True)))
        .where(
            last.chain.is_not(None),
            last.n - last.found < vain,
            last.found < enough,
        )
    )


def _from(job: Any, given: Any, *, through_all: bool) -> ColumnElement[bool]:
    start = given.from_queue, given.from_channel
    if through_all:
        return tuple_(job.queue, job.channel) >= tuple_(*start)
    return and_(job.queue == start[0], job.channel >= start[1])


def _head(job: Any, ready: ColumnElement[bool], where: ColumnElement[bool]) -> Any:
    """Return the first head that *where* leaves, in the order of the index."""
    return (
        select(
            job.id, job.queue, job.channel, job.crashes,
            case((ready, ONE), else_=ZERO).label("ready"),
        )
        .where(job.ordered, job.state.not_in(literal_states(FINAL)), where)
        .order_by(job.queue, job.channel, job.id)
        .limit(ONE)
        .lateral()
    )  # fmt: skip


def _looks_ready(
    tables: JobTables, job: Any, *, all_kinds: bool, plain: bool
) -> ColumnElement[bool]:
    """
    Return whether *job* may run if it is a head.

    A queue that blocks has to have no discarded job before it, and with *plain* the
    queue must be nobody else's.
    """
    queue, dead_job = tables.queues.c, tables.table.alias("dead")
    dead = dead_job.c
    # In the order of its index, so that no plan reads all dead letters instead.
    blocker = (
        select(dead.id)
        .where(
            dead.ordered,
            dead.state == word(JobState.DISCARDED),
            dead.queue == job.queue,
            dead.channel == job.channel,
            dead.id < job.id,
        )
        .order_by(dead.id)
        .limit(ONE)
        .correlate_except(dead_job)
        .scalar_subquery()
    )
    blocked = blocker.is_not(None)
    closed = or_(queue.paused, and_(queue.on_discard == word("block"), blocked))
    if plain:
        closed = or_(closed, is_managed(tables))
    conditions = [
        job.state == word(JobState.AVAILABLE),
        or_(bind("suspects", Boolean()), job.crashes < SUSPECT_CRASHES),
        ~exists().where(queue.name == job.queue, closed),
    ]
    if not all_kinds:
        conditions.append(job.kind == func.any(bind("kinds", ARRAY(Text()))))
    return and_(*conditions)


def _is_subscribed(dialect: JobDialect, job: Any, shape: Shape) -> ColumnElement[bool]:
    given = dialect.rows("beginnings", {"prefix": Text()}).c
    beginning = func.left(job.queue, func.length(given.prefix))
    found = [
        job.queue == func.any(bind("queue", ARRAY(Text()))),
        exists().where(beginning == given.prefix),
    ]
    if shape.pairs:
        texts = {"pair_queue": Text(), "pair_channel": Text()}
        pair = dialect.rows("pairs", texts).c
        its = pair.pair_queue == job.queue, pair.pair_channel == job.channel
        found.append(exists().where(*its))
    return or_(*found)


def _pick_heads(
    tables: JobTables, dialect: JobDialect, all_kinds: bool, plain: bool
) -> CTE:
    """
    Lock those of the given ids that are ready heads.

    A later job runs while the head is ready only where that was requeued meanwhile.
    """
    job, other = tables.table.c, tables.table.alias("first").c
    running = tables.table.alias("running").c
    first = (
        select(other.id)
        .where(
            other.ordered,
            other.state.not_in(literal_states(FINAL)),
            other.queue == job.queue,
            other.channel == job.channel,
        )
        .order_by(other.id)
        .limit(1)
        .correlate(tables.table)
        .scalar_subquery()
    )
    heads = (
        select(job.id)
        .where(
            job.id == func.any(bind("ids", ARRAY(BigInteger()))),
            job.ordered,
            _looks_ready(tables, job, all_kinds=all_kinds, plain=plain),
            job.id == first,
            ~exists().where(
                running.ordered,
                running.state == word(JobState.RUNNING),
                running.queue == job.queue,
                running.channel == job.channel,
            ),
        )
        .order_by(job.id)
    )
    locked = dialect.lock(heads, skip=True, of=tables.table)
    return locked.cte("picked").prefix_with("MATERIALIZED")
