"""Every way to commit a handler's session carries the fence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session, sessionmaker, with_loader_criteria

from sqla_jobs import AttemptInterrupted, constant
from sqla_jobs.runner.attempt import Interruption
from tests.runner.harness import (
    Job,
    Kit,
    Linked,
    Loaded,
    Other,
    Task,
    answerless_commit,
    effects,
    ok,
    take_over,
    wait_for,
)

HOUR = timedelta(hours=1)


async def by_commit(session: Any, write: Callable[[], None]) -> None:
    """Commit as most do."""
    write()
    await ok(session.commit())


async def by_begin(session: Any, write: Callable[[], None]) -> None:
    """Commit at the end of a block."""
    if hasattr(session, "__aenter__"):
        async with session.begin():
            write()
    else:
        with session.begin():
            write()


async def by_connection(session: Any, write: Callable[[], None]) -> None:
    """Commit below the session, on its connection."""
    write()
    await ok(session.flush())
    connection = await ok(session.connection())
    await ok(connection.commit())


async def by_transaction(session: Any, write: Callable[[], None]) -> None:
    """Commit the session's outermost transaction itself."""
    write()
    await ok(session.flush())
    transaction = session.get_transaction()
    await ok(transaction.commit())


async def with_open_savepoint(session: Any, write: Callable[[], None]) -> None:
    """Commit the outermost transaction while a savepoint is open."""
    transaction = await ok(session.begin())
    await ok(session.begin_nested())
    write()
    await ok(session.flush())
    sync = getattr(transaction, "sync_transaction", None)
    if sync is None:
        transaction.commit(_to_root=True)
    else:
        await session.run_sync(lambda _: sync.commit(_to_root=True))


async def after_savepoint(session: Any, write: Callable[[], None]) -> None:
    """Commit after a savepoint that took the writes."""
    nested = await ok(session.begin_nested())
    write()
    await ok(nested.commit())
    await ok(session.commit())


WAYS = [
    by_commit,
    by_begin,
    by_connection,
    by_transaction,
    with_open_savepoint,
    after_savepoint,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_commit_saves_the_state_while_the_lease_is_held(kit: Kit, way: Any) -> None:
    """Each way commits the writes, the state and a renewed lease together."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        before = kit.job(job.id).leased_until
        ctx.state["cursor"] = 1
        await way(ctx.session, lambda: effects(ctx.session, job, "kept"))
        row = kit.job(job.id)
        seen.append((row.checkpoint, row.leased_until > before, kit.notes()))
        raise ValueError("what is committed stays")

    kit.handle(run)
    (job,) = kit.add(Task(backoff=constant(HOUR)))

    kit.drain()

    assert seen == [({"cursor": 1}, True, ["kept"])]
    assert (kit.job(job).state, kit.notes()) == ("retryable", ["kept"])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_commit_is_refused_after_the_lease_is_lost(kit: Kit, way: Any) -> None:
    """None lets a stale holder's writes through, nor leaves them in the connection."""
    kit.engine_options = {"pool_size": 1, "max_overflow": 0}
    caught: list[BaseException] = []

    async def run(job: Any, ctx: Any) -> None:
        take_over(kit, job.id)
        try:
            await way(ctx.session, lambda: effects(ctx.session, job, "stale"))
        except BaseException as exc:
            caught.append(exc)
            raise

    async def writes(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "next user")

    kit.handle(run)
    kit.handle(writes, Other)
    job, _ = kit.add(Task(priority=1), Other())

    kit.drain(concurrency=1)

    assert [type(exc) for exc in caught] == [AttemptInterrupted]
    assert kit.notes() == ["next user"]
    row = kit.job(job)
    assert (row.state, row.lease_token, row.checkpoint) == ("running", 3, None)


def test_savepoint_is_no_checkpoint(kit: Kit) -> None:
    """Releasing a savepoint saves nothing and does not end a draining attempt."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        ctx._attempt.draining = True
        ctx.state["cursor"] = 1
        nested = await ok(ctx.session.begin_nested())
        effects(ctx.session, job, "inside")
        await ok(nested.commit())
        ctx.raise_if_interrupted()
        seen.append(kit.job(job.id).checkpoint)
        seen.append(kit.notes())

    kit.handle(run)
    kit.add()

    kit.drain()

    assert seen == [None, []]
    assert (kit.states(), kit.notes()) == (["completed"], ["inside"])


@pytest.mark.read_committed("its transaction locks the job elsewhere")
def test_token_of_a_reloaded_job_lets_no_stale_holder_through(threads: Kit) -> None:
    """
    After a checkpoint the job's attributes are reloaded, with the new holder's token:
    what counts is the token of the claim.
    """
    kit, tokens = threads, []

    async def run(job: Any, ctx: Any) -> None:
        job_id = job.id
        effects(ctx.session, job, "first")
        ctx.checkpoint(cursor=1)
        taken = take_over(kit, job_id)
        tokens.append((job.lease_token, taken.token))
        job.tags = ["touched"]
        effects(ctx.session, job, "second")

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    assert tokens == [(3, 3)]
    row = kit.job(job)
    assert (row.state, row.tags, row.checkpoint) == ("running", None, {"cursor": 1})
    assert kit.notes() == ["first"]


def test_outcome_of_a_stale_holder_is_dropped(kit: Kit) -> None:
    """A handler that never used its session cannot complete a job it lost either."""

    async def run(job: Any, ctx: Any) -> int:
        take_over(kit, job.id)
        return 5

    kit.handle(run)
    (job,) = kit.add()

    kit.drain()

    row = kit.job(job)
    assert (row.state, row.result, row.lease_token) == ("running", None, 3)


def test_deleted_job_is_a_lost_one(kit: Kit) -> None:
    """The writes of a handler whose row was deleted roll back."""

    async def run(job: Any, ctx: Any) -> None:
        kit.sql("DELETE FROM jobs")
        effects(ctx.session, job, "orphan")

    kit.handle(run)
    kit.add()

    kit.drain()

    assert kit.notes() == []


class AppSession(Session):
    """A session class of the application's own."""

    def greet(self) -> str:
        """Say something."""
        return "hello from the application"


def test_sessionmakers_class_options_and_listeners_are_kept(threads: Kit) -> None:
    """The handler's session is the application's: class, options, info and events."""
    kit, flushed = threads, []
    kit.session_options = {
        "class_": AppSession,
        "autoflush": False,
        "info": {"tenant": 7},
        "expire_on_commit": False,
    }
    original = kit.sync_maker

    def maker(engine: Any) -> sessionmaker[Any]:
        one = original(engine)
        event.listen(one, "before_flush", lambda *_: flushed.append(1))
        return one

    kit.sync_maker = maker
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        session = ctx.session
        seen.extend([session.greet(), session.autoflush, session.info["tenant"]])
        seen.append(session.expire_on_commit)
        effects(session, job, "flushed")

    kit.handle(run)
    kit.add()

    kit.drain()

    assert seen == ["hello from the application", False, 7, False]
    assert flushed == [1]


def test_tenant_filter_of_the_application_does_not_empty_the_claim(
    threads: Kit,
) -> None:
    """The runner's own statements run on a session without the user's listeners."""
    kit, original = threads, threads.sync_maker
    nobody = with_loader_criteria(Job, Job.channel == "nobody")

    def hide(state: Any) -> None:
        state.statement = state.statement.options(nobody)

    def maker(engine: Any) -> sessionmaker[Any]:
        made = original(engine)
        event.listen(made, "do_orm_execute", hide)
        return made

    kit.sync_maker = maker
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        seen.extend(ctx.session.scalars(select(Job)))

    kit.handle(run)
    kit.add()

    kit.drain()

    assert (kit.states(), seen) == (["completed"], [])


def test_autocommit_session_is_refused(kit: Kit) -> None:
    """In AUTOCOMMIT mode nothing could be taken back, so the handler fails."""
    kit.engine_options = {"isolation_level": "AUTOCOMMIT"}

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "not fenced")
        await ok(ctx.session.flush())

    kit.handle(run)
    (job,) = kit.add(Task(max_attempts=1))

    kit.drain()

    assert kit.job(job).state == "discarded"
    assert "AUTOCOMMIT" in kit.job(job).last_error
    assert kit.notes() == []


def test_no_transaction_is_open_while_a_handler_runs(kit: Kit) -> None:
    """Neither the claim, nor `load=`, nor an attached job keeps a transaction open."""
    kit.add_owner("Ada")
    running, go = threading.Event(), threading.Event()

    async def idle(job: Any, ctx: Any) -> None:
        running.set()
        await wait_for(go)

    kit.handle(idle, Linked)
    kit.handle(idle, Loaded)
    kit.add(Loaded(owner_id=1), Linked(owner_id=1))
    kit.run(poll=timedelta(minutes=1))
    assert running.wait(10)

    kit.until(lambda: kit.sql(OPEN) == 0, seconds=3)

    go.set()


OPEN = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
)


def test_lost_commit_that_did_not_happen_is_retried(kit: Kit) -> None:
    """A COMMIT without answer and without effect is one failed attempt."""
    lost: list[str] = []
    kit.on_engine = answerless_commit(lost, happens=False)

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")

    kit.handle(run)
    (job,) = kit.add()
    kit.run()

    row = kit.until_state(job, "completed")
    assert (lost, row.attempt, kit.notes()) == (["answer"], 2, ["attempt 2"])
    (failed,) = kit.attempts(job)
    assert "connection" in failed.error


def test_lost_checkpoint_is_run_again_from_what_was_saved(kit: Kit) -> None:
    """A checkpoint whose answer was lost fails the attempt; the next sees its state."""
    lost: list[str] = []
    kit.on_engine = answerless_commit(lost, happens=True)

    async def run(job: Any, ctx: Any) -> None:
        if not ctx.state.get("written"):
            effects(ctx.session, job, "once")
            await ok(ctx.checkpoint(written=True))

    kit.handle(run)
    (job,) = kit.add()
    kit.run()

    row = kit.until_state(job, "completed")
    assert (row.attempt, kit.notes()) == (2, ["once"])


@pytest.mark.read_committed("conflicts are not counted elsewhere")
def test_deadlock_in_the_final_commit_is_a_counted_retry(kit: Kit) -> None:
    """A serialization failure that only COMMIT reports is retried as well."""
    kit.sql(DEFERRED)

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "spoiled" if ctx.attempt == 1 else "kept")

    kit.handle(run)
    (job,) = kit.add(Task(backoff=constant(HOUR)))
    try:
        kit.run()
        row = kit.until_state(job, "completed")
    finally:
        for running in kit.running:
            running.stop()
        kit.sql("DROP TRIGGER spoil ON effects; DROP FUNCTION spoil()")

    assert (row.attempt, kit.notes()) == (2, ["kept"])


DEFERRED = """
CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
  IF NEW.note = 'spoiled' THEN RAISE SQLSTATE '40001'; END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER spoil AFTER INSERT ON effects
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION spoil()
"""


@pytest.mark.read_committed("its transaction locks the job elsewhere")
def test_writes_through_bulk_statements_are_fenced(kit: Kit) -> None:
    """Core statements on the session count as its use, and commit with the outcome."""

    async def run(job: Any, ctx: Any) -> None:
        stmt = text("INSERT INTO effects (job_id, note) VALUES (:i, 'core')")
        await ok(ctx.session.execute(stmt, {"i": job.id}))
        if job.n == 1:
            take_over(kit, job.id)

    kit.handle(run)
    kit.add(Task(n=0), Task(n=1))

    kit.drain(concurrency=1)

    assert (kit.notes(), kit.states()) == (["core"], ["completed", "running"])


@pytest.mark.read_committed("its transaction locks the job elsewhere")
def test_refused_commit_leaves_no_transaction_open(kit: Kit) -> None:
    """Whoever swallows the refusal keeps no locks, nor rows for another to commit."""
    seen: list[Any] = []

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "stale")
        await ok(ctx.session.flush())
        take_over(kit, job.id)
        try:
            await ok(ctx.session.commit())
        except AttemptInterrupted:
            seen.append(kit.sql(WRITING))

    kit.handle(run)
    kit.add()

    kit.drain()

    assert seen == [0]
    assert kit.notes() == []


WRITING = (
    "SELECT count(*) FROM pg_locks WHERE relation = 'effects'::regclass"
    " AND mode = 'RowExclusiveLock'"
)


def test_flush_is_refused_in_a_transaction_that_was_open(kit: Kit) -> None:
    """After an interruption nothing more is written, not even to be rolled back."""
    refused: list[str] = []

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "before")
        await ok(ctx.session.flush())
        ctx._attempt.interrupt(Interruption.LOST)
        effects(ctx.session, job, "after")
        try:
            await ok(ctx.session.flush())
        except AttemptInterrupted as exc:
            refused.append(exc.reason)

    kit.handle(run)
    kit.add()

    kit.drain()

    assert (refused, kit.notes()) == (["the lease is lost"], [])


def test_engine_with_options_of_its_own_is_fenced_once(threads: Kit) -> None:
    """It hears each commit twice: as the engine behind it does, and itself."""
    kit = threads

    async def run(job: Any, ctx: Any) -> None:
        if job.n == 1:
            ctx.session.bind = ctx.session.bind.execution_options(note="own")
        effects(ctx.session, job, f"job {job.n}")

    kit.handle(run)
    kit.run(concurrency=1)
    for n in range(3):
        (job,) = kit.add(Task(n=n))
        kit.until_state(job, "completed")

    assert kit.notes() == ["job 0", "job 1", "job 2"]
    assert kit.sql("SELECT max(attempt) FROM jobs") == 1
