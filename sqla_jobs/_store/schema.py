"""Checks that the database has the job tables as the code declares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine

from sqla_jobs._dialects import dialect_of
from sqla_jobs._store.base import missing_message
from sqla_jobs._store.differences import NO_TABLE, find_differences
from sqla_jobs.errors import (
    Difference,
    JobValueError,
    MissingTables,
    SchemaMismatch,
)
from sqla_jobs.models import JobTables, job_tables, known_roots

BEHIND = """\
the database is behind the code; run: alembic upgrade head
(if there is no such revision yet: alembic revision --autogenerate)"""
AHEAD = """\
the database is ahead of the code; deploy the newer code, or: alembic downgrade -1"""


def check(bind: Engine | Connection, *roots: type[Any]) -> None:
    """
    Check that the database has the job tables as the code declares them.

    Compares tables, columns with their types and nullability, indexes, foreign keys
    and storage parameters. With asyncio: ``await connection.run_sync(check, Job)``.

    Args:
        bind: An Engine or a Connection; its ``schema_translate_map`` counts.
        roots: Classes that make job tables; default every one made in this process.

    Raises:
        MissingTables: If tables are missing; a `SchemaMismatch` too.
        SchemaMismatch: If something else differs; it names each difference, and the
            command to run.
        JobValueError: If *bind* is something else, or there is no root class.
        UnsupportedDialect: If the database is not supported.
    """
    given = roots or known_roots()
    if not given:
        raise JobValueError(
            "there is no job table to check; import the module with the class made"
            " with JobMixin, or give the class, as in check(engine, Job)"
        )
    _raise_for(_compared(bind, [job_tables(root) for root in given]))


def check_runnable(
    bind: Engine | Connection, tables: JobTables
) -> tuple[Difference, ...]:
    """
    Check that runners can work; return the differences that do not hinder them.

    Raises:
        MissingTables: If tables are missing.
        SchemaMismatch: If something else differs that runners need.
        UnsupportedDialect: If the database is not supported.
    """
    found = _compared(bind, [tables])
    if any(one.blocking for one in found):
        _raise_for(found)
    return found


def _compared(
    bind: Engine | Connection, roots: Sequence[JobTables]
) -> tuple[Difference, ...]:
    if isinstance(bind, Engine):
        dialect_of(bind)
        with bind.connect() as connection:
            return _compared(connection, roots)
    if not isinstance(bind, Connection):
        raise JobValueError(_no_bind(bind))
    return find_differences(bind, roots, dialect_of(bind))


def _no_bind(bind: object) -> str:
    # Told by its method: without greenlet the async classes cannot be imported.
    if hasattr(bind, "run_sync") or hasattr(bind, "sync_engine"):
        return (
            f"check needs an Engine or a Connection, got {bind!r}; with asyncio write:"
            " async with engine.connect() as connection:"
            " await connection.run_sync(check, Job)"
        )
    return f"check needs an Engine or a Connection, got {bind!r}"


def _raise_for(found: Sequence[Difference]) -> None:
    if not found:
        return
    missing = [one for one in found if one.text == NO_TABLE]
    behind = [one for one in found if not one.ahead and one not in missing]
    ahead = [one for one in found if one.ahead]
    parts = [missing_message([one.table for one in missing])] if missing else []
    parts += _listed(BEHIND, behind) + _listed(AHEAD, ahead)
    error = MissingTables if missing else SchemaMismatch
    raise error("\n".join(parts), tuple(found))


def _listed(heading: str, found: Sequence[Difference]) -> list[str]:
    return [heading, *(f"  {one}" for one in found)] if found else []
