"""Claim from fair queues: their channels are served in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Select,
    Text,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.states import SUSPECT_CRASHES
from sqla_jobs._core.subscriptions import Share, Subscription
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import among, built_once, execute
from sqla_jobs._store.pick import NO_TEXT, job_conditions, rank_columns
from sqla_jobs._store.take import Ask, claimable, take
from sqla_jobs.models import JobTables

SPARE = 4  # channels visited beyond those needed: some turn out to have nothing
MAX_LOOKS = 5  # visits of one claim that find nothing to take
MAX_SATURATED = 10_000  # channels at their limit that one visit passes over
FIRST = 1_000  # so many jobs of a queue are searched for ones without a channel


@dataclass(frozen=True, slots=True)
class FairAsk:
    """
    What a fair claim may take from one queue.

    Args:
        slots: Most jobs of the queue; the slots of the claim's own subscriptions
            bound it as well.
        per_channel: Most jobs of each channel that may run, those of *running*
            counted; None means any number.
        running: How many run now, by channel; a missing channel has none.
    """

    slots: int
    per_channel: int | None = None
    running: Mapping[str, int] = field(default_factory=dict)

    def room(self, channel: str) -> int:
        """Return how many jobs of *channel* may be taken."""
        if self.per_channel is None:
            return self.slots
        return min(self.slots, self.per_channel - self.running.get(channel, 0))

    def saturated(self) -> int:
        """Return how many channels have no room."""
        return sum(self.room(channel) <= 0 for channel in self.running)


# Where the next visit of a queue begins: after this channel. Of this process alone, as
# several that begin anywhere are as fair as one; a place that is gone does no harm.
_cursors: dict[tuple[JobTables, str], str] = {}


def claim_fair(
    session: Session, tables: JobTables, ask: Ask, queues: Mapping[str, FairAsk]
) -> list[Any]:
    """
    Lease jobs of *queues*, their channels in turn, in no order; does not commit.

    It may return fewer jobs than there are; only one that returns none, or all that
    were asked for, tells that there are no more.
    """
    open_queues = {name: fair for name, fair in queues.items() if fair.slots > 0}
    for _ in range(MAX_LOOKS):
        visits = _visit(session, tables, ask, open_queues)
        rows = [row for visit in visits for row in visit.rows()]
        if not rows:
            return []
        blank = any(row[1] == "" for row in rows)
        columns = dict(zip(_ROW, map(list, zip(*rows, strict=True)), strict=True))
        variant = (ask.kinds is None, blank)
        jobs = take(session, tables, ask, _pick_fair, *variant, **columns)
        for visit in visits:
            visit.move_cursor(tables, jobs)
        if jobs or all(visit.complete for visit in visits):
            return jobs
    return []


@dataclass(frozen=True, slots=True)
class _Visit:
    """The channels of one queue that a claim may serve, in turn."""

    queue: str
    fair: FairAsk
    shares: Sequence[Share]
    limit: int
    channels: Sequence[str]  # of the share that is not of one channel
    complete: bool  # whether these are all there are

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield what `_ROW` names, for each channel with room."""
        parts = list(self._parts())
        # As many channels as jobs: one of each. Else more, as some have but a few.
        count = len(parts)
        each = 1 if count > self.limit else -(-2 * self.limit // max(1, count))
        for visit, (channel, share) in enumerate(parts):
            most = min(each, self.limit, self.fair.room(channel))
            part = _part_of(share.subscription)
            yield self.queue, channel, most, visit, self.fair.slots, part, share.slots

    def _parts(self) -> Iterator[tuple[str, Share]]:
        for share in self.shares:
            given = share.channel
            for channel in self.channels if given is None else [given]:
                if channel not in share.without and self.fair.room(channel) > 0:
                    yield channel, share

    def move_cursor(self, tables: JobTables, jobs: Sequence[Any]) -> None:
        """Note whom the next claim has to begin after."""
        if not self.channels:
            return
        served = Counter(job.channel for job in jobs if job.queue == self.queue)
        most = max((served[channel] for channel in self.channels), default=0)
        last = [channel for channel in self.channels if served[channel] == most][-1]
        _cursors[tables, self.queue] = last


def _part_of(subscription: Subscription | None) -> str:
    return repr(subscription)


def _visit(
    session: Session, tables: JobTables, ask: Ask, queues: Mapping[str, FairAsk]
) -> list[_Visit]:
    """Find the next channels of each queue, by one statement."""
    shares = {name: ask.shares(name) for name in queues}
    limits = {name: min(fair.slots, ask.limit) for name, fair in queues.items()}
    wanted = []
    for name, fair in queues.items():
        rest = [share for share in shares[name] if share.channel is None]
        if rest:
            extra = min(MAX_SATURATED, fair.saturated() + len(rest[0].without))
            cursor = _cursors.get((tables, name), "")
            wanted.append((name, cursor, limits[name] + SPARE + extra))
    found: dict[str, list[str]] = {name: [] for name in queues}
    if wanted:
        names, cursors, most = (list(values) for values in zip(*wanted, strict=True))
        params = {"queue": names, "cursor": cursors, "visits": most}
        for row in execute(session, tables, _visiting, params):
            found[row.queue].append(row.channel)
    asked = {name: count for name, _, count in wanted}
    return [
        _Visit(
            name,
            fair,
            shares[name],
            limits[name],
            found[name],
            complete=len(found[name]) < asked.get(name, 1),
        )
        for name, fair in queues.items()
    ]


@built_once
def _visiting(tables: JobTables, dialect: JobDialect) -> Executable:
    """
    Return the channels after each cursor, by a loose scan of their index.

    After the last one come the jobs without a channel, then the first ones; it ends
    where it began.
    """
    texts = {"queue": Text(), "cursor": Text()}
    wanted = dialect.rows("wanted", {**texts, "visits": Integer()})
    visits = select(
        wanted.c.queue,
        wanted.c.cursor.label("channel"),
        wanted.c.cursor,
        wanted.c.visits,
        literal_column("0", Integer()).label("number"),
        false().label("wrapped"),
    ).cte("visits", recursive=True)
    job = tables.table.c
    following = (
        select(job.channel)
        .where(
            job.queue == visits.c.queue,
            job.channel > visits.c.channel,
            job.channel != NO_TEXT,
            claimable(tables),
        )
        .order_by(job.channel)
        .limit(1)
        .correlate(visits)
        .lateral("following")
    )
    found = following.c.channel
    again = (
        select(
            visits.c.queue,
            func.coalesce(found, NO_TEXT),
            visits.c.cursor,
            visits.c.visits,
            visits.c.number + 1,
            or_(visits.c.wrapped, found.is_(null())),
        )
        .select_from(visits.outerjoin(following, literal(True)))
        .where(
            visits.c.number < visits.c.visits,
            or_(~visits.c.wrapped, found <= visits.c.cursor),
        )
    )
    visits = visits.union_all(again)
    return (
        select(visits.c.queue, visits.c.channel)
        .where(visits.c.number > 0)
        .order_by(visits.c.number)
    )


_ROW = ("queue", "channel", "most", "visit", "queue_slots", "part", "part_slots")


def _pick_fair(
    tables: JobTables, dialect: JobDialect, all_kinds: bool, blank: bool
) -> CTE:
    """The ids to take: the first of each channel, then the second of each, ..."""
    texts = {"queue": Text(), "channel": Text(), "part": Text()}
    numbers = dict.fromkeys(("most", "visit", "queue_slots", "part_slots"), Integer())
    wanted = dialect.rows("wanted", {**texts, **numbers})
    parts = [_of_channels(tables, dialect, wanted, all_kinds=all_kinds)]
    if blank:
        parts.append(_of_none(tables, dialect, wanted, all_kinds=all_kinds))
    found = union_all(*parts).subquery("candidates")
    order = (found.c.turn, found.c.visit)
    suspect = found.c.crashes >= SUSPECT_CRASHES
    columns: list[Any] = [
        func.row_number().over(partition_by=by, order_by=order).label(name)
        for name, by in (
            ("in_queue", found.c.queue),
            ("in_part", found.c.part),
            ("nth", suspect),
        )
    ]
    ranked = select(found, suspect.label("suspect"), *columns).subquery("ranked")
    return (
        select(ranked.c.id)
        .where(
            ranked.c.in_queue <= ranked.c.queue_slots,
            ranked.c.in_part <= ranked.c.part_slots,
            or_(~ranked.c.suspect, ranked.c.nth == 1),
        )
        .order_by(ranked.c.in_queue, func.random())
        .limit(bind("limit", Integer()))
        .cte("picked")
        .prefix_with("MATERIALIZED")
    )


def _of_channels(
    tables: JobTables, dialect: JobDialect, wanted: FromClause, *, all_kinds: bool
) -> Select[*tuple[Any, ...]]:
    job = tables.table.c
    mine = [job.channel == wanted.c.channel, job.channel != NO_TEXT]
    return _numbered(tables, dialect, wanted, mine, all_kinds=all_kinds)


def _of_none(
    tables: JobTables, dialect: JobDialect, wanted: FromClause, *, all_kinds: bool
) -> Select[*tuple[Any, ...]]:
    """The jobs without a channel among the first of the queue; no index has them."""
    other = tables.table.alias("first")
    first = (
        select(other.c.id, other.c.channel)
        .where(other.c.queue == wanted.c.queue, claimable(tables, other))
        .order_by(*rank_columns(other))
        .limit(FIRST)
        .correlate(wanted)
        .subquery("first_ones")
    )
    blank = select(first.c.id).where(first.c.channel == NO_TEXT).subquery("blank")
    mine = [among(tables.table.c.id, blank)]
    found = _numbered(tables, dialect, wanted, mine, all_kinds=all_kinds)
    return found.where(wanted.c.channel == NO_TEXT)


def _numbered(
    tables: JobTables,
    dialect: JobDialect,
    wanted: FromClause,
    mine: Sequence[ColumnElement[bool]],
    *,
    all_kinds: bool,
) -> Select[*tuple[Any, ...]]:
    """Return the jobs of each wanted row, locked and numbered in claim order."""
    job = tables.table.c
    conditions = job_conditions(tables, wanted, wanted.c.queue, all_kinds=all_kinds)
    stmt: Select[*tuple[Any, ...]] = (
        select(job.id, job.crashes)
        .where(*conditions, *mine)
        .order_by(*rank_columns(tables.table))
        .limit(wanted.c.most)
    )
    ready = dialect.lock(stmt, skip=True, of=tables.table)
    rows = ready.correlate(wanted).lateral("ready")
    turn = func.row_number().over().label("turn")
    found = select(rows.c.id, rows.c.crashes, turn).lateral("found")
    given = ("queue", "visit", "part", "queue_slots", "part_slots")
    return select(
        found.c.id, found.c.crashes, found.c.turn, *(wanted.c[name] for name in given)
    ).select_from(wanted.join(found, literal(True)))
