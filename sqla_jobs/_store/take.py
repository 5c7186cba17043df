"""Lease the rows that some way of picking has found: what every claim ends in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Interval,
    Update,
    Uuid,
    and_,
    func,
    or_,
    update,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.memory import Memory
from sqla_jobs._core.states import SUSPECT_CRASHES, JobState
from sqla_jobs._core.subscriptions import (
    Prefix,
    Share,
    Subscription,
    names_only,
    shares_of,
    subscription_of,
)
from sqla_jobs._dialects import JobDialect, bind, dialect_of
from sqla_jobs._store.base import (
    among,
    connection_of,
    naming_missing_tables,
    prefixed,
    word,
)
from sqla_jobs._store.entities import are_plain, instances
from sqla_jobs.models import JobTables

Pick = Callable[..., CTE]
"""(tables, dialect, *variant) -> the locked ids to take, as a MATERIALIZED CTE."""


class Shape(NamedTuple):
    """
    Which kinds of subscriptions a claim statement has to know.

    With *managed* it takes from queues that plain claims leave alone as well: their
    slots have been counted.
    """

    all_queues: bool
    pairs: bool = False
    prefixes: bool = False
    managed: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """
    What one claim asks for.

    Args:
        limit: Most jobs.
        queues: Most jobs of each subscription; None takes from all queues. One with no
            slots left still keeps its jobs from less specific ones.
        kinds: None takes any.
        suspects: Whether one job that crashed its runner twice may be among them.
        late: Most retried and most rescued jobs that come before fresh ones.
        entities: Whether mapped instances are wanted; else plain rows.
        memory: What the claimer remembers; None for low-level claims.
    """

    limit: int
    lease: timedelta
    queues: Mapping[Subscription, int] | None = None
    kinds: Sequence[str] | None = None
    runner_id: UUID | None = None
    suspects: bool = True
    late: int = 0
    now: datetime | None = None
    entities: bool = False
    memory: Memory | None = None

    def params(self) -> dict[str, Any]:
        """Return the parameters of the claim statements."""
        params: dict[str, Any] = {
            "limit": self.limit,
            "lease": self.lease,
            "now": self.now,
            "runner": self.runner_id,
            "suspects": self.suspects,
        }
        if self.late:
            params["late"] = self.late
        if self.queues is not None:
            params |= self._wanted(self.queues)
        if self.kinds is not None:
            params["kinds"] = list(self.kinds)
        return params

    def _wanted(self, queues: Mapping[Subscription, int]) -> dict[str, Any]:
        slots = {one: min(count, self.limit) for one, count in queues.items()}
        names = [one for one in slots if isinstance(one, str)]
        found: dict[str, Any] = {
            "queue": names,
            "slots": [slots[name] for name in names],
        }
        if self.shape.pairs:
            pairs = [one for one in slots if isinstance(one, tuple)]
            found["pair_queue"] = [queue for queue, _ in pairs]
            found["pair_channel"] = [channel for _, channel in pairs]
            found["pair_slots"] = [slots[pair] for pair in pairs]
        if self.shape.prefixes:
            prefixes = [one for one in slots if isinstance(one, Prefix)]
            found["prefix"] = [prefix.text for prefix in prefixes]
            found["prefix_slots"] = [slots[prefix] for prefix in prefixes]
        return found

    @property
    def shape(self) -> Shape:
        """Which kinds of subscriptions there are."""
        if self.queues is None:
            return Shape(all_queues=True)
        return Shape(
            all_queues=False,
            pairs=any(isinstance(one, tuple) for one in self.queues),
            prefixes=any(isinstance(one, Prefix) for one in self.queues),
        )

    @property
    def variant(self) -> tuple[Shape, bool, bool]:
        """What `pick` has to know of it."""
        return self.shape, self.kinds is None, self.late > 0

    def shares(self, queue: str) -> list[Share]:
        """
        Return what may be taken from *queue*, in disjoint parts; none if nothing.

        The queues that share a prefix are each offered all of its slots.
        """
        return shares_of(self.queues, queue, limit=self.limit)

    def after(self, jobs: Sequence[Any]) -> Ask:
        """Return what is still asked for once *jobs* are taken."""
        queues = self.queues
        if queues is not None:
            taken = Counter(
                subscription_of(queues, job.queue, job.channel) for job in jobs
            )
            queues = {one: slots - taken[one] for one, slots in queues.items()}
            if names_only(queues):
                queues = {name: slots for name, slots in queues.items() if slots > 0}
        suspects = self.suspects and all(job.crashes < SUSPECT_CRASHES for job in jobs)
        return replace(
            self, limit=self.limit - len(jobs), queues=queues, suspects=suspects
        )

    @property
    def open(self) -> bool:
        """Whether there is anything left to ask for."""
        if self.limit <= 0 or self.queues is None:
            return self.limit > 0
        return any(slots > 0 for slots in self.queues.values())


def take(
    session: Session,
    tables: JobTables,
    ask: Ask,
    pick: Pick,
    *variant: Any,
    **params: Any,
) -> list[Any]:
    """
    Lease what *pick* finds and return it, in no order; does not commit.

    Args:
        variant: Passed on to *pick*, hashable: a statement is built once for each.
        params: Parameters of the statement beside those of *ask*.
    """
    connection = connection_of(session, tables)
    build = _columns
    if ask.entities:
        # What the session holds already must be refreshed, not stand beside it.
        fresh = len(session.identity_map) == 0
        build = _rows if fresh and are_plain(tables) else _entities
    statement = build(tables, dialect_of(connection), pick, variant)
    values = prefixed(ask.params() | params)
    with naming_missing_tables(tables):
        if build is _entities:
            return list(session.scalars(statement, values))
        found = connection.execute(statement, values).all()
        return instances(tables, found) if ask.entities else list(found)


@lru_cache(maxsize=256)
def _entities(
    tables: JobTables, dialect: JobDialect, pick: Pick, variant: tuple[Any, ...]
) -> Any:
    picked = pick(tables, dialect, *variant)
    stmt = taking(tables, dialect, tables.root).where(among(tables.table.c.id, picked))
    return stmt.returning(tables.root).execution_options(
        synchronize_session=False, populate_existing=True
    )


@lru_cache(maxsize=256)
def _rows(
    tables: JobTables, dialect: JobDialect, pick: Pick, variant: tuple[Any, ...]
) -> Any:
    job = tables.table
    stmt = taking(tables, dialect, job)
    stmt = stmt.where(among(job.c.id, pick(tables, dialect, *variant)))
    return stmt.returning(*job.c)


@lru_cache(maxsize=256)
def _columns(
    tables: JobTables, dialect: JobDialect, pick: Pick, variant: tuple[Any, ...]
) -> Any:
    return taking_columns(tables, dialect, pick(tables, dialect, *variant))


def taking_columns(tables: JobTables, dialect: JobDialect, picked: CTE) -> Any:
    """Return the statement that leases *picked* and returns `CLAIM_COLUMNS`."""
    job = tables.table.c
    stmt = taking(tables, dialect, tables.table).where(among(job.id, picked))
    return stmt.returning(*(job[name] for name in CLAIM_COLUMNS))


CLAIM_COLUMNS = (
    "id", "lease_token", "kind", "queue", "channel", "attempt", "max_attempts",
    "backoff", "leased_until", "payload", "payload_bytes", "checkpoint", "priority",
    "lane", "run_at", "crashes",
)  # fmt: skip


def taking(tables: JobTables, dialect: JobDialect, target: Any) -> Update:
    """Return the UPDATE that leases rows; which ones is the caller's business."""
    job = tables.table
    lease = func.coalesce(job.c.lease, bind("lease", Interval()))
    return update(target).values(
        state=JobState.RUNNING.value,
        lease_token=job.c.lease_token + 1,
        attempt=job.c.attempt + 1,
        leased_until=dialect.now() + lease,
        started_at=dialect.now(),
        runner_id=bind("runner", Uuid()),
    )


def claimable(
    tables: JobTables, source: FromClause | None = None
) -> ColumnElement[bool]:
    """Return the predicate of the claim index, literally; of *source*, an alias."""
    job = (tables.table if source is None else source).c
    return and_(job.state == word(JobState.AVAILABLE), ~job.ordered)


def is_managed(tables: JobTables) -> ColumnElement[bool]:
    """Return whether a row of the queues is left alone by plain claims."""
    queue = tables.queues.c
    limits = (queue.max_running, queue.max_running_per_channel, queue.rate_limit)
    return or_(queue.fair, *(limit.is_not(None) for limit in limits))


def claim_order(row: Any) -> Any:
    """Return the sort key of jobs or rows that were claimed together."""
    return (-row.priority, row.lane, row.run_at, row.id)


def entity_order(job: Any) -> Any:
    """Return the same of a job just loaded."""
    row = job.__dict__
    return (-row["priority"], row["lane"], row["run_at"], row["id"])
