"""The same protocol on other isolation levels, names, settings and drivers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import (
    Engine,
    MetaData,
    create_engine,
    func,
    make_url,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs import JobMixin, LeaseLost, check
from sqla_jobs._dialects import dialect_of
from sqla_jobs._store import verbs
from sqla_jobs._store.claim import Claim, claim, claim_jobs
from sqla_jobs._store.lease import settled_state
from sqla_jobs._store.operate import request_cancel, requeue
from sqla_jobs._store.retention import apply_retention, purge
from sqla_jobs._store.runners import (
    RunnerInfo,
    forget_runner,
    unknown_kinds,
    upsert_runner,
)
from sqla_jobs._store.sweep import rescue, stage
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    LEASE,
    NOW,
    SECOND,
    Effect,
    Elsewhere,
    Job,
    claim_one,
    make_job,
    row_of,
)


def claimed(session: Session) -> Claim:
    """Make a job and claim it."""
    return claim_one(session, make_job(session))


def take_over(session: Session, held: Claim) -> Claim:
    """Rescue the job and claim it anew, as another worker would."""
    now = held.leased_until + SECOND
    rescue(session, Job, now=now)
    return claim_one(session, held.job_id, now=now)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("early", [True, False], ids=["old snapshot", "new snapshot"])
def test_stale_holder_at_any_isolation(
    job_engine: Engine,
    elsewhere: Elsewhere,
    level: str,
    early: bool,
) -> None:
    """A snapshot from before the takeover does not let the old holder through."""
    held = elsewhere(claimed)
    own = job_engine.execution_options(isolation_level=level)
    with Session(own) as session:
        if early:
            row_of(session, held.job_id)
        elsewhere(take_over, held)
        session.add(Effect(note="stale"))
        session.flush()

        with pytest.raises((LeaseLost, DBAPIError)) as caught:
            verbs.complete(session, held)

        if isinstance(caught.value, DBAPIError):
            assert early
            assert level != "READ COMMITTED"
            assert dialect_of(session).is_conflict(caught.value)
    effects = select(func.count()).select_from(Effect)
    assert elsewhere(lambda session: session.scalar(effects)) == 0
    assert elsewhere(row_of, held.job_id)["state"] == "running"


class OddBase(DeclarativeBase):
    """A base in a schema whose name needs quotes."""

    metadata = MetaData(schema="Odd Schema")


class OddJob(JobMixin, OddBase):
    """A job table with a name and columns that could collide with ours."""

    __tablename__ = "my jobs"
    p_now: Mapped[str | None] = mapped_column(default=None)
    param_1: Mapped[str | None] = mapped_column(default=None)
    state_1: Mapped[str | None] = mapped_column(default=None)


class OddWork(OddJob, kind="odd"):
    """Its only kind."""

    p_limit: Mapped[int | None] = mapped_column(default=None)


@pytest.fixture(scope="module")
def odd_dsn(engine: Engine, dsn: str) -> Iterator[str]:
    """Yield the URL of a database with the tables of `OddBase`."""
    with engine.begin() as connection:
        connection.execute(CreateSchema("Odd Schema"))
    OddBase.metadata.create_all(engine)
    yield dsn
    with engine.begin() as connection:
        connection.execute(DropSchema("Odd Schema", cascade=True))


def every_function(session: Session) -> None:
    """Call each function of the protocol, most on rows they change."""
    tables, far = job_tables(OddJob), NOW + timedelta(days=99)
    session.add_all([OddWork(queue=f"q{n % 3}") for n in range(12)])
    session.flush()
    held = claim(session, OddJob, limit=6)
    slots = {"q0": 2, "q1": 1, "q2": 0}
    mapped = claim_jobs(
        session,
        tables,
        kinds=["odd"],
        queues=slots,
        limit=3,
        lease=LEASE,
        runner_id=(runner := uuid4()),
    )
    assert (len(held), len(mapped)) == (6, 3)
    verbs.complete(session, held[0], {"ok": True})
    verbs.fail(session, held[1], "no")
    verbs.snooze(session, held[2], after=SECOND)
    verbs.checkpoint(session, held[3], {"n": 1}, extra_attempts=1)
    assert verbs.renew(session, held[3:5]) == frozenset()
    verbs.release(session, held[4])
    verbs.discard(session, held[5])
    assert request_cancel(session, OddJob, [held[3].job_id]).requested
    assert requeue(session, OddJob, held[5].job_id).requeued
    assert settled_state(session, tables, held[0].job_id, 1) == "completed"
    assert unknown_kinds(session, tables, []) == ["odd"]
    info = RunnerInfo(runner, "name", "host", 1, slots, ["odd"])
    upsert_runner(session, tables, info)
    upsert_runner(session, tables, info)
    forget_runner(session, tables, runner)
    assert len(rescue(session, OddJob, now=far)) == 4
    assert stage(session, OddJob, now=far).count == 2
    assert purge(session, OddJob, queues=["q0", "q1", "q2"], now=far) > 0
    apply_retention(session, tables, now=far)


STARTS_WITH = pytest.mark.direct("poolers refuse options at the start")
CONNECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without a statement cache": {"query_cache_size": 0},
    "repeatable read": {"isolation_level": "REPEATABLE READ"},
    "another time zone": {"connect_args": {"options": "-c timezone=Asia/Kathmandu"}},
    "generic plans": {
        "connect_args": {
            "prepare_threshold": 0,
            "options": "-c plan_cache_mode=force_generic_plan",
        }
    },
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(value, id=name, marks=STARTS_WITH if "-c" in str(value) else ())
        for name, value in CONNECTIONS.items()
    ],
)
def test_protocol_works_on_any_connection(
    odd_dsn: str, options: dict[str, Any]
) -> None:
    """Names that need quotes, and whatever the application sets, change nothing."""
    own = create_engine(odd_dsn, **options)
    check(own, OddJob)
    with Session(own) as session:
        every_function(session)
    own.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_protocol_works_on_async_drivers(odd_dsn: str, driver: str) -> None:
    """The same functions run under ``AsyncSession.run_sync``."""
    url = make_url(odd_dsn).set(drivername=f"postgresql+{driver}")

    async def work() -> None:
        own = create_async_engine(url)
        async with AsyncSession(own) as session:
            await session.run_sync(every_function)
        await own.dispose()

    asyncio.run(work())
