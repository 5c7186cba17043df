"""``sqla-jobs run``: load the application's runner, set it up and run it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

import click
from sqlalchemy.exc import DBAPIError

from sqla_jobs.cli.errors import RuntimeFailure
from sqla_jobs.cli.logs import set_up_logging
from sqla_jobs.cli.target import load_runner
from sqla_jobs.errors import JobDefinitionError, JobValueError, SqlaJobsError


def run_target(
    target: str, options: Mapping[str, Any], *, burst: bool, log_level: str | None
) -> int:
    """
    Run the runner that *target* names; return the exit status, 0 or 1.

    Args:
        target: ``module:runner`` or ``module:factory``.
        options: Keywords of `RunnerBase.configure`.
        burst: Whether to stop when nothing is left to run now.
        log_level: The least that is logged; None is the application's, or info.

    Raises:
        click.ClickException: With the exit status of whatever went wrong.
    """
    runner = load_runner(target)
    # After the import: logging that the application set up stays.
    set_up_logging(log_level)
    try:
        runner.configure(**options)
    except (JobValueError, JobDefinitionError) as exc:
        raise click.UsageError(str(exc)) from exc
    try:
        _run(runner, burst=burst)
    except (SqlaJobsError, DBAPIError) as exc:
        raise RuntimeFailure(_one_line(exc)) from exc
    return 1 if runner.forced else 0


def _run(runner: Any, *, burst: bool) -> None:
    run = runner.run_until_idle if burst else runner.run
    if inspect.iscoroutinefunction(run):
        asyncio.run(run())
    else:
        run()


def _one_line(exc: Exception) -> str:
    # SQLAlchemy's own text has the statement and a link too.
    cause = exc.orig if isinstance(exc, DBAPIError) else exc
    return " ".join(str(cause).split())
