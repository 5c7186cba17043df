"""``sqla-jobs list``, ``show``, ``explain`` and ``enqueue``: jobs one by one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click
from sqlalchemy.orm import Session

from sqla_jobs._core.explanation import Explanation, Why
from sqla_jobs._store.dead import history
from sqla_jobs._store.enqueue_kind import make_job
from sqla_jobs._store.explain import explain
from sqla_jobs._store.listing import (
    Filter,
    list_jobs,
    read_job,
)
from sqla_jobs.cli.database import Database, on_database
from sqla_jobs.cli.errors import RuntimeFailure
from sqla_jobs.cli.filters import JOB_ID, job_filter, limited, read_time
from sqla_jobs.cli.output import (
    as_json,
    print_facts,
    print_json,
    print_table,
    printable,
)
from sqla_jobs.models.arg import masked

SECRETS = ("payload", "payload_bytes", "checkpoint", "result", "meta")
"""Columns whose values are shown on request only."""


def print_jobs(rows: Sequence[Mapping[str, Any]], *, json_wanted: bool) -> None:
    """Print a list of jobs, as objects with the keys of `SUMMARY` or as a table."""
    if json_wanted:
        print_json([dict(row) for row in rows])
        return
    columns = ("id", "kind", "queue", "state", "run_at", "attempt", "what")
    print_table(columns, map(_line, rows), empty="no jobs")


def _line(row: Mapping[str, Any]) -> Sequence[Any]:
    queue = f"{row['queue']}/{row['channel']}" if row["channel"] else row["queue"]
    told = row["reason"] or row["last_error"] or ""
    first = told.strip().partition("\n")[0]
    attempts = f"{row['attempt']}/{row['max_attempts']}"
    run_at = row["run_at"]
    return row["id"], row["kind"], queue, row["state"], run_at, attempts, first[:80]


@click.command("list")
@job_filter
@limited
@as_json
@on_database
def list_command(
    database: Database,
    *,
    wanted: Filter,
    limit: int,
    before: int | None,
    as_json: bool,
) -> None:
    """
    List jobs, the newest first.

    Payloads are not among what is listed.
    """
    rows = database.run(
        lambda session: list_jobs(
            session, database.tables, wanted, limit=limit, before_id=before
        )
    )
    print_jobs(rows, json_wanted=as_json)


@click.command("show")
@click.argument("job_id", metavar="ID", type=JOB_ID)
@click.option(
    "--payload",
    is_flag=True,
    help="Show values of payload, checkpoint, result and meta too, not only their"
    " keys: they may hold secrets. Arguments declared secret stay hidden.",
)
@as_json
@on_database
def show(database: Database, *, job_id: int, payload: bool, as_json: bool) -> None:
    """
    Show one job and its attempts.

    \b
    Exit status:
      0  it was shown
      1  there is no such job
    """  # noqa: D301 - click reads the control character
    found = database.run(
        lambda session: (
            read_job(session, database.tables, job_id),
            history(session, database.root, job_id),
        )
    )
    row, attempts = found
    if row is None:
        raise no_such(job_id)
    job_class = database.tables.kinds.get(row["kind"])
    shown = {**row, "payload": masked(job_class, row["payload"])}
    job = shown if payload else _without_secrets(row)
    if as_json:
        names = database.tables.attempts.c.keys()
        tried = [{name: getattr(one, name) for name in names} for one in attempts]
        print_json({**job, "attempts": tried})
        return
    print_facts(job)
    if attempts:
        click.echo()
        _print_attempts(attempts)


def _without_secrets(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job with the keys of its payload, and the names of what is hidden."""
    given = [name for name in SECRETS if row[name] not in (None, {})]
    return {
        **{name: value for name, value in row.items() if name not in SECRETS},
        "payload_keys": sorted(row["payload"] or ()),
        "hidden": given,
    }


def _print_attempts(attempts: Sequence[Any]) -> None:
    columns = ("attempt", "started_at", "finished_at", "outcome", "error")
    rows = [
        (one.number, one.started_at, one.finished_at, one.outcome, one.error)
        for one in attempts
    ]
    print_table(columns, rows, empty="")
    if text := attempts[-1].traceback:
        click.echo(f"\n{printable(text.rstrip(), keep=chr(10))}")


def no_such(job_id: int) -> RuntimeFailure:
    """Return the error of an id that no row has."""
    return RuntimeFailure(
        f"there is no job {job_id}; `sqla-jobs list` shows those there are"
    )


@click.command("explain")
@click.argument("job_id", metavar="ID", type=JOB_ID)
@as_json
@on_database
def explain_command(database: Database, *, job_id: int, as_json: bool) -> None:
    """
    Tell why a job is not running, or who runs it.

    \b
    Exit status:
      0  it was explained
      1  there is no such job
    """  # noqa: D301 - click reads the control character
    found = database.run(lambda session: explain(session, database.root, job_id))
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(printable(str(found), keep="\n"))
    _exit(found)


def _exit(found: Explanation) -> None:
    if found.code is Why.UNKNOWN:
        click.get_current_context().exit(1)


@click.command("enqueue")
@click.argument("kind")
@click.option(
    "--json",
    "payload",
    metavar="TEXT",
    default="{}",
    help="The job's arguments, a JSON object; - reads it from standard input.",
)
@click.option(
    "-q", "--queue", metavar="NAME", help="The queue.  [default: the class's]"
)
@click.option("--channel", metavar="TEXT", help="The key for ordering and fairness.")
@click.option("--priority", type=int, metavar="N", help="Higher runs first.")
@click.option(
    "--run-at", type=read_time, metavar="TIME", help="Not before this time, ISO 8601."
)
@click.option(
    "--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Not before then."
)
@click.option(
    "--max-attempts", type=int, metavar="N", help="Executions in total, 1 or more."
)
@click.option(
    "--unique-key", metavar="TEXT", help="Not while a live job has the same key."
)
@click.option("--fingerprint", metavar="TEXT", help="To find and cancel it by.")
@click.option("--ordered", is_flag=True, help="One at a time in its channel, in order.")
@click.option("--tag", "tags", multiple=True, metavar="TEXT", help="Repeat it.")
@on_database
def enqueue(
    database: Database, *, kind: str, payload: str, delay: float | None, **given: Any
) -> None:
    """
    Enqueue a job of KIND and print its id.

    The job is made by the constructor of its class, which checks the arguments. KIND
    "raw" takes any object, for workers of your own.

    The id is all that is printed, for programs too; --json is the job's arguments.
    """
    options = {
        **given,
        "tags": list(given["tags"]) or None,
        "ordered": given["ordered"] or None,
        "delay": None if delay is None else _seconds(delay),
    }

    arguments = _object(payload)  # here: standard input is read once

    def work(session: Session) -> int:
        job = make_job(database.root, kind, arguments, **options)
        session.add(job)
        session.flush()
        return int(job.id)

    click.echo(str(database.run(work)))


def _seconds(number: float) -> timedelta:
    try:
        return timedelta(seconds=number)
    except (OverflowError, ValueError):
        raise click.UsageError(f"--delay: {number:g} s is too long") from None


def _object(text: str) -> dict[str, Any]:
    if text == "-":
        text = sys.stdin.read()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise click.UsageError(f"--json: not JSON: {exc}") from None
    if isinstance(found, dict):
        return found
    raise click.UsageError(
        "--json: must be an object, as in '{\"name\": 1}', got a"
        f" {type(found).__name__}"
    )
