"""How jobs leave the hot table: purged now, or by retention, or into the archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    ColumnExpressionArgument,
    Executable,
    Integer,
    Interval,
    Select,
    Table,
    Text,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.options import RAW_KIND
from sqla_jobs._core.states import FINAL, JobState
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import among, built_once, execute, literal_states
from sqla_jobs._store.claim import MAX_LIMIT, check_limit, check_names
from sqla_jobs._store.enqueue import check_session, flush_before
from sqla_jobs._store.target import (
    Target,
    checked_ids,
    kinds_in,
    of_ids,
    of_kinds,
    target_of,
)
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables
from sqla_jobs.models.columns import COLUMN_ORDER


def purge(  # noqa: PLR0913 - one keyword per condition
    session: Session,
    job_class: type[Any],
    *,
    ids: int | Iterable[int] | None = None,
    where: ColumnExpressionArgument[bool] | None = None,
    queues: Sequence[str] | None = None,
    states: Iterable[JobState | str] = FINAL,
    older_than: timedelta = timedelta(0),
    limit: int = MAX_LIMIT,
    dry_run: bool = False,
    now: datetime | None = None,
) -> int:
    """
    Delete jobs with their attempts and return how many; does not commit.

    All conditions must hold. Jobs that somebody is writing are skipped. Nothing goes to
    the archive; what is there stays: see `purge_archive`.

    Args:
        session: With an AsyncSession: ``await session.run_sync(purge, ...)``.
        job_class: The root class; or a class under it, to delete its kinds only.
        ids: One id or many; default any.
        where: A condition on attributes of one job class; default none.
        queues: Names of queues; None means all.
        states: Which jobs; default the final ones. Never running ones.
        older_than: Only jobs that finished, or were to run, at least this long ago.
            Default 0.
        limit: Most jobs to delete at once, 1 to 10,000. Default 10,000.
        dry_run: Whether to count only what a call would delete. Default False.

    Raises:
        JobValueError: If *states* holds `running` or no state, *queues* is one text,
            *limit* is out of range, or *ids* or *where* cannot be used.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "purge")
    check_limit(limit)
    tables = job_tables(job_class)
    params: dict[str, Any] = {
        "states": _purgeable(states),
        "queues": check_names("queues", queues),
        "kinds": kinds_in(tables, job_class),
        "age": _checked_age(older_than),
        "limit": limit,
        "now": now,
    }
    if ids is not None:
        params["ids"] = checked_ids(ids)
    target = None
    if where is not None:
        flush_before(session)
        target = target_of(tables, job_class, where)
    build = partial(
        _purging if target is None else partial(_purging_where, target=target),
        by_ids=ids is not None,
        dry_run=dry_run,
    )
    return int(execute(session, tables, build, params).scalar_one())


def _purgeable(states: Iterable[JobState | str]) -> list[str]:
    try:
        wanted = {JobState(state) for state in states}
    except ValueError as exc:
        raise JobValueError(f"{exc}; states are {', '.join(JobState)}") from None
    if JobState.RUNNING in wanted or not wanted:
        raise JobValueError(
            "purge does not delete running jobs; request_cancel() them first"
            if wanted
            else "purge needs at least one state"
        )
    return sorted(wanted)


def _checked_age(age: timedelta) -> timedelta:
    if not isinstance(age, timedelta):
        raise JobValueError(
            f"older_than must be a timedelta, e.g. timedelta(days=7), got {age!r}"
        )
    return age


@built_once
def _purging(
    tables: JobTables, dialect: JobDialect, *, by_ids: bool, dry_run: bool
) -> Executable:
    found = select(tables.table.c.id).where(of_kinds(tables))
    return _purge_of(tables, dialect, found, by_ids=by_ids, dry_run=dry_run)


def _purging_where(
    tables: JobTables, dialect: JobDialect, *, target: Target, **options: bool
) -> Executable:
    return _purge_of(tables, dialect, target.ids(), **options)


def _purge_of(
    tables: JobTables,
    dialect: JobDialect,
    found: Select[tuple[int]],
    *,
    by_ids: bool,
    dry_run: bool,
) -> Executable:
    job = tables.table.c
    queues = bind("queues", ARRAY(Text()))
    since = func.coalesce(job.finished_at, job.run_at)
    old = (
        found.where(
            *([of_ids(job.id)] if by_ids else []),
            job.state == func.any(bind("states", ARRAY(Text()))),
            since <= dialect.now() - bind("age", Interval()),
            or_(queues.is_(None), job.queue == func.any(queues)),
        )
        .order_by(job.id)
        .limit(bind("limit", Integer()))
    )
    if dry_run:
        return select(func.count()).select_from(old.subquery())
    return _deleting(tables, _locked(tables, dialect, old))


def _locked(tables: JobTables, dialect: JobDialect, old: Select[tuple[int]]) -> Any:
    return dialect.lock(old, skip=True, delete=True, of=tables.table).cte("old")


def _deleting(tables: JobTables, old: Any) -> Executable:
    job = tables.table.c
    gone = delete(tables.table).where(among(job.id, old)).returning(job.id).cte("gone")
    log = _forgetting(tables, gone)
    return select(func.count()).select_from(gone).add_cte(log)


def _forgetting(tables: JobTables, gone: Any) -> Any:
    attempts = delete(tables.attempts)
    return attempts.where(tables.attempts.c.job_id == gone.c.id).cte("logged")


def apply_retention(
    session: Session,
    tables: JobTables,
    *,
    limit: int = 1_000,
    now: datetime | None = None,
) -> int:
    """
    Delete, or archive, finished jobs that are older than their class's retention.

    One statement per distinct (state, age), and per table of their own for classes that
    archive; of unmapped kinds only raw is theirs, as the root class says. Does not
    commit. Returns how many have left the hot table.
    """
    left = 0
    deleted, archived = retention_groups(tables), _archive_groups(tables)
    groups: list[tuple[str, timedelta, list[str], Any]] = [
        *((*group, kinds, _retaining) for group, kinds in deleted.items()),
        *(
            (state, age, kinds, partial(_archiving, own=own))
            for (state, age, own), kinds in archived.items()
        ),
    ]
    for state, age, kinds, build in groups:
        params = {
            "state": state,
            "kinds": kinds,
            "age": age,
            "limit": limit,
            "now": now,
        }
        left += int(execute(session, tables, build, params).scalar_one())
    return left


def retention_groups(tables: JobTables) -> dict[tuple[str, timedelta], list[str]]:
    """Return the kinds that share a state and an age, of classes that delete."""
    groups: dict[tuple[str, timedelta], list[str]] = {}
    for state, age, kind in _ages(tables, archive=False):
        groups.setdefault((state, age), []).append(kind)
    return groups


def _archive_groups(
    tables: JobTables,
) -> dict[tuple[str, timedelta, tuple[Table, ...]], list[str]]:
    """Return the same of classes that archive, by their tables beside the hot one."""
    groups: dict[tuple[str, timedelta, tuple[Table, ...]], list[str]] = {}
    for state, age, kind in _ages(tables, archive=True):
        mapped: Any = tables.kinds.get(kind, tables.root).__mapper__.tables
        own = tuple(table for table in mapped if table is not tables.table)
        groups.setdefault((state, age, own), []).append(kind)
    return groups


def _ages(tables: JobTables, *, archive: bool) -> list[tuple[str, timedelta, str]]:
    return [
        (state.value, age, kind)
        for kind, job_class in (*tables.kinds.items(), (RAW_KIND, tables.root))
        for retention in [job_class.__job_options__.retention]
        for state in sorted(FINAL)
        if retention.archive == archive
        and (age := getattr(retention, state.value)) is not None
    ]


@built_once
def _retaining(tables: JobTables, dialect: JobDialect) -> Executable:
    return _deleting(tables, _locked(tables, dialect, _retired(tables, dialect)))


def _retired(tables: JobTables, dialect: JobDialect) -> Select[tuple[int]]:
    """As for `purge`, but by the index on finished jobs: oldest first."""
    job = tables.table.c
    return (
        select(job.id)
        .where(
            job.state.in_(literal_states(FINAL)),  # what the index is on
            job.state == bind("state", Text()),
            job.finished_at <= dialect.now() - bind("age", Interval()),
            job.kind == func.any(bind("kinds", ARRAY(Text()))),
        )
        .order_by(job.finished_at)
        .limit(bind("limit", Integer()))
    )


@built_once
def _archiving(
    tables: JobTables, dialect: JobDialect, *, own: tuple[Table, ...]
) -> Executable:
    """
    Move rows by one statement; a row is in one of the two tables at any moment.

    The rows of *own* go by their foreign keys at its end, so they can still be read.
    """
    job, archive = tables.table.c, tables.archive
    # Ids begin anew when somebody empties the hot table alone.
    known = exists().where(archive.c.id == job.id)
    old = _locked(tables, dialect, _retired(tables, dialect).where(~known))
    gone = delete(tables.table).where(among(job.id, old)).returning(*job).cte("gone")
    source: Any = gone
    for table in own:
        (key,) = table.primary_key
        source = source.outerjoin(table, key == gone.c.id)
    names = [*COLUMN_ORDER, "own"]
    kept = [gone.c[name] for name in COLUMN_ORDER]
    rows = select(*kept, _own_values(dialect, gone, own)).select_from(source)
    moved = insert(archive).from_select(names, rows).returning(archive.c.id)
    return select(func.count()).select_from(moved.cte("moved"))


def _own_values(
    dialect: JobDialect, gone: Any, own: Sequence[Table]
) -> ColumnElement[Any]:
    """Return the application's columns as JSON, by name."""
    values: dict[str, ColumnElement[Any]] = {
        column.name: column for column in gone.c if column.key not in COLUMN_ORDER
    }
    for table in own:
        values |= {c.name: c for c in table.c if not c.primary_key}
    return dialect.json_object(dialect.json(literal("{}", Text())), values)


def purge_archive(
    session: Session,
    job_class: type[Any],
    *,
    older_than: timedelta,
    queues: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    limit: int = MAX_LIMIT,
    dry_run: bool = False,
    now: datetime | None = None,
) -> int:
    """
    Delete archived jobs with their attempts and return how many; does not commit.

    Args:
        session: With an AsyncSession: ``await session.run_sync(purge_archive, ...)``.
        job_class: The root class; or a class under it, to delete its kinds only.
        older_than: Only jobs that were archived at least this long ago.
        queues: Names of queues; None means all.
        kinds: Kinds, mapped or not; None means all of *job_class*.
        limit: Most jobs to delete at once, 1 to 10,000; the oldest. Default 10,000.
        dry_run: Whether to count only what a call would delete. Default False.

    Raises:
        JobValueError: If *limit* is out of range, or *queues* or *kinds* is one text.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "purge_archive")
    check_limit(limit)
    tables = job_tables(job_class)
    params: Mapping[str, Any] = {
        "age": _checked_age(older_than),
        "queues": check_names("queues", queues),
        "kinds": kinds_in(tables, job_class),
        "only": check_names("kinds", kinds),
        "limit": limit,
        "now": now,
    }
    build = partial(_purging_archive, dry_run=dry_run)
    return int(execute(session, tables, build, params).scalar_one())


@built_once
def _purging_archive(
    tables: JobTables, dialect: JobDialect, *, dry_run: bool
) -> Executable:
    kept = tables.archive.c
    choices = {"queues": kept.queue, "kinds": kept.kind, "only": kept.kind}
    conditions = [
        or_(given.is_(None), column == func.any(given))
        for name, column in choices.items()
        for given in [bind(name, ARRAY(Text()))]
    ]
    old = (
        select(kept.id)
        .where(kept.archived_at <= dialect.now() - bind("age", Interval()), *conditions)
        .order_by(kept.archived_at)
        .limit(bind("limit", Integer()))
    )
    if dry_run:
        return select(func.count()).select_from(old.subquery())
    found = dialect.lock(old, skip=True, delete=True).cte("old")
    gone = delete(tables.archive).where(among(kept.id, found))
    removed = gone.returning(kept.id).cte("gone")
    log = _forgetting(tables, removed)
    return select(func.count()).select_from(removed).add_cte(log)
