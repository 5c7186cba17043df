"""Every line here must be accepted by mypy --strict and pyright strict."""

# pyright: strict, reportUnusedExpression=false

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import msgspec
import pydantic
from sqlalchemy import ForeignKey, select, update
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from sqla_jobs import (
    Arg,
    JobMixin,
    JobState,
    JobStatus,
    Outcome,
    Retention,
    arg,
    constant,
    dead_letters,
    exponential,
    handles,
    purge,
    request_cancel,
    requeue,
    wait,
)
from sqla_jobs.testing import (
    ManualClock,
    all_enqueued,
    assert_enqueued,
    drain,
    perform,
    refute_enqueued,
    run_one,
)


class Base(DeclarativeBase): ...


class DataBase(MappedAsDataclass, DeclarativeBase): ...


class AsyncBase(AsyncAttrs, DeclarativeBase): ...


class Invoice(Base):
    __tablename__ = "invoices"

    id: Mapped[int] = mapped_column(primary_key=True)


class Job(JobMixin, Base):
    __tablename__ = "jobs"


class SendInvoice(
    Job,
    kind="send_invoice",
    aliases=("mail_invoice",),
    queue="mail",
    priority=3,
    max_attempts=5,
    backoff=exponential(cap=timedelta(minutes=17)),
    timeout=timedelta(minutes=1),
    lease=timedelta(seconds=30),
    retention=Retention(completed=None),
    load="invoice",
):
    to: Arg[str]
    subject: Arg[str] = arg(default="")
    copies: Arg[int | None] = arg(default=None)
    labels: Arg[list[str]] = arg(default_factory=list)
    token: Arg[str] = arg(default="", secret=True)
    invoice_id: Mapped[int | None] = mapped_column(ForeignKey("invoices.id"))
    invoice: Mapped[Invoice | None] = relationship()

    def run(self, ctx: object) -> None:
        assert_type(self.subject, str)


class SendFast(SendInvoice):
    speed: Arg[float]

    async def go(self) -> float:
        return self.speed


class Import(Job):
    __tablename__ = "imports"

    path: Mapped[str] = mapped_column()


class DataJob(JobMixin, DataBase):
    __tablename__ = "data_jobs"


class DataSend(DataJob, kind="send"):
    size: Mapped[int | None] = mapped_column(default=None)
    to: Arg[str]


class AsyncJob(JobMixin, AsyncBase):
    __tablename__ = "async_jobs"


class AsyncSend(AsyncJob):
    to: Arg[str] = arg(secret=True)

    async def run(self, ctx: object) -> str:
        return self.to


class Untyped(Job):
    def run(self, ctx: Any) -> Any: ...


job = SendInvoice(to="a")
SendInvoice(
    to="a",
    subject="Hi",
    copies=3,
    labels=["x"],
    invoice=Invoice(),
    invoice_id=3,
    queue="mail",
    channel="c",
    priority=3,
    run_at=datetime.now(UTC),
    max_attempts=3,
    backoff=constant(timedelta(seconds=3)),
    timeout=timedelta(seconds=3),
    lease=timedelta(seconds=3),
    tags=["a"],
    payload={"a": 1},
    payload_bytes=b"x",
    meta={"trace": "x"},
)
SendInvoice(to="a", delay=timedelta(seconds=3))
SendInvoice(to="a", ordered=True, hold_for=timedelta(seconds=3))
SendInvoice(to="a", unique_key="k", fingerprint="f", on_conflict="skip")
assert_type(job.duplicate_of, int | None)
SendFast(to="a", speed=3.0)
Import(path="/x")
Import()
DataSend(to="a", size=3, queue="q")
AsyncSend(to="a", delay=timedelta(1))

assert_type(job.id, int)
assert_type(job.to, str)
assert_type(job.copies, int | None)
assert_type(job.labels, list[str])
assert_type(job.invoice, Invoice | None)
assert_type(job.backoff, str)
assert_type(job.run_at, datetime)
assert_type(job.timeout, timedelta | None)
assert_type(job.payload, dict[str, Any])
job.subject = "b"
job.queue = "other"


def queries(session: Session) -> None:
    found = select(SendInvoice).where(SendInvoice.subject == "Hi", Job.queue == "mail")
    assert_type(session.scalars(found).all(), Sequence[SendInvoice])
    assert_type(
        session.scalars(select(SendInvoice.copies)).all(), Sequence[int | None]
    )
    claimed = update(Job).values(attempt=1).returning(Job)
    assert_type(session.scalars(claimed).all(), Sequence[Job])
    session.scalars(select(SendInvoice).order_by(SendInvoice.subject.desc()))
    paused = select(Job.Queue.name).where(Job.Queue.paused)
    assert_type(session.scalars(paused).all(), Sequence[str])
    errors = select(Job.Attempt.error).where(Job.Attempt.job_id == job.id)
    assert_type(session.scalars(errors).all(), Sequence[str | None])


@handles(SendInvoice, SendFast)
def send(job: SendInvoice, ctx: object) -> str:
    return job.subject


assert_type(send(job, None), str)


def operating(session: Session, maker: sessionmaker[Session]) -> None:
    request_cancel(session, Job, where=SendInvoice.to == "a")
    request_cancel(session, Job, 3)
    request_cancel(session, Job, fingerprint="f", reason="no")
    requeue(session, Job, where=Job.ordered, changes={"queue": "mail", "to": "b"})
    purge(session, Job, ids=[1, 2], where=SendInvoice.invoice_id.is_(None))
    assert_type(dead_letters(session, SendInvoice)[0].to, str)
    assert_type(wait(maker, job, timedelta(seconds=1)), JobStatus)
    assert_type(wait(lambda: session, 1, timedelta(seconds=1)), JobStatus)


async def async_operating(maker: async_sessionmaker[AsyncSession]) -> None:
    assert_type(await wait(maker, 1, timedelta(seconds=1), job_class=Job), JobStatus)
    async with maker() as session:
        await session.run_sync(request_cancel, Job, where=SendInvoice.to == "a")
        letters = await session.run_sync(dead_letters, SendInvoice, limit=3)
        assert_type(letters, list[SendInvoice])


def testing(session: Session, scope: scoped_session[Session]) -> None:
    clock = ManualClock(session)
    assert_type(run_one(session), JobState | None)
    assert_type(run_one(scope, job, clock=clock, kinds=[SendFast]), JobState | None)
    assert run_one(session, SendFast, queues=["mail"], raise_errors=False) == "completed"
    assert drain(scope, limit=3, with_retries=True) == {"completed": 1}
    assert_type(perform(job, session=session, attempt=2), Outcome)
    assert_type(assert_enqueued(session, SendInvoice, subject="Hi"), SendInvoice)
    assert_type(assert_enqueued(scope, SendInvoice, count=2), list[SendInvoice])
    assert_type(all_enqueued(session, Job), list[Job])
    refute_enqueued(session, SendInvoice, run_at=clock.now())


async def async_testing(session: AsyncSession) -> None:
    clock = ManualClock(session)
    assert_type(await run_one(session, clock=clock), JobState | None)
    assert await drain(session) == {"completed": 1}
    assert_type(await perform(AsyncSend(to="a")), Outcome)
    assert_type(await perform(job, session=session), Outcome)
    assert_type(perform(Untyped()), Any)
    assert_type(await assert_enqueued(session, SendInvoice), SendInvoice)
    assert_type(await assert_enqueued(session, AsyncSend, count=1), list[AsyncSend])
    assert_type(await all_enqueued(session, Job), list[Job])
    await refute_enqueued(session, SendInvoice)


class Address(pydantic.BaseModel):
    city: str


class Point(msgspec.Struct):
    x: int


class Ship(Job, kind="ship"):
    to: Arg[Address]
    via: Arg[list[Point]] = arg(default_factory=list)


ship = Ship(to=Address(city="Bern"), via=[Point(x=1)])
assert_type(ship.to, Address)
assert_type(ship.to.city, str)
assert_type(ship.via, list[Point])
