"""``sqla-jobs bench``: measures in a schema of its own, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, inspect, make_url, text
from sqlalchemy.exc import OperationalError

from sqla_jobs import AsyncRunner, Runner
from sqla_jobs.cli import bench
from sqla_jobs.cli.commands import command
from sqla_jobs.cli.errors import RuntimeFailure
from sqla_jobs.runner.base import RunnerBase
from sqla_jobs.testing._benchmark import Loops
from sqla_jobs.testing._rounds import WORKLOADS, Measured, Report
from tests.integration.cli.kit import Command, Running, posix
from tests.integration.cli.test_documents import options, rows, written

SCHEMA = "sqla_jobs_bench"
SMALL = ("--jobs", "100", "--rounds", "1", "--yes")
NAME = 'own "one"'
KEYS = ["add", "enqueue_many", "drain_async", "drain", "drain_writing"]


@pytest.fixture
def try_out(dsn: str) -> Callable[..., Result]:
    """Return a function that runs the command in this process, up to an error."""
    return lambda *args, given=dsn: CliRunner().invoke(
        command, ["bench", "--dsn", given, *args]
    )


def has_schema(engine: Engine, name: str = SCHEMA) -> bool:
    """Return whether the database has the schema."""
    return name in inspect(engine).get_schema_names()


@pytest.mark.slow
def test_measures_each_loop_and_removes_its_schema(
    sqla_jobs: Command, app: ModuleType, engine: Engine, dsn: str
) -> None:
    """Rates, ratios and counts of all loops; the application's jobs stay."""
    with app.Session() as session:
        session.add(app.Greet())
        session.commit()

    done = sqla_jobs("bench", "--dsn", dsn, *SMALL, "--schema", NAME, "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["workload"] for one in found["workloads"]] == KEYS
    for one in found["workloads"]:
        assert len(one["per_second"]) == len(one["plain_per_second"]) == 1
        assert one["ratio"] > 0
        assert one["wal_bytes"] > 50
    per_job = {one["workload"]: one["statements"] for one in found["workloads"]}
    assert 1 <= per_job["add"] < 2.5  # the row, and a wake-up where time has passed
    assert per_job["enqueue_many"] < 0.1
    assert per_job["drain_writing"] >= 2
    assert found["server"]["fsync"] in ("on", "off")
    assert 0 < found["pick_up_ms"]["p50"] <= found["pick_up_ms"]["p99"]
    assert "stay untouched" not in done.stderr
    assert "makes the schema 'own \"one\"'" in done.stderr
    assert not has_schema(engine, NAME)
    with app.Session() as session:
        assert [job.state for job in session.query(app.Job)] == ["available"]


def test_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A line per loop, with medians, beside what they are compared with."""
    facts = dict.fromkeys(bench.SETTINGS, "on") | {"version": "18", "round_trip": 1e-3}
    measured = [
        Measured(one, [400.0, 100.0, 200.0], [200.0, 100.0, 200.0], [600.0, 500.0])
        for one in WORKLOADS
    ]
    measured[0].wal.clear()  # where the role may not see it

    bench._print(facts, Report(measured, [n / 1_000 for n in range(1, 101)]))

    said = capsys.readouterr().out
    lines = said.split("\nsqla_jobs ")[1].split("\n\n")[0].splitlines()[1:]
    assert [" ".join(line.split()) for line in lines[:2]] == [
        "add + commit 200 200 1.00 1.00-2.00 0.000 0.000 -",
        "enqueue_many 200 200 1.00 1.00-2.00 0.000 0.000 500",
    ]
    assert len(lines) == len(KEYS)
    assert "synchronous_commit: on" in said
    assert "round trip:         1.00 ms" in said
    assert "51.0 ms for half of the jobs, at most 100.0 ms for 99 %" in said
    assert max(map(len, said.splitlines())) <= 80


def test_dry_run_writes_nothing(try_out: Callable[..., Result], engine: Engine) -> None:
    """It says what would be done, and does none of it."""
    done = try_out("--dry-run", "--jobs", "100000", "--rounds", "7")

    assert done.exit_code == 0, done.output
    assert "rows in it" in done.output
    assert "in 8 rounds" in done.output
    assert "CREATE" not in done.output
    assert not has_schema(engine)


def test_without_greenlet_the_rest_is_measured(
    try_out: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what is missing."""
    monkeypatch.setattr(bench, "find_spec", lambda _: None)

    done = try_out("--dry-run", "--jobs", "1000", "--rounds", "1")

    assert done.exit_code == 0
    assert "about 9,650 rows" in done.output
    assert 'Without asyncio: pip install "sqla-jobs[asyncio]"' in done.output


def test_asks_before_it_writes(try_out: Callable[..., Result], engine: Engine) -> None:
    """Without an answer nothing is written."""
    done = try_out()

    assert done.exit_code == 1
    assert "go on? [y/N]" in done.output
    assert not has_schema(engine)


def test_keeps_away_from_a_schema_that_exists(
    try_out: Callable[..., Result], engine: Engine
) -> None:
    """It is not the command's, so it is refused, and stays."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA theirs"))
    try:
        done = try_out("--schema", "theirs", "--yes")

        assert done.exit_code == 1
        assert "the schema 'theirs' exists in" in done.output
        assert 'DROP SCHEMA "theirs" CASCADE' in done.output
        assert has_schema(engine, "theirs")
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA theirs"))


def test_says_which_privilege_is_missing(
    try_out: Callable[..., Result], engine: Engine, dsn: str
) -> None:
    """A role that may not create a schema is told what the owner has to run."""
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE bench_reader LOGIN PASSWORD 'secret'"))
    try:
        url = make_url(dsn).set(username="bench_reader", password="secret")
        done = try_out(given=url.render_as_string(hide_password=False))

        assert done.exit_code == 1
        assert f'GRANT CREATE ON DATABASE "{url.database}" TO' in done.output
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP ROLE bench_reader"))


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_removes_the_schema(
    start: Callable[..., Running], engine: Engine, dsn: str, number: signal.Signals
) -> None:
    """Ctrl-C, or a SIGTERM, in the middle of a loop leaves nothing behind."""
    running = start("bench", "--dsn", dsn, "--yes", group=True)
    running.wait_for("Nothing else")
    while "jobs" not in inspect(engine).get_table_names(SCHEMA):
        assert running.process.poll() is None

    running.process.send_signal(number)

    assert running.end() == 1
    assert "Aborted!" in running.output
    assert not has_schema(engine)


def test_signal_that_breaks_what_is_at_work_still_aborts(dsn: str) -> None:
    """In the middle of SQLAlchemy it ends as some other error: it was the signal."""
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(KeyboardInterrupt),
        bench._told(Loops(make_url(dsn), "stopped", slots=2)),
        suppress_and_fail(),
    ):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@contextmanager
def suppress_and_fail() -> Iterator[None]:
    """Let an assertion fail instead of what is raised inside."""
    try:
        yield
    except KeyboardInterrupt:
        raise AssertionError("is active") from None


def test_signal_that_a_runner_took_ends_the_command(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped runner's jobs count for nothing; SIGTERM stays the command's."""

    def stop(runner: RunnerBase) -> None:
        runner._stopping = True

    async def stop_async(runner: RunnerBase) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
        stop(runner)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    monkeypatch.setattr(Runner, "run_until_idle", stop)
    monkeypatch.setattr(AsyncRunner, "run_until_idle", stop_async)
    loops = Loops(make_url(dsn), "stopped", slots=2)
    with bench._deferred():
        before = signal.getsignal(signal.SIGTERM)
        for drain in (loops.drain, loops.drain_async, loops.drain_writing):
            with pytest.raises(KeyboardInterrupt):
                drain(1)
        assert signal.getsignal(signal.SIGTERM) is before


def test_says_how_to_remove_what_it_cannot(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the database gone it tries again, and then tells what to run by hand."""
    monkeypatch.setattr(bench, "TRIES", 2)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    loops = Loops(make_url(dsn), 'it"s', slots=2)
    tries: list[int] = []

    def remove() -> None:
        tries.append(1)
        raise OperationalError("", {}, OSError("connection refused"))

    monkeypatch.setattr(loops, "create", lambda: None)
    monkeypatch.setattr(loops, "remove", remove)

    with pytest.raises(RuntimeFailure) as caught, bench._own_schema(loops):
        raise ZeroDivisionError

    assert "connection refused" in caught.value.message
    assert 'by hand: DROP SCHEMA "it""s" CASCADE' in caught.value.message
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "Could not parse"),
        ("sqlite://", "does not support"),
        ("postgresql+nothing://u:secret@h/d", "nothing"),
    ],
)
def test_refuses_what_is_no_database_of_ours(
    try_out: Callable[..., Result], url: str, says: str
) -> None:
    """The message has the fix, and never the password."""
    done = try_out(given=url)

    assert done.exit_code == 2
    assert says in done.output
    assert "postgresql+psycopg://user@host" in done.output
    assert "secret" not in done.output


def test_database_that_does_not_answer_is_one_line(
    try_out: Callable[..., Result],
) -> None:
    """No traceback, and no password."""
    done = try_out(given="postgresql+psycopg://u:secret@127.0.0.1:1/d")

    assert done.exit_code == 1
    assert done.output.startswith("Error: the database postgresql+psycopg://u:***@")
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize("name", ["", "pg_mine", "x" * 64])
def test_refuses_a_name_that_no_schema_has(
    try_out: Callable[..., Result], name: str
) -> None:
    """PostgreSQL would refuse it, or cut it."""
    done = try_out("--schema", name)

    assert done.exit_code == 2
    assert "is no name for a schema" in done.output


def test_reference_lists_every_option() -> None:
    """The table has the options of the command, all of them and no other."""
    assert [row[0] for row in rows("bench")] == [written(p) for p in options("bench")]
