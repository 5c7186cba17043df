"""``sqla-jobs run``: load the application's runner, set it up and run it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
from sqlalchemy.exc import DBAPIError

from sqla_jobs._core.subscriptions import label
from sqla_jobs._notify import shown
from sqla_jobs.cli.child import Child, signals_of_supervisor
from sqla_jobs.cli.errors import RuntimeFailure, TargetError
from sqla_jobs.cli.logs import set_up_logging
from sqla_jobs.cli.settings import bad_value, origin
from sqla_jobs.cli.target import load_runner
from sqla_jobs.errors import (
    JobDefinitionError,
    JobValueError,
    SchemaMismatch,
    SqlaJobsError,
)

# The runner's own options, as `RunnerBase.configure` names them.
OPTIONS = (
    *("queues", "kinds", "concurrency", "threads", "grace"),
    *("name", "lease", "poll", "listen", "listen_url", "retry_share"),
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What ``run`` was asked for, wherever it said so; None keeps the runner's own."""

    target: str
    folder: Path
    options: Mapping[str, Any]
    burst: bool
    fail_on_error: bool
    processes: int
    reload: bool
    log_level: str | None
    log_format: str | None


def run_target(settings: RunSettings, child: Child | None = None) -> None:
    """
    Run the runner of the settings; after a forced stop, end the process.

    Raises:
        click.ClickException: With the exit status of whatever went wrong.
    """
    runner = prepared_runner(settings, child)
    if child is not None:
        child.ready(runner.options.grace.total_seconds())
    try:
        if inspect.iscoroutinefunction(runner.run):
            asyncio.run(_run_async(runner, settings, child))
        else:
            _run(runner, settings, child)
    except (SqlaJobsError, DBAPIError) as exc:
        raise RuntimeFailure(one_line(exc)) from exc
    if settings.fail_on_error and settings.burst and runner.failures:
        raise RuntimeFailure(f"{runner.failures} attempts failed")


def prepared_runner(settings: RunSettings, child: Child | None = None) -> Any:
    """
    Return the runner, with the options of the settings; logging is set up.

    Raises:
        click.ClickException: If there is none, or it refuses an option.
    """
    runner: Any = load_target(settings.target, settings.folder)
    # After the import: logging that the application set up stays.
    set_up_logging(settings.log_level, settings.log_format)
    for name, value in settings.options.items():
        try:
            runner.configure(**{name: value})
        except (JobValueError, JobDefinitionError) as exc:
            ctx = click.get_current_context()
            raise bad_value(ctx, name, str(exc)) from exc
    if child is not None:
        runner.configure(name=child.name(runner.name))
    return runner


def load_target(target: str, folder: Path) -> Any:
    """
    Return the runner that *target* names, found in *folder* or installed.

    Raises:
        click.ClickException: If there is none; says who named it.
    """
    try:
        return load_runner(target, folder)
    except TargetError as exc:
        where = origin(click.get_current_context(), "target")
        if where is not None:
            message = f"{exc.message} (it comes from {where})"
            raise TargetError(message, exc.detail) from exc
        raise


def describe_run(settings: RunSettings) -> None:
    """Print what would run."""
    runner = prepared_runner(settings)
    options, slots = runner.options, runner.options.slots
    queues = [label(name) for name in slots.names or ["all"]]
    if slots.queues:
        queues = [f"{label(name)}:{count}" for name, count in slots.queues.items()]
    least = f"{slots.least}," if slots.least != slots.most else ""
    lines = {
        "runner": f"{type(runner).__name__} {runner.name}",
        "database": shown(runner._engine.url),
        "tables": runner.tables.root.__table__.fullname,
        "kinds": ", ".join(sorted(runner.handlers)) or "none",
        "queues": ", ".join(queues),
        "concurrency": f"{least}{slots.most}",
        "threads": options.threads or "one for each job",
        "processes": settings.processes,
        "grace": _seconds(options.grace),
        "lease": _seconds(options.lease),
        "poll": _seconds(options.poll),
        "listen": _listening(runner),
    }
    for name, value in lines.items():
        click.echo(f"{name + ':':13}{value}")


def one_line(exc: Exception) -> str:
    """Return the message of an error; that of a schema has a line per difference."""
    if isinstance(exc, SchemaMismatch):
        return str(exc)
    # SQLAlchemy's own text has the statement and a link too.
    text = str(exc.orig) if isinstance(exc, DBAPIError) else str(exc)
    return " ".join(text.split())


def _run(runner: Any, settings: RunSettings, child: Child | None) -> None:
    run = runner.run_until_idle if settings.burst else runner.run
    with _signals(runner, child, in_loop=False):
        run()
    if runner.forced:
        _leave()


async def _run_async(runner: Any, settings: RunSettings, child: Child | None) -> None:
    run = runner.run_until_idle if settings.burst else runner.run
    with _signals(runner, child, in_loop=True):
        await run()
    if runner.forced:
        _leave()


def _signals(runner: Any, child: Child | None, *, in_loop: bool) -> Any:
    if child is None:
        return nullcontext()
    return signals_of_supervisor(runner, in_loop=in_loop)


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


def _listening(runner: Any) -> str:
    if not runner.tables.notify:
        return "no, since the tables have notify=False"
    if not runner.options.listen:
        return "no"
    url = runner.options.listen_url
    return "yes" if url is None else f"yes, at {shown(url)}"


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
