"""``sqla-jobs retry``, ``cancel`` and ``dead``: change many jobs, after a question."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any

import click
from sqlalchemy.orm import Session

from sqla_jobs._core.states import FINAL, LIVE, JobState
from sqla_jobs._store.listing import Filter, count_jobs, find_ids, list_jobs
from sqla_jobs._store.operate import request_cancel, requeue
from sqla_jobs._store.retention import purge
from sqla_jobs.cli.database import Database, on_database
from sqla_jobs.cli.filters import JOB_ID, final_filter, limited, live_filter
from sqla_jobs.cli.jobs import print_jobs
from sqla_jobs.cli.output import as_json, counted, print_json

BATCH = 1_000  # jobs per transaction
DEAD = frozenset({JobState.DISCARDED})
DONE = frozenset({"requeued", "cancelled", "requested", "deleted"})
Answer = Mapping[str, Sequence[int]]
"""Ids by what happened to them."""
Act = Callable[[Session, list[int]], Answer]
Command = Callable[..., Any]


@dataclass(frozen=True)
class Care:
    """How a command is careful: whether it only counts, or does not ask."""

    dry_run: bool
    yes: bool
    as_json: bool


def careful(function: Command) -> Command:
    """Give a command ``--dry-run``, ``--yes`` and ``--json``; it gets its `Care`."""

    @wraps(function)
    def call(*args: Any, dry_run: bool, yes: bool, as_json: bool, **given: Any) -> Any:
        care = Care(dry_run=dry_run, yes=yes, as_json=as_json)
        return function(*args, care=care, **given)

    made = as_json(call)
    made = click.option("-y", "--yes", is_flag=True, help="Do not ask.")(made)
    return click.option("--dry-run", is_flag=True, help="Only count the jobs.")(made)


# The commands


@click.command("retry")
@click.argument("ids", metavar="[ID]...", type=JOB_ID, nargs=-1)
@click.option("--all", "every", is_flag=True, help="All dead letters, or see --state.")
@final_filter
@click.option(
    "--keep-state", is_flag=True, help="Keep what the last attempt saved as ctx.state."
)
@careful
@on_database
def retry(
    database: Database,
    *,
    ids: tuple[int, ...],
    every: bool,
    wanted: Filter,
    keep_state: bool,
    care: Care,
) -> None:
    """
    Make jobs that have ended available again, with fresh attempts.

    Name the jobs by their ids; or take --all dead letters, or those that the filters
    choose. Id and history stay the same.

    \b
    Exit status:
      0  jobs are available again
      1  none is
    """  # noqa: D301 - click reads the control character

    def act(session: Session, ids: list[int]) -> Answer:
        found = requeue(session, database.root, ids, keep_state=keep_state)
        return {
            "requeued": found.requeued,
            "duplicates": found.duplicates,
            "unchanged": found.unchanged,
        }

    wanted = _chosen(ids, wanted, every=every, default=DEAD, allowed=FINAL)
    _change(database, act, "requeue", wanted=wanted, care=care)


@click.command("cancel")
@click.argument("ids", metavar="[ID]...", type=JOB_ID, nargs=-1)
@click.option("--all", "every", is_flag=True, help="All jobs that have not ended.")
@live_filter
@click.option("--unique-key", metavar="TEXT", help="The live job with this key.")
@click.option("--fingerprint", metavar="TEXT", help="All jobs with this fingerprint.")
@click.option(
    "--reason", default="cancelled on request", metavar="TEXT", help="Kept in the row."
)
@careful
@on_database
def cancel(
    database: Database,
    *,
    ids: tuple[int, ...],
    every: bool,
    wanted: Filter,
    unique_key: str | None,
    fingerprint: str | None,
    reason: str,
    care: Care,
) -> None:
    """
    Cancel jobs: waiting ones at once, running ones are asked to end.

    Name the jobs by their ids, or choose them by filters; --all without a filter means
    every job that has not ended.

    \b
    Exit status:
      0  jobs are cancelled, or asked to end
      1  none is
    """  # noqa: D301 - click reads the control character

    def act(session: Session, ids: list[int]) -> Answer:
        found = request_cancel(session, database.root, ids, reason=reason)
        return {
            "cancelled": found.cancelled,
            "requested": found.requested,
            "unchanged": found.unchanged,
        }

    wanted = replace(wanted, unique_key=unique_key, fingerprint=fingerprint)
    wanted = _chosen(ids, wanted, every=every, default=LIVE, allowed=LIVE)
    _change(database, act, "cancel", wanted=wanted, care=care)


@click.command("dead")
@click.option("--requeue", "verb", flag_value="requeue", help="Run them all again.")
@click.option("--delete", "verb", flag_value="delete", help="Delete them all.")
@click.option(
    "-q", "--queue", multiple=True, metavar="NAME", help="Of this queue only."
)
@click.option("-k", "--kind", multiple=True, metavar="KIND", help="Of this kind only.")
@limited
@careful
@on_database
def dead(
    database: Database,
    *,
    verb: str | None,
    queue: tuple[str, ...],
    kind: tuple[str, ...],
    limit: int,
    before: int | None,
    care: Care,
) -> None:
    """
    List dead letters, the newest first; or requeue or delete all that match.

    A dead letter is a job that was discarded: its attempts were used up, or its handler
    gave it up. --limit and --before are for the list only.

    \b
    Exit status:
      0  done, or listed
      1  with --requeue or --delete: there was nothing to do
    """  # noqa: D301 - click reads the control character
    wanted = Filter(None, list(queue) or None, list(kind) or None, DEAD)
    if verb is None:
        rows = database.run(
            lambda session: list_jobs(
                session, database.tables, wanted, limit=limit, before_id=before
            )
        )
        print_jobs(rows, json_wanted=care.as_json)
        return

    def requeue_them(session: Session, ids: list[int]) -> Answer:
        found = requeue(session, database.root, ids)
        return {"requeued": found.requeued, "duplicates": found.duplicates}

    def delete_them(session: Session, ids: list[int]) -> Answer:
        purge(session, database.root, ids=ids, states=DEAD)
        kept = Filter(ids=ids)
        left = find_ids(session, database.tables, kept, after_id=0, limit=BATCH)
        return {"deleted": [one for one in ids if one not in left]}

    act = requeue_them if verb == "requeue" else delete_them
    _change(database, act, verb, wanted=wanted, care=care)


# How they work


def _chosen(
    ids: Sequence[int],
    wanted: Filter,
    *,
    every: bool,
    default: frozenset[JobState],
    allowed: frozenset[JobState],
) -> Filter:
    """
    Return which jobs the command line names.

    Raises:
        click.UsageError: If it names none, or does so in two ways.
    """
    by_filter = every or wanted != Filter()
    if bool(ids) == by_filter:
        both = ", not both" if ids else "; --all alone means all that are possible"
        raise click.UsageError(f"name jobs by their ids or by filters{both}")
    if ids:
        return Filter(ids=sorted(set(ids)), states=allowed)
    return wanted if wanted.states else replace(wanted, states=default)


def _change(
    database: Database, act: Act, verb: str, *, wanted: Filter, care: Care
) -> None:
    """Do it to the jobs that *wanted* chooses; status 1 if nothing is done."""
    if care.dry_run or wanted.ids is None:
        count = database.run(lambda s: count_jobs(s, database.tables, wanted))
        if care.dry_run or not count:
            _tell_count(count, verb, care)
        if care.dry_run:
            return
        if not count:
            click.get_current_context().exit(1)
        _ask(count, verb, care)
    done: dict[str, list[int]] = {}
    for answer in _batches(database, act, wanted):
        for name, found in answer.items():
            done.setdefault(name, []).extend(found)
    _tell(done, care)


def _batches(database: Database, act: Act, wanted: Filter) -> Iterator[Answer]:
    """Yield the answers; each batch is a transaction of its own."""
    if wanted.ids is not None:
        for start in range(0, len(wanted.ids), BATCH):
            ids = list(wanted.ids[start : start + BATCH])
            yield database.run(partial(_act_on, act, ids))
        return
    last: int | None = 0
    while last is not None:
        last, answer = database.run(partial(_act_after, database, act, wanted, last))
        yield answer


def _act_on(act: Act, ids: list[int], session: Session) -> Answer:
    return act(session, ids)


def _act_after(
    database: Database, act: Act, wanted: Filter, last: int, session: Session
) -> tuple[int | None, Answer]:
    """Do it to the next jobs; return the last of them, None if there are no more."""
    ids = find_ids(session, database.tables, wanted, after_id=last, limit=BATCH)
    answer = act(session, ids)
    return (ids[-1] if len(ids) == BATCH else None), answer


def _ask(count: int, verb: str, care: Care) -> None:
    if not care.yes:
        click.confirm(f"{verb} {counted(count, 'job')}?", abort=True, err=True)


def _tell_count(count: int, verb: str, care: Care) -> None:
    if care.as_json:
        print_json({"count": count})
    elif count:
        click.echo(f"would {verb} {counted(count, 'job')}")
    else:
        click.echo(f"no job to {verb}")


def _tell(done: Mapping[str, Sequence[int]], care: Care) -> None:
    if care.as_json:
        print_json({name: list(ids) for name, ids in done.items()})
    else:
        for name, ids in done.items():
            if ids:
                click.echo(f"{name}: {_some(ids)}")
    if not any(ids for name, ids in done.items() if name in DONE):
        click.get_current_context().exit(1)


def _some(ids: Sequence[int]) -> str:
    few = ", ".join(map(str, ids[:20]))
    if len(ids) <= 20:
        return few
    return f"{len(ids):,} jobs: {few}, ..."
