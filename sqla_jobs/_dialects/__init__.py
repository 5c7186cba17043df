"""What differs between databases: capability flags and SQL fragments."""

from __future__ import annotations

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from sqla_jobs._dialects.base import JobDialect as JobDialect
from sqla_jobs._dialects.base import bind as bind
from sqla_jobs._dialects.postgresql import PostgreSQLDialect
from sqla_jobs.errors import UnsupportedDialect

_DIALECTS: dict[str, JobDialect] = {d.name: d for d in (PostgreSQLDialect(),)}


def dialect_of(bind: Engine | Connection | Session) -> JobDialect:
    """
    Return the job dialect of *bind*.

    Raises:
        UnsupportedDialect: If the database is not supported.
    """
    if isinstance(bind, Session):
        bind = bind.get_bind()
    name = bind.dialect.name
    found = _DIALECTS.get(name)
    if found is None:
        raise UnsupportedDialect(
            f"sqla_jobs does not support {name!r} ({bind.engine.url!r});"
            f" supported: {', '.join(sorted(_DIALECTS))}"
        )
    return found
