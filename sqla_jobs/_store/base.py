"""What every store function needs: the connection, the tables and cached statements."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Executable,
    FromClause,
    Text,
    case,
    func,
    literal_column,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs._core.states import SETTLE_RULES, JobState
from sqla_jobs._dialects import JobDialect, dialect_of
from sqla_jobs._dialects.base import BIND_PREFIX
from sqla_jobs.errors import MissingTables
from sqla_jobs.models import JobTables

_Build = TypeVar("_Build", bound=Callable[..., Any])


Where = Session | Connection
"""What statements run on; a Connection where a session is about to commit."""


def connection_of(session: Where, tables: JobTables) -> Connection:
    """Return the session's connection for the job tables, without a flush."""
    if isinstance(session, Connection):
        return session
    return session.connection(bind_arguments={"mapper": tables.root.__mapper__})


def execute(
    session: Where,
    tables: JobTables,
    build: Callable[[JobTables, JobDialect], Executable],
    params: Mapping[str, Any],
) -> CursorResult[*tuple[Any, ...]]:
    """
    Execute the statement that *build* makes; it is built once per table and dialect.

    Raises:
        UnsupportedDialect: If the database is not supported.
        MissingTables: If the job tables are not there.
    """
    connection = connection_of(session, tables)
    statement = build(tables, dialect_of(connection))
    with naming_missing_tables(tables):
        return connection.execute(statement, prefixed(params))


def prefixed(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return *params* under the names that `bind` gives them."""
    return {BIND_PREFIX + name: value for name, value in params.items()}


@contextmanager
def naming_missing_tables(tables: JobTables) -> Iterator[None]:
    """
    Turn the database's error for a missing table into `MissingTables`.

    Raises:
        MissingTables: If it is a table of the job system; else the error stays.
    """
    try:
        yield
    except DBAPIError as exc:
        exc.hide_parameters = True  # whatever the application's engine says
        raise_if_missing(exc, tables)
        raise


def raise_if_missing(exc: DBAPIError, tables: JobTables) -> None:
    """Raise `MissingTables` if *exc* says that a job table is not there."""
    state = JobDialect.sqlstate(exc)
    if state not in {"42P01", "3F000"}:
        return
    # By name: servers quote it, and word the rest of the message, in many ways.
    message = str(exc.orig).partition("\n")[0]
    own = (tables.table, *tables.support)
    missing = [
        table.fullname
        for table in own
        # 3F000 names the schema, which a translation may have given.
        if state == "3F000"
        or re.search(rf"(?<!\w){re.escape(table.name)}(?!\w)", message)
    ]
    if missing:
        raise MissingTables(missing_message(missing)) from exc


def missing_message(names: Sequence[str]) -> str:
    """Return the error text for missing tables."""
    return (
        f"the database has no table {', '.join(names)}; create it with"
        " `alembic revision --autogenerate` and `alembic upgrade head`,"
        " or Base.metadata.create_all(engine)"
    )


def built_once(build: _Build) -> _Build:
    """Cache the statements that *build* makes, one per table and dialect."""
    return lru_cache(maxsize=256)(build)  # type: ignore[return-value]


def state_rule(
    action: ColumnElement[str] | str, conditions: Mapping[str, ColumnElement[bool]]
) -> ColumnElement[str]:
    """Return `states.SETTLE_RULES` as a CASE over *action* and the named conditions."""
    if isinstance(action, str):
        rules = [rule for rule in SETTLE_RULES if rule[0] == action]
        whens = [(conditions[c], word(s)) for _, c, s in rules if c is not None]
        last = word(rules[-1][2])
        return case(*whens, else_=last) if whens else last
    whens = []
    for name, condition, state in SETTLE_RULES:
        if name == "rescue":
            continue
        test = action == word(name)
        if condition is not None:
            test = test & conditions[condition]
        whens.append((test, word(state)))
    return case(*whens)


def word(text: str) -> ColumnElement[str]:
    """Return one of our own words as SQL: a bound one would match no partial index."""
    return literal_column(f"'{text}'", Text())


def among(column: ColumnElement[int], rows: FromClause) -> ColumnElement[bool]:
    """
    Return whether *column* is one of the ids of *rows*, which is read once.

    Unlike a join it is always looked up in the primary key: a plan made without the
    LIMIT of *rows* would rather read the whole table.
    """
    ids = select(rows.c.id).scalar_subquery()
    return column == func.any(func.array(ids))


def is_running(state: ColumnElement[str]) -> ColumnElement[bool]:
    """
    Return whether *state* is `running`, for rows that are looked up by id.

    Worded so that no plan can start from the index on leases instead: statistics made
    while nothing ran promise that it is empty, and then every lookup reads all of it.
    """
    return state.concat(literal_column("''")) == word(JobState.RUNNING)


def literal_states(states: Iterable[JobState]) -> list[ColumnElement[str]]:
    """Return *states* as SQL, in a stable order."""
    return [word(state) for state in sorted(states)]
