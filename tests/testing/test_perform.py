"""`perform`: the handler of one job object, with and without a database."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from sqla_jobs import (
    Arg,
    Cancel,
    Complete,
    JobDefinitionError,
    JobMixin,
    JobValueError,
    Outcome,
    PayloadError,
    Retry,
    arg,
    handles,
)
from sqla_jobs.testing import perform
from tests.testing.kit import (
    Always,
    Awaits,
    Base,
    Customer,
    Job,
    Kit,
    Note,
    Silent,
    Task,
    ok,
)


class NoTable(JobMixin, Base):
    """A job table that no database has."""

    __tablename__ = "tested_nowhere"
    metadata = type(Base.metadata)()


class Unit(NoTable, kind="unit", timeout=timedelta(minutes=5)):
    """A job that only its handler is tested of."""

    n: Arg[int] = arg(default=0)

    def run(self, ctx: Any) -> Any:
        """Do what the number asks for."""
        match self.n:
            case 0:
                return {
                    "attempt": ctx.attempt,
                    "state": ctx.state,
                    "resources": ctx.resources,
                    "key": ctx.idempotency_key,
                    "left": ctx.deadline is not None,
                }
            case 1:
                raise Retry("later")
            case 2:
                return Cancel("unwanted")
            case 3:
                raise ValueError("as planned")
            case 4:
                return object()
            case _:
                return ctx.session


class AsyncUnit(NoTable, kind="async_unit"):
    """The same, async."""

    n: Arg[int] = arg(default=0)

    async def run(self, ctx: Any) -> Any:
        """Do what the number asks for."""
        await ctx.renew_lease()
        if self.n:
            raise Retry("later")
        return ctx.attempt


class Handled(NoTable, kind="handled"):
    """A job whose handler is a function, which does not look at its argument."""

    n: Arg[int] = arg(default=0)


@handles(Handled)
def handle(job: Handled, ctx: Any) -> str:
    """Return something."""
    ctx.renew_lease()
    return "handled"


def result_of(outcome: Outcome) -> Any:
    """Return the result of a `Complete`."""
    assert isinstance(outcome, Complete)
    return outcome.result


def test_transient_job_needs_no_table() -> None:
    """The returned value is the result of a `Complete`; ctx has what was given."""
    outcome = perform(Unit(), attempt=3, state={"next": 4}, resources="r")

    assert result_of(outcome) == {
        "attempt": 3,
        "state": {"next": 4},
        "resources": "r",
        "key": "tested_nowhere:None",
        "left": True,
    }


@pytest.mark.parametrize(("n", "kind"), [(1, Retry), (2, Cancel)])
def test_outcomes_are_returned(n: int, kind: type[Outcome]) -> None:
    """An outcome is a value, raised or returned."""
    assert isinstance(perform(Unit(n=n)), kind)


def test_errors_are_raised() -> None:
    """The handler's exception is the test's."""
    with pytest.raises(ValueError, match="as planned"):
        perform(Unit(n=3))


def test_result_must_be_json() -> None:
    """A result that no row could keep is an error here already."""
    with pytest.raises(PayloadError):
        perform(Unit(n=4))


def test_arguments_must_decode() -> None:
    """A job whose payload is of another type is refused before the handler runs."""
    job = Handled()
    job.payload = {"n": "three"}

    with pytest.raises(PayloadError, match=r"Handled\.n"):
        perform(job)


def test_session_is_asked_for() -> None:
    """A handler that needs a session says how to give one."""
    with pytest.raises(JobValueError, match=r"perform\(job, session=session\)"):
        perform(Unit(n=5))


def test_async_handler_is_awaited() -> None:
    """An async handler is run by `await perform(job)`; outcomes are values as well."""
    assert result_of(asyncio.run(perform(AsyncUnit(), attempt=2))) == 2
    assert isinstance(asyncio.run(perform(AsyncUnit(n=1))), Retry)


def test_function_is_a_handler() -> None:
    """`@handles` functions run as methods do, inside the middleware."""
    seen = []

    def around(job: Any, ctx: Any, call_next: Any) -> Any:
        seen.append(job)
        return call_next()

    job = Handled()

    assert result_of(perform(job, middleware=[around])) == "handled"
    assert seen == [job]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: perform("job"), JobDefinitionError, "needs a job, got 'job'"),  # type: ignore[call-overload]
        (lambda: perform(Silent()), JobDefinitionError, "Silent has no handler"),
        (lambda: perform(Unit(), attempt=0), JobValueError, "1 or more, got 0"),
        (lambda: perform(Unit(), state={1: 2}), PayloadError, "state"),  # type: ignore[dict-item]
    ],
    ids=["no job", "no handler", "attempt", "state"],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    """What cannot be performed is refused, with the fix."""
    with pytest.raises(error, match=message):
        call()


# With a session


def test_effects_are_kept(kit: Kit) -> None:
    """With a session the job is added to it, and what the handler writes is there."""
    ada = Customer(name="Ada")

    async def handler(job: Any, ctx: Any) -> int:
        await ok(ctx.session.refresh(job, ["customer"]))
        ctx.session.add(Note(text=job.customer.name))
        await ok(ctx.checkpoint(done=1))
        return int(ctx.attempt)

    kit.handle(handler)
    job = Task(customer=ada)

    assert result_of(kit.run(perform(job, session=kit.session, attempt=2))) == 2
    assert kit.notes() == ["Ada"]
    assert job.customer is ada
    assert (job.state, job.attempt, job.lease_token) == ("available", 0, 0)


def test_effects_of_a_failure_roll_back(both: Kit) -> None:
    """Writes after the last checkpoint are undone by an exception or raised outcome."""

    async def handler(job: Any, ctx: Any) -> None:
        ctx.session.add(Note(text=f"kept {job.n}"))
        await ok(ctx.checkpoint())
        ctx.session.add(Note(text=f"lost {job.n}"))
        await ok(ctx.session.flush())
        raise Retry("later") if job.n else ValueError("as planned")

    both.handle(handler)

    with pytest.raises(ValueError, match="as planned"):
        both.run(perform(Task(n=0), session=both.session))
    assert isinstance(both.run(perform(Task(n=1), session=both.session)), Retry)
    assert both.notes() == ["kept 0", "kept 1"]


def test_sync_handler_under_an_async_session(both: Kit) -> None:
    """A sync handler runs with either session."""
    assert result_of(both.run(perform(Always(n=3), session=both.session))) == 3
    assert both.notes() == ["always 3"]


def test_async_handler_needs_an_async_session(sync: Kit) -> None:
    """A sync session is refused for an async handler."""
    with pytest.raises(JobDefinitionError, match="the handler of Awaits"):
        perform(Awaits(), session=sync.session)


def test_job_of_the_session_is_performed(both: Kit) -> None:
    """A job that is enqueued is performed without being taken from the queue."""
    job = both.add(Always(n=1))
    both.flush()

    assert result_of(both.run(perform(job, session=both.session))) == 1
    assert both.scalars(select(Job.state)) == ["available"]


def test_no_table_is_needed_unless_a_session_is_given(tables: Engine) -> None:
    """The tests above do without a table: there is none."""
    from sqlalchemy import inspect

    assert not inspect(tables).has_table("tested_nowhere")
