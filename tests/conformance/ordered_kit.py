"""The application of the tests of ordered sends."""

from __future__ import annotations

from sqlalchemy import (
    ForeignKey,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_jobs import (
    Arg,
    JobMixin,
    arg,
)


class Base(DeclarativeBase):
    """The application's."""


class Note(Base):
    """A domain class."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "jobs"
    after_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))


class Send(Job, queue="mail"):
    """Is ordered if it says so."""

    number: Arg[int] = arg(default=0)


class Step(Job, queue="mail", ordered=True):
    """Is ordered if it does not say otherwise."""

    number: Arg[int] = arg(default=0)


class Report(Job, queue="mail", ordered=True):
    """Has a table of its own."""

    __tablename__ = "reports"
    title: Mapped[str | None]
