"""Take available jobs: one statement locks, marks and returns them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    Boolean,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Interval,
    Select,
    Text,
    Update,
    Uuid,
    and_,
    case,
    func,
    inspect,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, selectinload

from sqla_jobs._core.options import MIN_LEASE
from sqla_jobs._core.states import SUSPECT_CRASHES, JobState
from sqla_jobs._dialects import JobDialect, bind, dialect_of
from sqla_jobs._store.base import (
    among,
    built_once,
    connection_of,
    execute,
    naming_missing_tables,
    prefixed,
    word,
)
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables

DEFAULT_LEASE = timedelta(seconds=30)
MAX_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Claim:
    """
    One leased job as plain values; also of kinds this process does not map.

    ``token`` is the proof of the lease: each claim of the row has a higher one.
    ``state`` is the saved checkpoint.
    """

    job_id: int
    token: int
    kind: str
    queue: str
    attempt: int
    max_attempts: int
    backoff: str
    leased_until: datetime
    payload: dict[str, Any] = field(hash=False)
    payload_bytes: bytes | None
    state: dict[str, Any] = field(hash=False)
    tables: JobTables = field(repr=False, compare=False)


def claim(
    session: Session,
    job_class: type[Any],
    *,
    queues: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    limit: int = 1,
    lease: timedelta = DEFAULT_LEASE,
    now: datetime | None = None,
) -> list[Claim]:
    """
    Lease up to *limit* available jobs; they are yours once the caller commits.

    Jobs come by priority (higher first), fresh before retried before rescued, then
    by ``run_at`` and id; several queues share the limit in turn. Does not commit.

    Args:
        session: Any session on the job table's database.
        job_class: The root class; or a class under it, to take its kinds only.
        queues: Names of queues; None takes from all.
        kinds: Kinds to take, mapped or not; None takes any.
        limit: Most jobs to take, 1 to 10,000. Default 1.
        lease: How long the claim holds without `renew`, 3 s or more, unless the job
            sets its own. Default 30 s.
        now: The time to use instead of the database's clock, for tests.

    Raises:
        JobValueError: If *limit* or *lease* is out of range, or *queues* or *kinds* is
            one text.
        MissingTables: If the job tables are not there.
    """
    check_limit(limit)
    check_lease(lease)
    names = check_names("queues", queues)
    kinds = check_names("kinds", kinds)
    tables = job_tables(job_class)
    if kinds is None and job_class is not tables.root:
        kinds = kinds_of(tables, job_class)
    params = claim_params(
        queues=None if names is None else dict.fromkeys(names, limit),
        kinds=kinds,
        limit=limit,
        lease=lease,
        now=now,
    )
    build = _plain_statement(queues is None, kinds is None)
    rows = execute(session, tables, build, params)
    found = sorted(rows.mappings(), key=_claim_order)
    return [_claim_of(row, tables) for row in found]


def claim_jobs(  # noqa: PLR0913 - one keyword per condition
    session: Session,
    tables: JobTables,
    *,
    kinds: Sequence[str],
    queues: Mapping[str, int] | None,
    limit: int,
    lease: timedelta,
    runner_id: UUID,
    suspects: bool = True,
    now: datetime | None = None,
) -> list[Any]:
    """
    Lease up to *limit* jobs as mapped instances, in claim order; does not commit.

    Args:
        queues: Most jobs per queue; None takes from all.
        suspects: Whether one job that crashed its runner twice may be among them.

    Raises:
        MissingTables: If the job tables are not there.
    """
    params = claim_params(
        queues=queues, kinds=kinds, limit=limit, lease=lease, now=now
    ) | {"runner": runner_id, "suspects": suspects}
    build = entity_statement_all if queues is None else entity_statement_queues
    statement = build(tables, dialect_of(connection_of(session, tables)))
    with naming_missing_tables(tables):
        jobs = session.scalars(statement, prefixed(params)).all()
    return sorted(jobs, key=lambda j: (-j.priority, j.lane, j.run_at, j.id))


def load_relationships(session: Session, jobs: Sequence[Any]) -> None:
    """Load what the classes' ``load=`` names: one SELECT per class and relationship."""
    by_class: dict[type[Any], list[int]] = {}
    for job in jobs:
        if type(job).__job_options__.load:
            by_class.setdefault(type(job), []).append(job.id)
    for cls, ids in by_class.items():
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
        JobValueError: If *names* is one text, whose characters would be the names.
    """
    if isinstance(names, str):
        raise JobValueError(f"{what} must be a list of names, e.g. [{names!r}]")
    return None if names is None else list(names)


def claim_params(
    *,
    queues: Mapping[str, int] | None,
    kinds: Sequence[str] | None,
    limit: int,
    lease: timedelta,
    now: datetime | None,
) -> dict[str, Any]:
    """Return the parameters of the claim statements."""
    params: dict[str, Any] = {
        "limit": limit,
        "lease": lease,
        "now": now,
        "runner": None,
        "suspects": True,
    }
    if queues is not None:
        params |= {"queue": list(queues), "slots": list(queues.values())}
    if kinds is not None:
        params["kinds"] = list(kinds)
    return params


def kinds_of(tables: JobTables, job_class: type[Any]) -> list[str]:
    """Return the kinds and aliases of *job_class* and the classes under it."""
    return [k for k, cls in tables.kinds.items() if issubclass(cls, job_class)]


def _plain_statement(all_queues: bool, all_kinds: bool) -> Any:
    return _PLAIN[all_queues, all_kinds]


@built_once
def entity_statement_all(tables: JobTables, dialect: JobDialect) -> Executable:
    """Return the claim of mapped jobs from all queues."""
    return _returning_entities(tables, dialect, all_queues=True)


@built_once
def entity_statement_queues(tables: JobTables, dialect: JobDialect) -> Executable:
    """Return the claim of mapped jobs from given queues."""
    return _returning_entities(tables, dialect, all_queues=False)


def _returning_entities(
    tables: JobTables, dialect: JobDialect, *, all_queues: bool
) -> Executable:
    stmt = _claiming(tables, dialect, tables.root, all_queues=all_queues)
    return stmt.returning(tables.root).execution_options(
        synchronize_session=False, populate_existing=True
    )


def _returning_columns(all_queues: bool, all_kinds: bool) -> Any:
    @built_once
    def build(tables: JobTables, dialect: JobDialect) -> Executable:
        job = tables.table.c
        stmt = _claiming(
            tables,
            dialect,
            tables.table,
            all_queues=all_queues,
            all_kinds=all_kinds,
        )
        return stmt.returning(*(job[name] for name in _CLAIM_COLUMNS))

    return build


_CLAIM_COLUMNS = (
    "id", "lease_token", "kind", "queue", "attempt", "max_attempts", "backoff",
    "leased_until", "payload", "payload_bytes", "checkpoint", "priority", "lane",
    "run_at",
)  # fmt: skip
_PLAIN = {
    (q, k): _returning_columns(q, k) for q in (True, False) for k in (True, False)
}


def _claiming(
    tables: JobTables,
    dialect: JobDialect,
    target: Any,
    *,
    all_queues: bool,
    all_kinds: bool = False,
) -> Update:
    picked = _picked(tables, dialect, all_queues=all_queues, all_kinds=all_kinds)
    return taking(tables, dialect, target).where(among(tables.table.c.id, picked))


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


def _picked(
    tables: JobTables, dialect: JobDialect, *, all_queues: bool, all_kinds: bool
) -> CTE:
    """
    The ids to take: up to ``slots`` of each queue, the queues in turn.

    MATERIALIZED, so that a nested loop around it cannot run its LIMIT again and take
    far too many rows.
    """
    wanted = _all_queues(tables) if all_queues else _given_queues(dialect)
    found = _candidates(tables, dialect, wanted, all_kinds=all_kinds)
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


def _candidates(
    tables: JobTables, dialect: JobDialect, wanted: FromClause, *, all_kinds: bool
) -> Any:
    job = tables.table.c
    queue = tables.queues.c
    paused = (
        select(queue.name)
        .where(queue.name == wanted.c.queue, queue.paused)
        .correlate(wanted)
        .exists()
    )
    conditions: list[ColumnElement[bool]] = [
        job.queue == wanted.c.queue,
        claimable(tables),
        ~paused,
        or_(bind("suspects", Boolean()), job.crashes < SUSPECT_CRASHES),
    ]
    if not all_kinds:
        conditions.append(job.kind == func.any(bind("kinds", ARRAY(Text()))))
    stmt: Select[*tuple[Any, ...]] = (
        select(job.id, job.crashes)
        .where(*conditions)
        .order_by(job.priority.desc(), job.lane, job.run_at, job.id)
        .limit(wanted.c.slots)
    )
    ready = dialect.lock(stmt, skip=True, of=tables.table)
    ready_rows = ready.correlate(wanted).lateral("ready")
    # Numbered as they come, in claim order: no second sort.
    turn = func.row_number().over().label("turn")
    return select(ready_rows.c.id, ready_rows.c.crashes, turn).lateral("found")


def claimable(tables: JobTables) -> ColumnElement[bool]:
    """Return the predicate of the claim index, literally."""
    job = tables.table.c
    return and_(job.state == word(JobState.AVAILABLE), ~job.ordered)


def _given_queues(dialect: JobDialect) -> FromClause:
    return dialect.rows("wanted", {"queue": Text(), "slots": Integer()})


def _all_queues(tables: JobTables) -> FromClause:
    """Every queue with claimable jobs, by a loose scan of the claim index."""
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
    names = names.union_all(select(following).where(names.c.queue.is_not(None)))
    limit = bind("limit", Integer())
    return (
        select(names.c.queue, limit.label("slots"))
        .where(names.c.queue.is_not(null()))
        .subquery("wanted")
    )


def _claim_order(row: Any) -> Any:
    return (-row["priority"], row["lane"], row["run_at"], row["id"])


def _claim_of(row: Any, tables: JobTables) -> Claim:
    return Claim(
        job_id=row["id"],
        token=row["lease_token"],
        kind=row["kind"],
        queue=row["queue"],
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        backoff=row["backoff"],
        leased_until=row["leased_until"],
        payload=row["payload"],
        payload_bytes=row["payload_bytes"],
        state=row["checkpoint"] or {},
        tables=tables,
    )
