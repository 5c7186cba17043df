"""Is an equal job already queued?"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CursorResult,
    Select,
    Text,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.options import problem_of
from sqla_jobs._core.states import FINAL
from sqla_jobs._dialects import JobDialect, bind, dialect_of
from sqla_jobs._store.base import built_once, connection_of, execute, literal_states
from sqla_jobs._store.claim import kinds_of
from sqla_jobs._store.enqueue import check_session, flush_before
from sqla_jobs._store.unique import key_of
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobMixin, JobTables, job_tables
from sqla_jobs.models.arg import dump_payload
from sqla_jobs.models.columns import COLUMN_NAMES
from sqla_jobs.models.unique import value_of


def find_queued(
    session: Session,
    job: Any,
    *,
    unique_key: str | None = None,
    fingerprint: str | None = None,
) -> int | None:
    """
    Return the id of the oldest live job that is like *job*, None if there is none.

    Another sender may enqueue an equal one a moment later: only a unique key prevents
    that. By a key or fingerprint it is one look into an index. Without both, jobs are
    equal that have the same kind, arguments and columns of the application; this reads
    all live jobs of the table.

    Args:
        session: With an AsyncSession: ``await session.run_sync(find_queued, ...)``.
        job: A job that is not enqueued, or a job class together with a key; the jobs
            of that class are looked at, of the root class all.
        unique_key: Default that of *job*, if it has one.
        fingerprint: Looked for if there is no unique key; default that of *job*.

    Raises:
        JobValueError: If there is nothing to look for.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "find_queued")
    tables = job_tables(job)
    for name, value in (("unique_key", unique_key), ("fingerprint", fingerprint)):
        if value is not None and (problem := problem_of(name, value)):
            raise JobValueError(f"find_queued({name}={value!r}) {problem}")
    if isinstance(job, JobMixin) and unique_key is None and fingerprint is None:
        unique_key, fingerprint = key_of(job), vars(job).get("fingerprint")
    if isinstance(job, type) or job not in session:
        flush_before(session)
    if unique_key is not None or fingerprint is not None:
        tag = {"fingerprint": fingerprint, "unique_key": unique_key}
        return _find_tagged(session, job if isinstance(job, type) else type(job), tag)
    if isinstance(job, type):
        raise JobValueError(
            f"find_queued({job.__name__}) needs unique_key= or fingerprint=, or a job"
        )
    query = _like(session, tables, job)
    return _one(execute(session, tables, lambda *_: query, {}))


def _find_tagged(
    session: Session, cls: type[Any], tag: dict[str, str | None]
) -> int | None:
    tables = job_tables(cls)
    kinds = None if cls is tables.root else kinds_of(tables, cls)
    build = _by_fingerprint if tag["unique_key"] is None else _by_key
    return _one(execute(session, tables, build, {**tag, "kinds": kinds}))


def _one(rows: CursorResult[*tuple[Any, ...]]) -> int | None:
    found: int | None = rows.scalar()
    return found


def _live(tables: JobTables, *where: ColumnElement[bool]) -> Select[tuple[int]]:
    job = tables.table.c
    live = job.state.not_in(literal_states(FINAL))
    return select(job.id).where(live, *where).order_by(job.id).limit(1)


def _of_kinds(tables: JobTables) -> ColumnElement[bool]:
    kinds = bind("kinds", ARRAY(Text()))
    return or_(kinds.is_(None), tables.table.c.kind == func.any(kinds))


@built_once
def _by_key(tables: JobTables, _dialect: JobDialect) -> Select[tuple[int]]:
    key = tables.table.c.unique_key
    return _live(tables, key == bind("unique_key", Text()), _of_kinds(tables))


@built_once
def _by_fingerprint(tables: JobTables, _dialect: JobDialect) -> Select[tuple[int]]:
    tag = tables.table.c.fingerprint
    return _live(tables, tag == bind("fingerprint", Text()), _of_kinds(tables))


def _like(session: Session, tables: JobTables, job: JobMixin) -> Select[tuple[int]]:
    """Return the query for live jobs with the same kind, payload and own columns."""
    cls, row, column = type(job), vars(job), tables.table.c
    mapper = cls.__mapper__  # type: ignore[attr-defined]
    path = f"{cls.__name__}.payload"
    text = literal(dump_payload(cls, row["payload"], path), Text())
    data = row.get("payload_bytes")
    same = [
        column.kind == cls.__job_options__.kind,
        column.payload == dialect_of(connection_of(session, tables)).json(text),
        column.payload_bytes.is_not_distinct_from(data),
    ]
    for attribute in mapper.column_attrs:
        if attribute.key not in COLUMN_NAMES:
            value = value_of(cls, row, attribute.key)
            same.append(attribute.columns[0].is_not_distinct_from(value))
    return _live(tables, *same).select_from(mapper.selectable)
