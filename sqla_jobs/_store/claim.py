"""Take available jobs: one statement locks, marks and returns them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

from sqlalchemy import Executable, inspect, literal, select
from sqlalchemy.orm import Session, selectinload

from sqla_jobs._core.limits import NO_FEATURES, Features
from sqla_jobs._core.memory import Memory
from sqla_jobs._core.options import MIN_LEASE, problem_of
from sqla_jobs._core.subscriptions import (
    Subscription,
    check_subscriptions,
)
from sqla_jobs._dialects import JobDialect
from sqla_jobs._store.base import execute
from sqla_jobs._store.features import feature_flags, read_queues
from sqla_jobs._store.heads import claim_heads, memory_of
from sqla_jobs._store.managed import claim_managed
from sqla_jobs._store.pick import pick
from sqla_jobs._store.plain import claim_plain
from sqla_jobs._store.take import Ask, claim_order, entity_order, taking_columns
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables
from sqla_jobs.models.backoffs import backoff_of_queue

_Source = Callable[[Session, JobTables, Ask, Features], list[Any]]
DEFAULT_LEASE = timedelta(seconds=30)
MAX_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Claim:
    """
    One leased job as plain values; also of kinds this process does not map.

    ``token`` is the proof of the lease: each claim of the row has a higher one.
    ``state`` is the saved checkpoint. A repr, which may come into a log, shows no data.
    """

    job_id: int
    token: int
    kind: str
    queue: str
    attempt: int
    max_attempts: int
    backoff: str
    leased_until: datetime
    payload: dict[str, Any] = field(hash=False, repr=False)
    payload_bytes: bytes | None = field(repr=False)
    state: dict[str, Any] = field(hash=False, repr=False)
    tables: JobTables = field(repr=False, compare=False)
    queue_backoff: str | None = field(default=None, repr=False, compare=False)


def claim(
    session: Session,
    job_class: type[Any],
    *,
    queues: Sequence[Subscription] | None = None,
    kinds: Sequence[str] | None = None,
    limit: int = 1,
    lease: timedelta = DEFAULT_LEASE,
    retry_share: float = 0.0,
    now: datetime | None = None,
) -> list[Claim]:
    """
    Lease up to *limit* available jobs; they are yours once the caller commits.

    Jobs come by priority (higher first), fresh before retried before rescued, then
    by ``run_at`` and id; several queues share the limit in turn. Does not commit.

    Args:
        session: Any session on the job table's database.
        job_class: The root class; or a class under it, to take its kinds only.
        queues: What to take from: names of queues, (queue, channel) pairs and
            `Prefix` values, in a list; None takes from all.
        kinds: Kinds to take, mapped or not; None takes any.
        limit: Most jobs to take, 1 to 10,000. Default 1.
        lease: How long the claim holds without `renew`, 3 s or more, unless the job
            sets its own. Default 30 s.
        retry_share: The part of *limit*, 0 to 1, that retried jobs get before fresh
            ones of the same priority; rescued jobs get as much. Default 0.
        now: The time to use instead of the database's clock, for tests.

    Raises:
        JobValueError: If *limit*, *lease* or *retry_share* is out of range, *queues* or
            *kinds* is one text, or *queues* holds something else.
        MissingTables: If the job tables are not there.
    """
    check_limit(limit)
    check_lease(lease)
    check_share(retry_share)
    sources = check_sources(queues)
    kinds = check_names("kinds", kinds)
    tables = job_tables(job_class)
    if kinds is None and job_class is not tables.root:
        kinds = kinds_of(tables, job_class)
    ask = Ask(
        limit=limit,
        lease=lease,
        queues=None if sources is None else dict.fromkeys(sources, limit),
        kinds=kinds,
        late=_late(limit, retry_share),
        now=now,
    )
    rows, features = _claim_in_turn(session, tables, ask)
    rows.sort(key=claim_order)
    return [
        claim_of(row, tables, backoff_of_queue(features, row.queue)) for row in rows
    ]


def _claim_in_turn(
    session: Session, tables: JobTables, ask: Ask
) -> tuple[list[Any], Features]:
    """Lease plain jobs, then others; these first if they were passed over before."""
    memory, rows = memory_of(tables, ask), list[Any]()
    passed_over, memory.passed_over = memory.passed_over, False
    if passed_over:
        features = Features(ordered=True, queues=read_queues(session, tables))
        rows = _claim_rest(session, tables, ask, features)
        ask = ask.after(rows)
        if not ask.open:
            return rows, features
    plain, features = _claim_plain(session, tables, ask)
    rows, ask = rows + plain, ask.after(plain)
    if features == NO_FEATURES or passed_over:
        return rows, features
    memory.passed_over = not ask.open
    return rows + _claim_rest(session, tables, ask, features), features


def _late(limit: int, share: float) -> int:
    """Return the places of late jobs; a part of one by chance."""
    return int(limit * share + random.random()) if share else 0  # noqa: S311


def _claim_plain(
    session: Session, tables: JobTables, ask: Ask
) -> tuple[list[Any], Features]:
    """Lease rows, and learn in the same statement what it left alone."""
    build = partial(_flagged, variant=ask.variant)
    found = execute(session, tables, build, ask.params()).all()
    ordered, rows_of_queues = found[0].has_ordered, found[0].has_queues
    rows = [row for row in found if row.id is not None]
    features = NO_FEATURES
    if ordered or rows_of_queues:
        queues = read_queues(session, tables) if rows_of_queues else {}
        features = Features(ordered, queues)
    return rows, features


@lru_cache(maxsize=256)
def _flagged(
    tables: JobTables, dialect: JobDialect, variant: tuple[Any, ...]
) -> Executable:
    picked = pick(tables, dialect, *variant)
    taken = taking_columns(tables, dialect, picked).cte("taken")
    flags = select(*feature_flags(tables, backoffs=True)).subquery("flags")
    return select(flags, taken).select_from(flags.outerjoin(taken, literal(True)))


def claim_jobs(  # noqa: PLR0913 - one keyword per condition
    session: Session,
    tables: JobTables,
    *,
    kinds: Sequence[str],
    queues: Mapping[Any, int] | None,
    limit: int,
    lease: timedelta,
    runner_id: UUID,
    suspects: bool = True,
    late: int = 0,
    features: Features = NO_FEATURES,
    memory: Memory | None = None,
    now: datetime | None = None,
) -> list[Any]:
    """
    Lease up to *limit* jobs as mapped instances, in claim order; does not commit.

    Args:
        queues: Most jobs per subscription; None takes from all.
        suspects: Whether one job that crashed its runner twice may be among them.
        late: Most retried and most rescued jobs that come before fresh ones.
        features: What else there is beside plain jobs.
        memory: What the claimer remembers of its last claims.

    Raises:
        MissingTables: If the job tables are not there.
    """
    ask = Ask(
        limit=limit,
        lease=lease,
        queues=queues,
        kinds=kinds,
        runner_id=runner_id,
        suspects=suspects,
        late=late,
        now=now,
        entities=True,
        memory=memory,
    )
    sources = [claim_plain, *_other_sources(features)]
    # None may always come first: it could take every slot, every time.
    random.shuffle(sources)
    found = _claim_from(session, tables, ask, features, sources)
    return sorted(found, key=entity_order)


def _claim_rest(
    session: Session, tables: JobTables, ask: Ask, features: Features
) -> list[Any]:
    sources = _other_sources(features)
    random.shuffle(sources)
    return _claim_from(session, tables, ask, features, sources)


def _other_sources(features: Features) -> list[_Source]:
    found: list[_Source] = [claim_heads] if features.ordered else []
    return [*found, claim_managed] if features.managed else found


def _claim_from(
    session: Session,
    tables: JobTables,
    ask: Ask,
    features: Features,
    sources: Sequence[_Source],
) -> list[Any]:
    found: list[Any] = []
    for source in sources:
        if ask.open:
            jobs = source(session, tables, ask, features)
            ask = ask.after(jobs)
            found += jobs
    return found


def load_relationships(session: Session, jobs: Sequence[Any]) -> None:
    """Load what the classes' ``load=`` names: one SELECT per class and relationship."""
    classes: set[Any] = set(map(type, jobs))
    for cls in [one for one in classes if one.__job_options__.load]:
        mine = [job for job in jobs if type(job) is cls]
        session.add_all(mine)
        ids = [job.id for job in mine]
        names = cls.__job_options__.load
        options = [selectinload(getattr(cls, name)) for name in names]
        stmt = select(cls).where(inspect(cls).primary_key[0].in_(ids)).options(*options)
        session.scalars(stmt).all()


def check_limit(limit: object) -> None:
    """
    Raise JobValueError unless *limit* is 1 to 10,000.

    Raises:
        JobValueError: As said.
    """
    whole = limit if isinstance(limit, int) and not isinstance(limit, bool) else 0
    if not 1 <= whole <= MAX_LIMIT:
        raise JobValueError(f"limit must be 1 to {MAX_LIMIT}, got {limit!r}")


def check_share(share: object) -> None:
    """
    Raise JobValueError unless *share* is a number from 0 to 1.

    Raises:
        JobValueError: As said.
    """
    number = -1 if isinstance(share, bool) else share
    if not isinstance(number, int | float) or not 0 <= number <= 1:
        raise JobValueError(
            f"retry_share must be 0 to 1, a part of the claimed jobs, got {share!r}"
        )


def check_lease(lease: timedelta) -> None:
    """
    Raise JobValueError if *lease* is below 3 s.

    Raises:
        JobValueError: As said.
    """
    if not isinstance(lease, timedelta):
        raise JobValueError(f"lease must be a timedelta of 3 s or more, got {lease!r}")
    if lease < MIN_LEASE:
        raise JobValueError(
            f"lease must be 3 s or more, got {lease.total_seconds():g} s:"
            " it is renewed every third of it, and a pause may not cost the job"
        )


def check_names(what: str, names: Iterable[str] | None) -> list[str] | None:
    """
    Return *names* as a list; None stays None.

    Raises:
        JobValueError: If *names* is one text, whose characters would be the names, or
            one of them is no name that the database could hold.
    """
    if isinstance(names, str):
        raise JobValueError(f"{what} must be a list of names, e.g. [{names!r}]")
    found = None if names is None else list(names)
    for one in found or ():
        if problem := problem_of("channel", one):
            raise JobValueError(f"{what}: {one!r} {problem}")
    return found


def check_sources(queues: Iterable[Subscription] | None) -> list[Subscription] | None:
    """
    Return *queues* as a list; None stays None.

    Raises:
        JobValueError: If it is one text, or holds what is no subscription.
    """
    check_names("queues", queues if isinstance(queues, str) else None)
    return None if queues is None else check_subscriptions(queues)


def kinds_of(tables: JobTables, job_class: type[Any]) -> list[str]:
    """Return the kinds and aliases of *job_class* and the classes under it."""
    return [k for k, cls in tables.kinds.items() if issubclass(cls, job_class)]


def claim_of(row: Any, tables: JobTables, queue_backoff: str | None) -> Claim:
    """Return a claimed *row* as its holder sees it."""
    return Claim(
        job_id=row.id,
        token=row.lease_token,
        kind=row.kind,
        queue=row.queue,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        backoff=row.backoff,
        leased_until=row.leased_until,
        payload=row.payload,
        payload_bytes=row.payload_bytes,
        state=row.checkpoint or {},
        tables=tables,
        queue_backoff=queue_backoff,
    )
