"""The job classes of the operators' tests: arguments, columns, tables, an archive."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ForeignKey, LargeBinary, Numeric, RowMapping, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqla_jobs import Arg, JobMixin, Retention, arg
from sqla_jobs.models import job_tables
from tests.conformance import factories
from tests.conformance.factories import DAY, NOW

MONTH = timedelta(days=30)


class Base(DeclarativeBase):
    """The application's."""


class Invoice(Base):
    """A domain class."""

    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    paid: Mapped[bool] = mapped_column(default=False)


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "jobs"


class Send(Job, kind="send", aliases=["old_send"], queue="mail"):
    """Has arguments, a column and a relationship."""

    subject: Arg[str] = arg(default="")
    copies: Arg[int] = arg(default=1)
    invoice_id: Mapped[int | None] = mapped_column(ForeignKey("invoices.id"))
    invoice: Mapped[Invoice | None] = relationship()


class Urgent(Send, kind="urgent"):
    """A kind under another one."""


class Call(Job, kind="call"):
    """Has an argument that is required."""

    number: Arg[str]


class Keyed(Job, kind="keyed", unique=("args", "queue")):
    """Its unique key is computed."""

    number: Arg[str]


class Report(Job, kind="report"):
    """Has a table of its own."""

    __tablename__ = "reports"
    title: Mapped[str] = mapped_column(default="")


class Filed(Job, kind="filed", retention=Retention(discarded=MONTH, archive=True)):
    """Goes to the archive, with columns of its own."""

    price: Mapped[Any | None] = mapped_column(Numeric(10, 2))
    scan: Mapped[bytes | None] = mapped_column(LargeBinary)


class FiledReport(
    Report, kind="filed_report", retention=Retention(completed=2 * DAY, archive=True)
):
    """Goes to the archive, with the columns of two tables of its own."""

    __tablename__ = "filed_reports"
    pages: Mapped[int] = mapped_column(default=0)


class Other(JobMixin, Base):
    """A second root."""

    __tablename__ = "other_jobs"


class Tick(Other, kind="tick"):
    """A job of the second root."""

    subject: Arg[str] = arg(default="")


TABLES = job_tables(Job)


def add(session: Session, job: Any, /, **columns: Any) -> int:
    """Store *job*, write its *columns*, whatever they are, and return its id."""
    session.add(job)
    session.flush()
    made: int = job.id
    if columns:
        table = job_tables(job).table
        session.connection().execute(
            table.update().where(table.c.id == made).values(columns)
        )
        session.expire(job)
    return made


def log_attempt(session: Session, job_id: int, token: int, **columns: Any) -> None:
    """Store an attempt of a job."""
    row = {
        "job_id": job_id,
        "lease_token": token,
        "number": token,
        "finished_at": NOW,
        "outcome": "retry",
        **columns,
    }
    session.execute(insert(TABLES.attempts).values(row))


def row_of(session: Session, job_id: int, job_class: type[Any] = Job) -> RowMapping:
    """Return a job's row, with the columns of this application."""
    return factories.row_of(session, job_id, job_class)
