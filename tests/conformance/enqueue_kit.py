"""Job classes and helpers of the enqueue tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import Engine, ForeignKey, event, func, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs import Arg, JobMixin, arg
from sqla_jobs._store import wake
from tests.runner import harness


class Base(DeclarativeBase):
    """The application's."""


class Invoice(Base):
    """A domain class."""

    __tablename__ = "invoices"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "jobs"


class Send(Job, queue="mail", max_attempts=3):
    """Has an argument that is required."""

    subject: Arg[str]
    copies: Arg[int] = arg(default=1)


class Ping(Job):
    """Has no arguments."""


class Bill(Job):
    """Has columns in the job table."""

    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoices.id"))
    invoice: Mapped[Invoice] = relationship()
    note: Mapped[str | None] = mapped_column()


class Report(Job):
    """Has a table of its own."""

    __tablename__ = "reports"

    title: Mapped[str]


class Other(JobMixin, Base):
    """A second root."""

    __tablename__ = "other_jobs"


class Tick(Other):
    """A job of the second root."""


@contextmanager
def schema_for(base: Any, engine: Engine) -> Iterator[str]:
    """Yield the name of a new schema with the tables of *base*."""
    name = f"enqueue_{uuid4().hex[:12]}"
    with engine.begin() as connection:
        connection.execute(CreateSchema(name))
    try:
        base.metadata.create_all(in_schema(engine, name))
        wake.forget_recent()
        yield name
    finally:
        wake.forget_recent()
        with engine.begin() as connection:
            connection.execute(DropSchema(name, cascade=True))


def in_schema(engine: Any, name: str) -> Any:
    """Return *engine*, sync or async, for the tables of schema *name*."""
    return engine.execution_options(schema_translate_map={None: name})


@contextmanager
def executed(engine: Engine) -> Iterator[list[str]]:
    """Yield the list of what *engine* executes meanwhile, a word for each statement."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        statement = args[2]
        notifies = "pg_notify" in statement
        seen.append("NOTIFY" if notifies else " ".join(statement.split()[:1]))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


class Ear:
    """A connection that listens for wake-ups of one root."""

    def __init__(self, engine: Engine, root: type[Any] = Job) -> None:
        url = make_url(harness.DIRECT_URL or engine.url).set(drivername="postgresql")
        dsn = url.render_as_string(hide_password=False)
        self.raw = psycopg.connect(dsn, autocommit=True)
        self.engine = engine
        self.channel = root.__jobs__.channel_in(engine.get_execution_options())
        self.raw.execute(f'LISTEN "{self.channel}"'.encode())

    def heard(self) -> int:
        """Return how many wake-ups were committed since the last call."""
        # Notifications come in the order of commits, so ours is the last.
        with self.engine.begin() as connection:
            connection.execute(select(func.pg_notify(self.channel, "end")))
        payloads = []
        for notification in self.raw.notifies(timeout=10):
            payloads.append(notification.payload)
            if notification.payload == "end":
                return len(payloads) - 1
        raise AssertionError("the notification did not arrive")

    def close(self) -> None:
        """Close the connection."""
        self.raw.close()


def rows_of(session: Session, root: type[Any] = Job) -> list[dict[str, Any]]:
    """Return the rows of a job table by id, without keys and times."""
    table = root.__table__
    hidden = ("id", "created_at", "run_at")
    columns = [column for column in table.c if column.key not in hidden]
    found = session.connection().execute(select(*columns).order_by(table.c.id))
    return [dict(row) for row in found.mappings()]
