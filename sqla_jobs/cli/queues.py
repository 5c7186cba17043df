"""``sqla-jobs ping``, ``stats`` and ``queues``: the system as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click
from sqlalchemy.orm import Session

from sqla_jobs._core.limits import ON_DISCARD, SETTINGS, QueueSettings
from sqla_jobs._core.states import JobState
from sqla_jobs._store.counts import AT_MOST, JobCount, counts
from sqla_jobs._store.explain import STALE, read_runners
from sqla_jobs._store.queues import queue_settings, set_queue
from sqla_jobs._store.schema import check
from sqla_jobs._store.times import read_clock
from sqla_jobs.cli.database import Database, on_database
from sqla_jobs.cli.errors import RuntimeFailure
from sqla_jobs.cli.output import as_json, print_json, print_table
from sqla_jobs.errors import JobValueError, SchemaMismatch

ROUNDS = 3  # the shortest of them: a busy moment tells nothing about the way


@click.command("ping")
@as_json
@on_database
def ping(database: Database, *, as_json: bool) -> None:
    """
    Ask whether the database answers and has the job tables.

    \b
    Exit status:
      0  it does, and they are as the code says
      1  it does not answer, or they differ
    """  # noqa: D301 - click reads the control character
    answer: dict[str, Any] = {
        "ok": False,
        "database": database.url,
        "table": database.table,
        "round_trip_ms": None,
        "error": None,
    }
    try:
        spent, problem = database.run(lambda session: _look(session, database))
        answer |= {"ok": not problem, "round_trip_ms": round(spent * 1_000, 3)}
        answer["error"] = problem
    except RuntimeFailure as exc:
        answer["error"] = exc.message
    if as_json:
        print_json(answer)
        click.get_current_context().exit(0 if answer["ok"] else 1)
    if not answer["ok"]:
        raise RuntimeFailure(str(answer["error"]))
    click.echo(
        f"{database.url} answers in {answer['round_trip_ms']:.2f} ms;"
        f" {database.table} is as the code says"
    )


def _look(session: Session, database: Database) -> tuple[float, str | None]:
    """Return the seconds of a round trip, and what is wrong with the tables."""
    try:
        check(session.connection(), database.root)
    except SchemaMismatch as exc:
        return 0.0, str(exc)
    return min(_round_trip(session, database) for _ in range(ROUNDS)), None


def _round_trip(session: Session, database: Database) -> float:
    begun = time.perf_counter()
    read_clock(session, database.tables)
    return time.perf_counter() - begun


@click.command("stats")
@click.option(
    "-q", "--queue", multiple=True, metavar="NAME", help="Of this queue only."
)
@click.option(
    "--at-most",
    type=click.IntRange(1, 1_000_000),
    default=AT_MOST,
    show_default=True,
    metavar="N",
    help="Count no further, in each queue and state.",
)
@as_json
@on_database
def stats(
    database: Database, *, queue: tuple[str, ...], at_most: int, as_json: bool
) -> None:
    """
    Count jobs by queue and state, and list the runners that are alive.

    It reads a bounded part of the indexes: a number with a + is cut.
    """

    def work(session: Session) -> tuple[Sequence[JobCount], Sequence[Any]]:
        found = counts(
            session, database.root, queues=list(queue) or None, at_most=at_most
        )
        return found, _alive(session, database)

    found, runners = database.run(work)
    if as_json:
        print_json(
            {
                "counts": [asdict(one) for one in found],
                "runners": [dict(one._mapping) for one in runners],
            }
        )
        return
    _print_counts(found)
    click.echo()
    columns = ("runner", "host", "pid", "seen_at", "queues", "kinds")
    rows = [
        (one.name, one.host, one.pid, one.seen_at, _queues(one), ", ".join(one.kinds))
        for one in runners
    ]
    print_table(columns, rows, empty="no runner is alive")


def _alive(session: Session, database: Database) -> list[Any]:
    now = read_clock(session, database.tables)
    found = read_runners(session, database.tables)
    return [one for one in found if one.seen_at > now - STALE]


def _queues(runner: Any) -> str:
    return "all" if runner.queues is None else ", ".join(runner.queues)


def _print_counts(found: Sequence[JobCount]) -> None:
    by_queue = _by_queue(found)
    columns = ("queue", *(state.value for state in JobState))
    rows = [
        (queue, *(_number(states.get(state)) for state in JobState))
        for queue, states in by_queue.items()
    ]
    print_table(columns, rows, empty="no jobs")


def _by_queue(found: Sequence[JobCount]) -> dict[str, dict[JobState, JobCount]]:
    by_queue: dict[str, dict[JobState, JobCount]] = {}
    for one in found:
        by_queue.setdefault(one.queue, {})[one.state] = one
    return by_queue


def _number(one: JobCount | None) -> str:
    if one is None:
        return "0"
    return f"{one.count:,}{'+' if one.cut else ''}"


# Settings of queues


def read_most(text: str) -> str:
    """
    Return *text* if it is a whole number of 1 or more, or "none" for no limit.

    Raises:
        click.BadParameter: If it is neither.
    """
    if text != "none" and not (text.isdecimal() and int(text) > 0):
        raise click.BadParameter(f"{text!r} is no whole number of 1 or more, nor none")
    return text


def _most(name: str, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=read_most, metavar="N|none", help=text)


@click.command("queues")
@click.argument(
    "action", type=click.Choice(["list", "pause", "resume", "set"]), default="list"
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_most("--max-running", "With set: most jobs at once, in all runners.")
@_most("--max-running-per-channel", "With set: the same for each channel.")
@_most("--rate-limit", "With set: most jobs begun per --rate-period.")
@click.option(
    "--rate-period",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="With set and --rate-limit.  [default: 1]",
)
@click.option(
    "--fair/--no-fair",
    default=None,
    help="With set: whether channels are served in turn.",
)
@click.option(
    "--on-discard",
    type=click.Choice(ON_DISCARD),
    metavar="skip|block",
    help="With set: whether a dead letter blocks its ordered channel.",
)
@click.option(
    "--new", is_flag=True, help="Take names that no job class and no job has yet."
)
@as_json
@on_database
def queues(
    database: Database,
    *,
    action: str,
    names: tuple[str, ...],
    new: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """
    List queues with their settings; pause or resume some, or set their limits.

    All runners keep to a change as soon as it is made. Jobs that run go on.
    """
    changes = _changes(action, names, given)
    if changes is not None:
        database.run(
            lambda session: _set(session, database, names, changes, must_exist=not new)
        )
    shown, found = database.run(lambda session: _read(session, database, names))
    rows = [_described(one, found) for one in shown]
    if as_json:
        print_json(rows)
    else:
        _print_queues(rows)


def _set(
    session: Session,
    database: Database,
    names: Sequence[str],
    changes: Mapping[str, Any],
    *,
    must_exist: bool,
) -> None:
    try:
        for name in sorted(set(names)):
            set_queue(session, database.root, name, must_exist=must_exist, **changes)
    except JobValueError as exc:
        told = str(exc).replace("must_exist=False", "--new")
        raise click.UsageError(told) from exc


def _changes(
    action: str, names: Sequence[str], given: Mapping[str, Any]
) -> dict[str, Any] | None:
    """
    Return what is to change; None with list.

    Raises:
        click.UsageError: If a name or a setting is missing, or one is too many.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    if settings and action != "set":
        option = "--" + next(iter(settings)).replace("_", "-")
        raise click.UsageError(f"{option} goes with set, not with {action}")
    if action == "list":
        return None
    if not names:
        raise click.UsageError(f"name the queues to {action}")
    if action != "set":
        return {"paused": action == "pause"}
    if not settings:
        raise click.UsageError("give a setting, as in: queues set NAME --max-running 5")
    return {name: _value(name, value) for name, value in settings.items()}


def _value(name: str, value: Any) -> Any:
    if name == "rate_period":
        try:
            return timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise click.UsageError(f"--rate-period: {value:g} s is too long") from None
    if value == "none":
        return None
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _read(
    session: Session, database: Database, names: Sequence[str]
) -> tuple[list[QueueSettings], dict[str, dict[JobState, JobCount]]]:
    """Return the queues that are named, or all, with the counts of their jobs."""
    settings = queue_settings(session, database.root)
    found = _by_queue(counts(session, database.root, queues=list(names) or None))
    wanted = sorted(names or {*settings, *found})
    return [settings.get(name) or QueueSettings(name) for name in wanted], found


def _described(
    one: QueueSettings, found: Mapping[str, Mapping[JobState, JobCount]]
) -> dict[str, Any]:
    own = found.get(one.name, {})
    return {
        **{name: getattr(one, name) for name in SETTINGS},
        "counts": {s.value: own[s].count if s in own else 0 for s in JobState},
        "cut": [state.value for state in JobState if state in own and own[state].cut],
    }


def _print_queues(rows: Sequence[Mapping[str, Any]]) -> None:
    states = (JobState.AVAILABLE, JobState.RUNNING, JobState.DISCARDED)
    columns = ("queue", *(state.value for state in states), "settings")
    lines = [
        (
            row["name"],
            *(_cut(row, state) for state in states),
            ", ".join(_told(row)) or "-",
        )
        for row in rows
    ]
    print_table(columns, lines, empty="no queues")


def _cut(row: Mapping[str, Any], state: JobState) -> str:
    return f"{row['counts'][state]:,}{'+' if state in row['cut'] else ''}"


def _told(row: Mapping[str, Any]) -> list[str]:
    told = ["paused"] if row["paused"] else []
    told += ["fair"] if row["fair"] else []
    if row["max_running"] is not None:
        told.append(f"{row['max_running']} at once")
    if row["max_running_per_channel"] is not None:
        told.append(f"{row['max_running_per_channel']} per channel")
    if row["rate_limit"] is not None:
        seconds = row["rate_period"].total_seconds()
        told.append(f"{row['rate_limit']} per {seconds:g} s")
    if row["backoff"] is not None:
        told.append(f"backoff {row['backoff']}")
    return told + (["blocks on discard"] if row["on_discard"] == "block" else [])
