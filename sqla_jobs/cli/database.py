"""The database of the runner that a command names, sync or async alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sqla_jobs._notify import shown
from sqla_jobs.cli import options
from sqla_jobs.cli.errors import RuntimeFailure
from sqla_jobs.cli.run import load_target, one_line
from sqla_jobs.cli.settings import (
    folder_of,
    missing_target,
    warn_of_unknown_variables,
)
from sqla_jobs.errors import JobValueError, SqlaJobsError
from sqla_jobs.models import JobTables

T = TypeVar("T")
Work = Callable[[Session], T]


class Database:
    """The job tables of a runner, on connections apart from the application's pool."""

    def __init__(self, runner: Any) -> None:
        self.engine = runner._engine
        self.tables: JobTables = runner.tables
        self.root: type[Any] = runner.tables.root

    @property
    def url(self) -> str:
        """Where the database is, without the password."""
        return shown(self.engine.url)

    @property
    def table(self) -> str:
        """The name of the table of jobs."""
        return self.tables.table.fullname

    def run(self, work: Work[T]) -> T:
        """
        Return what *work* returns, after the commit of the session it got.

        Raises:
            click.UsageError: If a value of the command line cannot be used.
            RuntimeFailure: If the database does not answer, or something else fails.
        """
        try:
            if self.engine.dialect.is_async:
                return asyncio.run(self._run_async(work))
            return self._run(work)
        except JobValueError as exc:
            raise click.UsageError(str(exc)) from exc
        except UnicodeEncodeError as exc:  # an argument that is no text
            raise click.UsageError(f"not UTF-8: {exc.object!r}") from exc
        except SqlaJobsError as exc:
            raise RuntimeFailure(str(exc)) from exc
        except (SQLAlchemyError, OSError) as exc:
            raise RuntimeFailure(f"the database {self.url}: {one_line(exc)}") from exc

    def _run(self, work: Work[T]) -> T:
        from sqla_jobs.runner.control import Control

        control = Control(self.engine)
        try:
            return control.run(work)
        finally:
            control.close()

    async def _run_async(self, work: Work[T]) -> T:
        from sqla_jobs.runner.acontrol import AsyncControl

        control = AsyncControl(self.engine)
        try:
            return await control.run(work)
        finally:
            await control.close()


def on_database(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that find the runner; it gets the `Database`."""

    @click.pass_context
    @wraps(function)
    def call(
        ctx: click.Context,
        /,
        *,
        target: str | None,
        app_dir: Path | None,
        **given: Any,
    ) -> Any:
        warn_of_unknown_variables(ctx)
        if target is None:
            raise missing_target(ctx)
        runner = load_target(target, folder_of(ctx, app_dir))
        return function(Database(runner), **given)

    return options.runner(options.app_dir(call))
