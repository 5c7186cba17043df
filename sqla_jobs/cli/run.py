"""``sqla-jobs run``: load the application's runner, set it up and run it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

import click
from sqlalchemy.exc import DBAPIError

from sqla_jobs.cli.errors import RuntimeFailure
from sqla_jobs.cli.logs import set_up_logging
from sqla_jobs.cli.target import load_runner
from sqla_jobs.errors import JobDefinitionError, JobValueError, SqlaJobsError


def run_target(
    target: str, options: Mapping[str, Any], *, burst: bool, log_level: str | None
) -> None:
    """
    Run the runner that *target* names; after a forced stop, end the process.

    Args:
        target: ``module:runner`` or ``module:factory``.
        options: Keywords of `RunnerBase.configure`.
        burst: Whether to stop when nothing is left to run now.
        log_level: The least that is logged; None is the application's, or info.

    Raises:
        click.ClickException: With the exit status of whatever went wrong.
    """
    runner: Any = load_runner(target)
    # After the import: logging that the application set up stays.
    set_up_logging(log_level)
    try:
        runner.configure(**options)
    except (JobValueError, JobDefinitionError) as exc:
        ctx = click.get_current_context(silent=True)
        raise click.UsageError(str(exc), ctx) from exc
    try:
        if inspect.iscoroutinefunction(runner.run):
            asyncio.run(_run_async(runner, burst=burst))
        else:
            _run(runner, burst=burst)
    except (SqlaJobsError, DBAPIError) as exc:
        raise RuntimeFailure(_one_line(exc)) from exc


def _run(runner: Any, *, burst: bool) -> None:
    if burst:
        runner.run_until_idle()
    else:
        runner.run()
    if runner.forced:
        _leave()


async def _run_async(runner: Any, *, burst: bool) -> None:
    await (runner.run_until_idle() if burst else runner.run())
    if runner.forced:
        _leave()


def _leave() -> NoReturn:
    """
    End the process with status 1, now.

    Another runner may already run the jobs that were handed back. Python would wait
    for the threads of theirs that are left here, and for their tasks.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def _one_line(exc: Exception) -> str:
    # SQLAlchemy's own text has the statement and a link too.
    text = str(exc.orig) if isinstance(exc, DBAPIError) else str(exc)
    return " ".join(text.split())
