"""Handlers whose transactions keep a snapshot: REPEATABLE READ and SERIALIZABLE."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from sqla_jobs import request_cancel
from sqla_jobs._dialects import dialect_of
from sqla_jobs._store.sweep import rescue
from sqla_jobs.errors import AttemptInterrupted
from tests.runner.harness import (
    LEASE,
    Job,
    Kit,
    Owner,
    Running,
    Task,
    effects,
    ok,
    statements,
    take_over,
    wait_for,
)

STRICT = ("REPEATABLE READ", "SERIALIZABLE")


@pytest.fixture
def strict(kit: Kit) -> Kit:
    """Return the application with an engine of such a level."""
    kit.engine_options |= {"isolation_level": "REPEATABLE READ"}
    return kit


def heart_beats(kit: Kit, running: Running) -> None:
    """Wait until the heartbeat has seen to the leases once more."""
    heart = running.runner._heartbeat
    before = heart.renewals
    kit.until(lambda: heart.renewals > before)


def nobody_can_rescue(kit: Kit) -> bool:
    """Return whether a sweep leaves the job alone, though its lease is long over."""
    late = datetime.now(UTC) + timedelta(days=1)
    with kit.Session.begin() as session:
        return rescue(session, Job, now=late) == []


@pytest.mark.parametrize("level", ["READ COMMITTED", *STRICT])
def test_transaction_longer_than_the_heartbeat_commits(kit: Kit, level: str) -> None:
    """The heartbeat changes no row that the fence will have to write."""
    kit.engine_options |= {"isolation_level": level}
    running, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")
        await ok(ctx.session.flush())
        running.set()
        await wait_for(go, ctx)

    kit.handle(run)
    (job_id,) = kit.add()
    runner = kit.run(lease=LEASE)
    assert running.wait(20)
    heart_beats(kit, runner)
    safe = level == "READ COMMITTED" or nobody_can_rescue(kit)
    go.set()

    row = kit.until_state(job_id, "completed", "retryable", "scheduled")
    assert (row.state, row.attempt, safe) == ("completed", 1, True)
    assert kit.notes() == ["attempt 1"]


def test_checkpoints_begin_new_snapshots(strict: Kit) -> None:
    """Between transactions the heartbeat may renew, and each has its own lock."""
    running: list[Running] = []

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "one")
        await ok(ctx.checkpoint(step=1))
        strict.until(lambda: running)
        heart_beats(strict, running[0])
        effects(ctx.session, job, "two")
        await ok(ctx.checkpoint(step=2))
        effects(ctx.session, job, "three")

    strict.handle(run)
    (job_id,) = strict.add()
    running.append(strict.run(lease=LEASE))

    assert strict.until_state(job_id, "completed").attempt == 1
    assert strict.notes() == ["one", "two", "three"]


def test_batch_longer_than_the_heartbeat_commits(strict: Kit) -> None:
    """All jobs of a batch are locked when its transaction begins."""
    running, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    async def run_many(jobs: Any, ctx: Any) -> None:
        sizes.append(len(jobs))
        for job in jobs:
            effects(ctx.session, job, "once")
        await ok(ctx.session.flush())
        running.set()
        await wait_for(go)

    strict.handle(run_many, many=True)
    ids = strict.add(Task(), Task(), Task())
    runner = strict.run(lease=LEASE)
    assert running.wait(20)
    heart_beats(strict, runner)
    safe = nobody_can_rescue(strict)
    go.set()

    for job_id in ids:
        assert strict.until_state(job_id, "completed", "retryable").attempt == 1
    assert (sizes, safe, strict.notes()) == ([3], True, ["once"] * 3)


def test_lost_lease_is_seen_when_the_transaction_begins(strict: Kit) -> None:
    """Whoever was taken over does no work in vain."""
    seen: list[str] = []

    async def run(job: Any, ctx: Any) -> None:
        take_over(strict, job.id)
        try:
            await ok(ctx.session.execute(text("SELECT 1")))
        except AttemptInterrupted as exc:
            seen.append(str(exc))
            raise

    strict.handle(run)
    (job_id,) = strict.add()
    strict.run_one()

    assert "the lease is lost" in seen[0]
    assert (strict.job(job_id).state, strict.job(job_id).lease_token) == ("running", 3)


def write_behind(kit: Kit) -> Callable[[Any, Any], Any]:
    """Return a handler that meets somebody else's write in its first attempt."""
    runs: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        runs.append(job.id)
        owner = await ok(ctx.session.get(Owner, 1))
        if len(runs) == 1:
            kit.sql("UPDATE owners SET name = 'theirs'")
        owner.name = "ours"
        effects(ctx.session, job, f"attempt {ctx.attempt}")
        await ok(ctx.session.flush())

    return run


def test_conflict_costs_no_attempt(strict: Kit) -> None:
    """Where conflicts are how transactions wait, a job does not run out of attempts."""
    strict.add_owner("first")
    strict.handle(write_behind(strict))
    (job_id,) = strict.add(Task(max_attempts=1))
    strict.run()

    row = strict.until_state(job_id, "completed", "discarded")

    assert (row.state, row.attempt, row.snoozes) == ("completed", 1, 1)
    assert "could not serialize access" in row.last_error
    assert strict.notes() == ["attempt 1"]


def test_conflict_of_a_level_set_by_sql_counts(kit: Kit) -> None:
    """Nobody knows of that level, so it could be the heartbeat, again and again."""
    kit.add_owner("first")
    conflict = write_behind(kit)

    async def run(job: Any, ctx: Any) -> None:
        level = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await ok(ctx.session.execute(level))
        await ok(conflict(job, ctx))

    kit.handle(run)
    (job_id,) = kit.add(Task(max_attempts=1))
    kit.run()

    row = kit.until_state(job_id, "completed", "discarded")
    assert (row.state, row.attempt) == ("discarded", 1)


@pytest.mark.parametrize("level", ["READ COMMITTED", *STRICT])
def test_renewal_does_not_wait_for_the_handler_itself(kit: Kit, level: str) -> None:
    """Its own transaction may have locked the row, which nobody can rescue then."""
    kit.engine_options |= {"isolation_level": level}

    async def run(job: Any, ctx: Any) -> None:
        job.tags = ["touched"]
        await ok(ctx.session.flush())
        await ok(ctx.renew_lease(timedelta(minutes=5)))
        effects(ctx.session, job, "renewed")

    kit.handle(run)
    (job_id,) = kit.add()
    kit.run()

    assert kit.until_state(job_id, "completed", "retryable").attempt == 1
    assert kit.notes() == ["renewed"]


def test_cancel_waits_for_the_transaction(strict: Kit) -> None:
    """A success that is not committed yet wins, as ever."""
    running, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "done")
        await ok(ctx.session.flush())
        running.set()
        await wait_for(go)

    strict.handle(run)
    (job_id,) = strict.add()
    strict.run()
    assert running.wait(20)

    def cancel() -> None:
        with strict.Session.begin() as session:
            results.append(request_cancel(session, Job, job_id))

    results: list[Any] = []
    thread = threading.Thread(target=cancel)
    thread.start()
    strict.until(lambda: strict.sql(WAITING))
    go.set()
    thread.join(20)

    assert strict.until_state(job_id, "completed", "cancelled").state == "completed"
    assert results[0].unchanged == (job_id,)


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


def test_lock_ends_when_its_client_is_gone(strict: Kit) -> None:
    """The server asks the host of the runner, from the statement that locks on."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        seen.append(f"{args[2]} {args[3]}")

    async def run(job: Any, ctx: Any) -> None:
        await ok(ctx.session.execute(text("SELECT 'handler'")))

    strict.on_engine = lambda engine: event.listen(
        engine, "before_cursor_execute", note
    )
    strict.handle(run)
    strict.add()
    strict.drain()

    (locking,) = (one for one in seen if "tcp_keepalives_idle" in one)
    assert "FOR NO KEY UPDATE" in locking
    assert "'handler'" in seen[seen.index(locking) + 1]


SERVER = {"options": "-c default_transaction_isolation=serializable"}


@pytest.mark.parametrize(
    ("options", "later", "strict"),
    [
        ({}, {}, False),
        ({"isolation_level": "READ COMMITTED"}, {}, False),
        ({"isolation_level": "REPEATABLE READ"}, {}, True),
        ({}, {"isolation_level": "REPEATABLE_READ"}, True),
        (
            {"isolation_level": "SERIALIZABLE"},
            {"isolation_level": "READ COMMITTED"},
            False,
        ),
        ({"connect_args": SERVER}, {}, True),
        ({"connect_args": SERVER}, {"isolation_level": "READ COMMITTED"}, False),
    ],
)
def test_level_is_known_without_asking(
    dsn: str, options: Any, later: Any, strict: bool
) -> None:
    """Whether it is the engine's, the transaction's or the server's."""
    engine = create_engine(dsn, **options)
    engine.connect().close()
    with statements(engine) as seen, engine.connect() as plain:
        connection = plain.execution_options(**later)
        dialect = dialect_of(connection)

        assert dialect.keeps_snapshot(connection) is strict
    assert seen == []
    engine.dispose()
