"""``sqla-jobs bench``: jobs per second beside plain loops, on a given database."""

from __future__ import annotations

import logging
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from queue import Empty
from typing import Any

import click
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sqla_jobs._dialects import dialect_of
from sqla_jobs._notify import shown
from sqla_jobs.cli.errors import RuntimeFailure, TargetError
from sqla_jobs.cli.output import print_facts, print_json, print_table
from sqla_jobs.cli.run import one_line
from sqla_jobs.errors import SqlaJobsError
from sqla_jobs.testing._benchmark import Loops
from sqla_jobs.testing._rounds import (
    BYTES_PER_ROW,
    WORKLOADS,
    Measured,
    Report,
    Workload,
    run_rounds,
    seconds,
    steps,
    written,
)

EXAMPLE = "postgresql+psycopg://user@host:5432/database"
SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
COLUMNS = ("sqla_jobs", "per s", "plain", "ratio", "rounds", "stmts", "txs", "WAL B")
TRIES = 5  # to remove the schema, a second apart


@dataclass(frozen=True)
class BenchSettings:
    """What ``bench`` was asked for."""

    dsn: str
    jobs: int
    rounds: int
    concurrency: int
    schema: str
    dry_run: bool
    yes: bool
    as_json: bool

    def workloads(self) -> list[Workload]:
        """Return what can be measured here."""
        has_async = find_spec("greenlet") is not None
        return [one for one in WORKLOADS if has_async or one.key != "drain_async"]


def run_bench(settings: BenchSettings) -> None:
    """
    Measure and print, in a schema that is removed whatever happens.

    Raises:
        click.ClickException: If the database cannot be used, or fails.
    """
    loops = made_loops(settings)
    with _told(loops):
        facts = loops.facts()
        _refuse(loops, facts)
    _announce(settings, loops, facts)
    if settings.dry_run:
        return
    if not settings.yes:
        click.confirm("go on?", abort=True, err=True)
    report = _measure(settings, loops)
    if settings.as_json:
        print_json(_as_object(settings, facts, report))
    else:
        _print(facts, report)


def _measure(settings: BenchSettings, loops: Loops) -> Report:
    news = logging.getLogger("sqla_jobs")
    news.addFilter(_is_news)
    try:
        with _told(loops), _own_schema(loops), _progress(settings) as advance:
            return run_rounds(
                loops,
                settings.workloads(),
                jobs=settings.jobs,
                rounds=settings.rounds,
                advance=advance,
            )
    finally:
        news.removeFilter(_is_news)


def made_loops(settings: BenchSettings) -> Loops:
    """
    Return the loops on the database; connects to nothing.

    Raises:
        TargetError: If the URL is none, or not that of a database to be used.
        click.UsageError: If the schema cannot have that name.
    """
    schema = settings.schema
    if not 0 < len(schema.encode()) <= 63 or schema.startswith("pg_"):
        raise click.UsageError(
            f"--schema: {schema!r} is no name for a schema; it has 1 to 63 bytes and"
            " does not begin with pg_"
        )
    try:
        url = make_url(settings.dsn)
        loops = Loops(url, schema, slots=settings.concurrency)
        dialect_of(loops.engine)
    except (ArgumentError, SqlaJobsError, ImportError) as exc:
        hidden = re.sub(r"://.*@|password=[^&\s]+", "...", settings.dsn)
        text = re.sub(r"\(.*\)", "", str(exc)).replace(settings.dsn, hidden)
        raise TargetError(f"--dsn {hidden!r}: {text}; write {EXAMPLE}") from None
    return loops


def _refuse(loops: Loops, facts: Mapping[str, Any]) -> None:
    """
    Check that the schema can be made.

    Raises:
        RuntimeFailure: If not; says what to do.
    """
    database, name = facts["database"], loops.schema
    if facts["standby"]:
        raise RuntimeFailure(f"{shown(loops.url)} is a standby; give the primary")
    if facts["taken"]:
        raise RuntimeFailure(
            f"the schema {name!r} exists in {database!r} and stays as it is; choose"
            " another with --schema, or, if an earlier run left it behind, run:"
            f" {_by_hand(loops)}"
        )
    if not facts["may_create"]:
        raise RuntimeFailure(
            f"the role may not create a schema in {database!r}; run, as its owner:"
            f" GRANT CREATE ON DATABASE {_quoted(database)} TO ..."
        )


def _announce(settings: BenchSettings, loops: Loops, facts: Mapping[str, Any]) -> None:
    workloads, jobs, rounds = settings.workloads(), settings.jobs, settings.rounds
    rows = written(workloads, jobs=jobs, rounds=rounds)
    takes = seconds(workloads, jobs=jobs, rounds=rounds, round_trip=facts["round_trip"])
    click.echo(
        f"{shown(loops.url)}: makes the schema {loops.schema!r}, writes and deletes"
        f" about {rows:,} rows in it ({rows * BYTES_PER_ROW / 1e6:,.0f} MB of WAL) in"
        f" {rounds + 1} rounds, takes about {_time(takes)}, and removes the schema.\n"
        "Nothing else in the database is touched, but it is kept busy meanwhile.",
        err=settings.as_json,
    )
    if len(workloads) < len(WORKLOADS):
        click.echo('Without asyncio: pip install "sqla-jobs[asyncio]"', err=True)


def _is_news(record: logging.LogRecord) -> bool:
    # Each runner runs one of the kinds, and says which it leaves to others.
    return "stay untouched" not in record.msg


# The schema


@contextmanager
def _own_schema(loops: Loops) -> Iterator[None]:
    try:
        with _deferred():
            loops.create()
        yield
    finally:
        with _deferred():
            _remove(loops)


def _remove(loops: Loops) -> None:
    for left in reversed(range(TRIES)):
        try:
            loops.remove()
        except (SQLAlchemyError, OSError) as exc:
            if not left:
                raise RuntimeFailure(
                    f"the schema {loops.schema!r} could not be removed:"
                    f" {one_line(exc)}; remove it by hand: {_by_hand(loops)}"
                ) from exc
            time.sleep(1)
        else:
            return


def _by_hand(loops: Loops) -> str:
    return f"DROP SCHEMA {_quoted(loops.schema)} CASCADE"


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


@contextmanager
def _deferred() -> Iterator[None]:
    """Let a signal wait for the end of the block; a second one does not."""
    caught: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt


@contextmanager
def _interrupted() -> Iterator[None]:
    """Abort also where a signal met SQLAlchemy at work, which then failed otherwise."""
    try:
        yield
    except Exception as exc:
        before: BaseException | None = exc
        while before is not None and not isinstance(before, KeyboardInterrupt):
            before = before.__context__
        if before is not None:
            raise KeyboardInterrupt from exc
        raise


@contextmanager
def _told(loops: Loops) -> Iterator[None]:
    """Make one line of what the database says."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        with _interrupted():
            yield
    except Empty:
        raise RuntimeFailure("a job was not picked up in time") from None
    except SqlaJobsError as exc:
        raise RuntimeFailure(str(exc)) from exc
    except (SQLAlchemyError, OSError) as exc:
        where = shown(loops.url)
        raise RuntimeFailure(f"the database {where}: {one_line(exc)}") from exc
    finally:
        signal.signal(signal.SIGTERM, before)
        loops.engine.dispose()


# What is printed


@contextmanager
def _progress(settings: BenchSettings) -> Iterator[Callable[[str], None]]:
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    total = steps(settings.workloads(), settings.rounds)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=total, completed=-1)
        yield lambda name: progress.update(bar, advance=1, description=name)


def _print(facts: Mapping[str, Any], report: Report) -> None:
    click.echo()
    print_facts(_server(facts))
    click.echo()
    print_table(COLUMNS, map(_line, report.measured), empty="")
    click.echo(
        "\nRows or jobs per second: medians, and the median of the rounds' ratios."
        "\nStatements, transactions and WAL are per job. The plain loops:"
    )
    loops = [one.workload for one in report.measured]
    print_facts({f"  {one.ours.name}": one.plain.name for one in loops})
    click.echo(
        f"\nCOMMIT to handler: {report.pick_up_ms(0.5):.1f} ms for half of the"
        f" jobs, at most {report.pick_up_ms(0.99):.1f} ms for 99 %"
    )


def _line(one: Measured) -> tuple[Any, ...]:
    workload = one.workload
    return (
        workload.ours.name,
        f"{statistics.median(one.ours):,.0f}",
        f"{statistics.median(one.plain):,.0f}",
        f"{one.ratio:.2f}",
        f"{min(one.ratios):.2f}-{max(one.ratios):.2f}",
        f"{one.statements:.3f}",
        f"{one.transactions:.3f}",
        None if one.wal_bytes is None else f"{one.wal_bytes:,.0f}",
    )


def _server(facts: Mapping[str, Any]) -> dict[str, Any]:
    found = {"PostgreSQL": facts["version"], **{name: facts[name] for name in SETTINGS}}
    return {**found, "round trip": f"{1_000 * facts['round_trip']:.2f} ms"}


def _as_object(
    settings: BenchSettings, facts: Mapping[str, Any], report: Report
) -> dict[str, Any]:
    server = {name: facts[name] for name in ("database", "version", *SETTINGS)}
    server["round_trip_ms"] = round(1_000 * facts["round_trip"], 3)
    return {
        "server": server,
        "jobs": settings.jobs,
        "rounds": settings.rounds,
        "concurrency": settings.concurrency,
        "workloads": [_object(one, settings.jobs) for one in report.measured],
        "pick_up_ms": {
            "p50": round(report.pick_up_ms(0.5), 3),
            "p99": round(report.pick_up_ms(0.99), 3),
        },
    }


def _object(one: Measured, jobs: int) -> dict[str, Any]:
    return {
        "workload": one.workload.key,
        "rows": one.workload.rows(jobs),
        "per_second": [round(rate, 1) for rate in one.ours],
        "plain_per_second": [round(rate, 1) for rate in one.plain],
        "ratio": round(one.ratio, 3),
        "statements": round(one.statements, 4),
        "transactions": round(one.transactions, 4),
        "wal_bytes": None if one.wal_bytes is None else round(one.wal_bytes),
    }


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
