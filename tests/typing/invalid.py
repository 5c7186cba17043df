"""Each marked line must be refused by mypy --strict and pyright strict; no other."""

# pyright: strict, reportUnusedExpression=false

from __future__ import annotations

from sqlalchemy import ForeignKey, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    relationship,
)

from sqla_jobs import Arg, JobMixin, arg, handles
from sqla_jobs.testing import assert_enqueued, drain, perform, run_one


class Base(DeclarativeBase): ...


class DataBase(MappedAsDataclass, DeclarativeBase): ...


class Invoice(Base):
    __tablename__ = "invoices"

    id: Mapped[int] = mapped_column(primary_key=True)


class Job(JobMixin, Base):
    __tablename__ = "jobs"


class SendInvoice(Job, kind="send_invoice", queue="mail"):
    to: Arg[str]
    copies: Arg[int] = arg(default=1)
    invoice_id: Mapped[int | None] = mapped_column(ForeignKey("invoices.id"))
    invoice: Mapped[Invoice | None] = relationship()


class DataJob(JobMixin, DataBase):
    __tablename__ = "data_jobs"


class DataSend(DataJob, kind="send"):
    size: Mapped[int | None] = mapped_column(default=None)
    to: Arg[str]


class WrongDefault(Job):
    copies: Arg[int] = arg(default="")  # error
    token: Arg[int] = arg(default="", secret=True)  # error
    key: Arg[str] = arg(secret="yes")  # error


SendInvoice()  # error
SendInvoice(to=3)  # error
SendInvoice(to=None)  # error
SendInvoice("a")  # error
SendInvoice(to="a", copies="many")  # error
SendInvoice(to="a", subjet="Hi")  # error
SendInvoice(to="a", queue=3)  # error
SendInvoice(to="a", priority="high")  # error
SendInvoice(to="a", delay=3)  # error
SendInvoice(to="a", backoff="exponential")  # error
SendInvoice(to="a", timeout=3)  # error
SendInvoice(to="a", run_at="now")  # error
SendInvoice(to="a", state="running")  # error
SendInvoice(to="a", kind="other")  # error
SendInvoice(to="a", lease_token=3)  # error
SendInvoice(to="a", invoice_id="x")  # error
SendInvoice(to="a", invoice=3)  # error
SendInvoice(to="a", unique_key=3)  # error
SendInvoice(to="a", fingerprint=3)  # error
SendInvoice(to="a", on_conflict=True)  # error
SendInvoice(to="a", duplicate_of=3)  # error
DataSend()  # error
DataSend(to=3)  # error
DataSend(to="a", size="x")  # error
DataSend(to="a", queue=3)  # error

job = SendInvoice(to="a")
job.to = 3  # error
job.copies + "x"  # error
length: int = SendInvoice(to="a").to  # error
SendInvoice.nothing  # error
select(SendInvoice).where(SendInvoice.nothing == "x")  # error
handles("SendInvoice")  # error


async def testing(session: Session, asession: AsyncSession) -> None:
    await run_one(session)  # error
    await drain(session)  # error
    run_one(session, queue="mail")  # error
    drain(session, limit="all")  # error
    perform("job")  # error
    drain(asession)  # error
    perform(job, attempts=3)  # error
    assert_enqueued(session, Invoice)  # error
    assert_enqueued(session, SendInvoice).subject  # error
