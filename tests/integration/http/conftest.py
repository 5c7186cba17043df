"""Fixtures: an application with job classes, served over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, delete
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_jobs import Arg, JobMixin, arg
from sqla_jobs.http import create_app
from tests.integration.http.kit import Client, serving
from tests.security.roles import AsApplication

TOKENS = {
    "enqueue-secret": {"enqueue"},
    "work-secret": {"work"},
    "admin-secret": {"admin"},
    "all-secret": {"enqueue", "work", "admin"},
}


class Base(DeclarativeBase):
    """The application's own."""


class Invoice(Base):
    """A domain row that jobs refer to."""

    __tablename__ = "http_invoices"
    id: Mapped[int] = mapped_column(primary_key=True)


class Job(JobMixin, Base):
    """The job table."""

    __tablename__ = "http_jobs"


class Send(Job, kind="send", queue="mail", max_attempts=3, aliases=["old_send"]):
    """A kind with arguments of several types, and a column of its own."""

    __payload_limit__ = 2_000
    subject: Arg[str]
    due: Arg[datetime | None] = arg(default=None)
    copies: Arg[int] = arg(default=1)
    invoice_id: Mapped[int | None] = mapped_column(ForeignKey("http_invoices.id"))


@pytest.fixture(scope="session")
def maker(
    engine: Engine, as_application: AsApplication
) -> Iterator[sessionmaker[Session]]:
    """Yield the application's sessionmaker; its tables are made."""
    Base.metadata.create_all(engine)
    yield sessionmaker(as_application(engine, Base.metadata))
    Base.metadata.drop_all(engine)


@pytest.fixture
def session(maker: sessionmaker[Session]) -> Iterator[Session]:
    """Yield a session; no row of an earlier test is there."""
    with maker() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
        session.commit()
        yield session


@pytest.fixture(scope="session")
def open_client(maker: sessionmaker[Session]) -> Iterator[Client]:
    """Yield a client of a service without tokens."""
    with serving(create_app(maker, Job)) as client:
        yield client


@pytest.fixture
def client(open_client: Client, session: Session) -> Client:
    """Return a client of a service without tokens; the tables are empty."""
    return open_client


@pytest.fixture(scope="session")
def guarded(maker: sessionmaker[Session]) -> Iterator[Client]:
    """Yield a client, without a token, of a service that asks for them."""
    with serving(create_app(maker, Job, tokens=TOKENS)) as client:
        yield client


def row(session: Session, job_id: int) -> Any:
    """Return a job with fresh values."""
    session.rollback()
    found = session.get(Job, job_id)
    assert found is not None
    return found
