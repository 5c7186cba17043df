"""``sqla-jobs check``: compare the job tables in the database with the code."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sqla_jobs._notify import shown
from sqla_jobs._store.schema import check
from sqla_jobs.cli.errors import RuntimeFailure, TargetError
from sqla_jobs.cli.run import load_target, one_line
from sqla_jobs.errors import SqlaJobsError


def check_target(target: str, folder: Path) -> None:
    """
    Print one line if the database has the tables of the runner that *target* names.

    Raises:
        RuntimeFailure: With the differences if it has not.
        TargetError: If there is no such runner, or its database cannot be reached.
    """
    runner: Any = load_target(target, folder)
    engine, root = runner._engine, runner.tables.root
    where = shown(engine.url)
    try:
        if engine.dialect.is_async:
            asyncio.run(_check_async(engine, root))
        else:
            check(engine, root)
    except SqlaJobsError as exc:
        raise RuntimeFailure(str(exc)) from exc
    except (SQLAlchemyError, OSError) as exc:
        raise TargetError(_cannot(where, exc)) from exc
    kinds = len(runner.tables.kinds)
    click.echo(
        f"{root.__table__.fullname}: as the code says,"
        f" {kinds} kind{'s' * (kinds != 1)}, in {where}"
    )


async def _check_async(sync_engine: Engine, root: type[Any]) -> None:
    from sqlalchemy.ext.asyncio import AsyncEngine

    engine = AsyncEngine(sync_engine)
    async with engine.connect() as connection:
        await connection.run_sync(check, root)
    await engine.dispose()


def _cannot(where: str, exc: Exception) -> str:
    text = one_line(exc)
    if isinstance(exc, DBAPIError | OSError):
        return f"the database {where} cannot be reached: {text}"
    return f"the database {where} cannot be used: {text}"
