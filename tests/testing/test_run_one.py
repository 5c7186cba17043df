"""`run_one`: a job runs in the test's transaction as it would in a runner."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, object_session

from sqla_jobs import (
    Cancel,
    Complete,
    Discard,
    JobDefinitionError,
    JobValueError,
    Outcome,
    Retry,
    Snooze,
    request_cancel,
)
from sqla_jobs.testing import drain, run_one
from tests.testing.kit import (
    HOUR,
    Always,
    Awaits,
    Customer,
    Job,
    Kit,
    Mail,
    Note,
    OtherTask,
    Silent,
    Task,
    ok,
)


def test_uncommitted_job_runs(kit: Kit) -> None:
    """A pending job is flushed, run and completed, and its object shows that."""

    async def handler(job: Any, ctx: Any) -> int:
        ctx.session.add(Note(text=f"n={job.n}"))
        return int(job.n) * 2

    kit.handle(handler)
    job = kit.add(Task(n=4))

    assert kit.call(run_one) == "completed"
    assert (job.state, job.result, job.attempt) == ("completed", 8, 1)
    assert job.started_at <= job.finished_at
    assert kit.notes() == ["n=4"]


def test_nothing_due_is_none(both: Kit) -> None:
    """Without a job that is due nothing happens; later ones stay."""
    job = both.add(Task(delay=HOUR))

    assert both.call(run_one, Job) is None
    assert (job.state, job.attempt) == ("scheduled", 0)


def test_handler_writes_since_the_checkpoint_roll_back(kit: Kit) -> None:
    """What a failing handler wrote before its checkpoint stays, the rest does not."""

    async def handler(job: Any, ctx: Any) -> None:
        ctx.session.add(Note(text="before"))
        await ok(ctx.checkpoint(done=1))
        ctx.session.add(Note(text="after"))
        await ok(ctx.session.flush())
        raise ValueError("as planned")

    kit.handle(handler)
    job = kit.add(Task())

    with pytest.raises(ValueError, match="as planned"):
        kit.call(run_one)

    assert kit.notes() == ["before"]
    assert (job.state, job.checkpoint) == ("retryable", {"done": 1})
    assert job.last_error == "ValueError: as planned"


def test_commit_of_the_session_is_a_checkpoint(kit: Kit) -> None:
    """`ctx.session.commit()` saves the state; a rollback takes back only what follows.

    The session can be used again after either, as in a runner.
    """

    async def handler(job: Any, ctx: Any) -> None:
        ctx.state["step"] = 1
        ctx.session.add(Note(text="one"))
        await ok(ctx.session.commit())
        ctx.session.add(Note(text="two"))
        await ok(ctx.session.rollback())
        ctx.session.add(Note(text="three"))

    kit.handle(handler)
    job = kit.add(Task())

    assert kit.call(run_one) == "completed"
    assert kit.notes() == ["one", "three"]
    assert job.checkpoint == {"step": 1}


def test_savepoint_of_a_handler_is_no_checkpoint(both: Kit) -> None:
    """What a handler does in a savepoint rolls back with its transaction."""

    async def handler(job: Any, ctx: Any) -> None:
        ctx.state["step"] = 1
        nested = ctx.session.begin_nested()
        async with _entered(nested):
            ctx.session.add(Note(text="in a savepoint"))
        await ok(ctx.session.rollback())

    both.handle(handler)
    job = both.add(Task())

    assert both.call(run_one) == "completed"
    assert (both.notes(), job.checkpoint) == ([], {"step": 1})


class _entered:  # noqa: N801
    def __init__(self, nested: Any) -> None:
        self.nested = nested

    async def __aenter__(self) -> None:
        if hasattr(self.nested, "__aenter__"):
            await self.nested.__aenter__()
        else:
            self.nested.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        if hasattr(self.nested, "__aexit__"):
            await self.nested.__aexit__(*exc)
        else:
            self.nested.__exit__(*exc)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Complete({"a": 1}), "completed"),
        (Retry(after=HOUR), "retryable"),
        (Snooze(after=HOUR), "scheduled"),
        (Cancel("unwanted"), "cancelled"),
        (Discard("hopeless"), "discarded"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Outcome) else value,
)
@pytest.mark.parametrize("raised", [False, True], ids=["returned", "raised"])
def test_outcomes(both: Kit, outcome: Outcome, state: str, raised: bool) -> None:
    """A returned outcome keeps the writes, a raised one not; neither fails the test."""

    async def handler(job: Any, ctx: Any) -> Outcome:
        ctx.session.add(Note(text="written"))
        await ok(ctx.session.flush())
        if raised:
            raise outcome
        return outcome

    both.handle(handler)
    job = both.add(Task())

    assert both.call(run_one) == state
    assert both.notes() == ([] if raised else ["written"])
    assert job.state == state


def test_errors_may_be_recorded_only(both: Kit) -> None:
    """With raise_errors=False a failure is an outcome like others."""

    async def handler(job: Any, ctx: Any) -> None:
        raise ValueError("as planned")

    both.handle(handler)
    job = both.add(Task(max_attempts=1))

    assert both.call(run_one, raise_errors=False) == "discarded"
    assert job.last_error == "ValueError: as planned"


@pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_ends_the_process_is_raised(both: Kit, exc: type[BaseException]) -> None:
    """An exception that is no failure of the job is the test's in any case."""

    async def handler(job: Any, ctx: Any) -> None:
        raise exc

    both.handle(handler)
    both.add(Task())

    with pytest.raises(exc):
        both.call(run_one, raise_errors=False)


def test_error_of_the_database_leaves_a_working_transaction(both: Kit) -> None:
    """A handler whose flush fails does not spoil the test's transaction."""

    async def handler(job: Any, ctx: Any) -> None:
        ctx.session.add_all([Note(text="same"), Note(text="same")])

    both.handle(handler)
    job = both.add(Task())

    assert both.call(run_one, raise_errors=False) == "retryable"
    assert "UniqueViolation" in job.last_error
    assert both.notes() == []


def test_lost_lease_takes_the_writes_back(both: Kit) -> None:
    """A handler that lost its job cannot write: only its checkpoint stays."""
    steal = text("UPDATE tested_jobs SET lease_token = lease_token + 1")

    async def handler(job: Any, ctx: Any) -> None:
        ctx.session.add(Note(text="kept"))
        await ok(ctx.checkpoint())
        await ok(both.session.execute(steal))
        ctx.session.add(Note(text="lost"))
        await ok(ctx.session.commit())
        raise AssertionError("ran on")

    both.handle(handler)
    both.add(Task())

    assert both.call(run_one) is None
    assert both.notes() == ["kept"]


def test_cancel_request_ends_it_at_the_checkpoint(both: Kit) -> None:
    """A job that is asked to end while it runs does so at its next checkpoint."""

    async def handler(job: Any, ctx: Any) -> None:
        if both.is_async:
            await ctx.session.run_sync(request_cancel, Job, [job.id])
        else:
            request_cancel(ctx.session, Job, [job.id])
        await ok(ctx.checkpoint())
        raise AssertionError("ran on")

    both.handle(handler)
    both.add(Task())

    assert both.call(run_one) == "cancelled"


def test_sync_handler_runs_under_an_async_session(both: Kit) -> None:
    """An AsyncSession runs sync handlers too, with a Session as ctx.session."""
    job = both.add(Always(n=3))

    assert both.call(run_one) == "completed"
    assert (job.result, both.notes()) == (3, ["always 3"])


def test_async_handler_needs_an_async_session(sync: Kit) -> None:
    """A sync session refuses an async handler, and the job stays as it was."""
    job = sync.add(Awaits())

    with pytest.raises(JobDefinitionError, match=r"run_one\(\): the handler of Awaits"):
        sync.call(run_one)

    sync.session.refresh(job)
    assert (job.state, job.attempt) == ("available", 0)


def test_kind_without_handler_stays(both: Kit) -> None:
    """As by a runner, a job nobody has a handler for is left alone."""
    job = both.add(Silent())

    assert both.call(run_one, Job) is None
    assert job.state == "available"
    with pytest.raises(JobDefinitionError, match="Silent has no handler"):
        both.call(run_one, job)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"queues": ["mail"]}, "always"),
        ({"kinds": ["mail"]}, "always"),
        ({"kinds": [Always]}, "mail"),
    ],
    ids=["queues", "kind", "class"],
)
def test_queues_and_kinds_narrow(both: Kit, options: dict[str, Any], left: str) -> None:
    """Only jobs of the given queues or kinds run."""

    async def handler(job: Any, ctx: Any) -> None:
        pass

    both.handle(handler, Mail)
    both.add(Always(), Mail(to="a"))

    assert both.call(drain, **options) == {"completed": 1}
    assert both.scalars(select(Job.kind).where(Job.state == "available")) == [left]


def test_class_narrows(both: Kit) -> None:
    """A class given in place of a job runs the next of it."""
    first, second = both.add(Always(n=1)), both.add(Always(n=2))
    both.flush()

    assert both.call(run_one, Always) == "completed"
    assert (first.state, second.state) == ("completed", "available")


def test_given_job_runs_before_others(both: Kit) -> None:
    """A job given runs, whoever would be next."""
    first, second = both.add(Always(n=1)), both.add(Always(n=2))
    both.flush()

    assert both.call(run_one, second) == "completed"
    assert (first.state, second.state) == ("available", "completed")


def test_given_job_must_be_able_to_run(both: Kit) -> None:
    """A job that is done, waits or was never added is refused, saying why."""
    done, later, new = Always(n=1), Always(n=2, delay=HOUR), Always(n=3)
    both.add(done, later)
    assert both.call(run_one, done) == "completed"

    with pytest.raises(JobValueError, match=r"job \d+ cannot run, it is completed$"):
        both.call(run_one, done)
    with pytest.raises(JobValueError, match="it is scheduled until 2"):
        both.call(run_one, later)
    with pytest.raises(JobValueError, match=r"not enqueued; session.add\(\) it"):
        both.call(run_one, new)


def test_options_reach_the_handler(both: Kit) -> None:
    """Resources, middleware and on_error are used as a runner uses them."""
    seen: list[Any] = []

    async def handler(job: Any, ctx: Any) -> None:
        seen.append(ctx.resources)
        raise ValueError("as planned")

    def around(job: Any, ctx: Any, call_next: Any) -> Any:
        seen.append("around")
        return call_next()

    async def async_around(job: Any, ctx: Any, call_next: Any) -> Any:
        seen.append("around")
        return await call_next()

    both.handle(handler)
    both.add(Task())

    with pytest.raises(ValueError, match="as planned"):
        both.call(
            run_one,
            resources="resources",
            middleware=[async_around if both.is_async else around],
            on_error=lambda job, ctx, exc: seen.append(str(exc)),
        )

    assert seen == ["around", "resources", "as planned"]


def test_handler_has_a_session_of_its_own(kit: Kit) -> None:
    """`ctx.session` is not the test's, but like it; the job is attached to it."""
    seen: dict[str, Any] = {}

    async def handler(job: Any, ctx: Any) -> None:
        inner = getattr(ctx.session, "sync_session", ctx.session)
        seen["outer"] = object_session(outer) is inner
        seen["job"] = object_session(job) is inner
        seen["class"] = isinstance(ctx.session, type(plain))
        seen["info"] = dict(inner.info).get("tenant")
        seen["name"] = job.customer.name if not kit.is_async else None

    plain = kit.session() if kit.kind == "scoped" else kit.session
    kit.handle(handler)
    outer = kit.add(Task(customer=Customer(name="Ada")))

    assert kit.call(run_one) == "completed"
    assert seen == {
        "outer": False,
        "job": True,
        "class": True,
        "info": "t" if kit.kind == "scoped" else None,
        "name": None if kit.is_async else "Ada",
    }


def test_session_subclass_is_used(tables: Any, nothing_committed: None) -> None:
    """The handler's session is of the test's class, with its options and attributes."""

    class Tenant(Session):
        def __init__(self, name: str, **options: Any) -> None:
            super().__init__(**options)
            self.name = name

    def run(job: Any, ctx: Any) -> Any:
        return [ctx.session.name, ctx.session.autoflush, ctx.session.expire_on_commit]

    Silent.run = run
    try:
        with Tenant("t", bind=tables, autoflush=False, expire_on_commit=False) as own:
            job = Silent()
            own.add(job)
            assert run_one(own) == "completed"
            assert job.result == ["t", False, False]
    finally:
        del Silent.run  # type: ignore[attr-defined]


def test_session_maker_makes_the_session(both: Kit) -> None:
    """With session_maker= the handler's session has the class and options of that."""
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

    class Own(Session):
        """The application's."""

    class AsyncOwn(AsyncSession):
        """Likewise."""

    async def handler(job: Any, ctx: Any) -> list[Any]:
        ctx.session.add(Note(text="made"))
        return [int(isinstance(ctx.session, Own)), ctx.session.info["own"]]

    async def ahandler(job: Any, ctx: Any) -> list[Any]:
        ctx.session.add(Note(text="made"))
        return [int(type(ctx.session) is AsyncOwn), ctx.session.info["own"]]

    info = {"own": "yes"}
    maker: Any = sessionmaker(class_=Own, info=info, bind=None)
    if both.is_async:
        maker = async_sessionmaker(class_=AsyncOwn, info=info)
    both.handle(ahandler if both.is_async else handler)
    job = both.add(Task())

    assert both.call(run_one, session_maker=maker) == "completed"
    assert job.result == [1, "yes"]
    assert both.notes() == ["made"]


def test_deleted_and_changed_objects_show(both: Kit) -> None:
    """Objects of the test have what handlers made of their rows, without a refresh."""
    ada, bob = both.add(Customer(name="Ada")), both.add(Customer(name="Bob"))
    both.flush()
    ids = ada.id, bob.id

    async def handler(job: Any, ctx: Any) -> None:
        changed = await ok(ctx.session.get(Customer, ids[0]))
        changed.name = "Eve"
        await ok(ctx.session.delete(await ok(ctx.session.get(Customer, ids[1]))))

    both.handle(handler)
    both.add(Task())

    assert both.call(run_one) == "completed"
    assert ada.name == "Eve"
    assert both.scalars(select(Customer.name)) == ["Eve"]


def test_undecodable_payload_is_discarded(both: Kit) -> None:
    """As by a runner, a job whose arguments do not decode is a dead letter."""
    job = both.add(Always())
    both.flush()
    job.payload = {"n": "three"}

    assert both.call(run_one) == "discarded"
    assert "payload does not decode" in job.reason


def test_outcome_the_database_refuses_is_a_failure(both: Kit) -> None:
    """A time beyond the database's calendar fails the attempt, and the test."""
    from datetime import timedelta

    from sqlalchemy.exc import DataError

    async def handler(job: Any, ctx: Any) -> Retry:
        return Retry(after=timedelta(days=999_999_999))

    both.handle(handler)
    job = both.add(Task())

    with pytest.raises(DataError):
        both.call(run_one)
    assert job.state == "retryable"


def test_two_job_tables(both: Kit) -> None:
    """Jobs of all tables that the session used are looked for."""
    both.add(Always(), OtherTask())

    assert both.call(drain) == {"completed": 2}


def test_job_table_that_a_handler_uses(both: Kit) -> None:
    """A handler may enqueue in a table that the test has not used."""

    async def handler(job: Any, ctx: Any) -> None:
        ctx.session.add(OtherTask())

    both.handle(handler)
    both.add(Task())

    assert both.call(drain) == {"completed": 2}


def test_job_is_read_after_a_checkpoint(both: Kit) -> None:
    """The job's attributes can be read after a commit, also without an await."""

    async def handler(job: Any, ctx: Any) -> int:
        await ok(ctx.checkpoint())
        return int(job.n)

    both.handle(handler)
    job = both.add(Task(n=3))

    assert both.call(run_one) == "completed"
    assert job.result == 3


def test_unknown_table_is_asked_for(both: Kit) -> None:
    """A session that enqueued nothing cannot tell which table is meant."""
    with pytest.raises(JobValueError, match=r"cannot tell.*give its class: run_one"):
        both.call(run_one)


def test_unknown_keyword(both: Kit) -> None:
    """A keyword that does not exist is named, with the likely one."""
    with pytest.raises(
        TypeError, match="unknown keyword 'queue'; did you mean 'queues'"
    ):
        both.call(run_one, queue="mail")
