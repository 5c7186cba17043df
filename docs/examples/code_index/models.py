"""The application's tables. One of them, `Job`, is the whole job system."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_jobs import JobMixin


class Base(DeclarativeBase):
    """The application's own declarative base."""


class Job(JobMixin, Base):
    """Every job of the application; the kinds of jobs are in jobs.py."""

    __tablename__ = "jobs"


class Module(Base):
    """A source file."""

    __tablename__ = "modules"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    path: Mapped[str] = mapped_column(unique=True)
    lines: Mapped[int | None]
    error: Mapped[str | None]


class Symbol(Base):
    """A class, function or method that a module defines."""

    __tablename__ = "symbols"

    id: Mapped[int] = mapped_column(primary_key=True)
    module_id: Mapped[int] = mapped_column(ForeignKey("modules.id"), index=True)
    module: Mapped[Module] = relationship()
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(index=True)
    line: Mapped[int]


class Import(Base):
    """A name that a module imports, such as `os.path.join`."""

    __tablename__ = "imports"

    id: Mapped[int] = mapped_column(primary_key=True)
    module_id: Mapped[int] = mapped_column(ForeignKey("modules.id"), index=True)
    module: Mapped[Module] = relationship()
    name: Mapped[str]
    line: Mapped[int]


class CrossReference(Base):
    """The module that an import leads to."""

    __tablename__ = "cross_references"

    id: Mapped[int] = mapped_column(primary_key=True)
    import_id: Mapped[int] = mapped_column(ForeignKey("imports.id"), index=True)
    module_id: Mapped[int] = mapped_column(ForeignKey("modules.id"), index=True)
    import_: Mapped[Import] = relationship()
    module: Mapped[Module] = relationship()
