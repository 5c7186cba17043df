"""One small application, tested through each kind of session that users have."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, ForeignKey, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from sqla_jobs import Arg, JobMixin, arg, constant
from sqla_jobs.handlers import Handler

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


class Base(DeclarativeBase):
    """The application's own."""


class Job(JobMixin, Base):
    """The job system."""

    __tablename__ = "tested_jobs"


class Customer(Base):
    """Something that jobs belong to."""

    __tablename__ = "tested_customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Note(Base):
    """What a handler writes for the application."""

    __tablename__ = "tested_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


class Task(Job, kind="task", backoff=constant(SECOND)):
    """A job whose handler the test gives."""

    n: Arg[int] = arg(default=0)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("tested_customers.id"))
    customer: Mapped[Customer | None] = relationship()


class Mail(Job, kind="mail", queue="mail"):
    """Another one, in another queue."""

    to: Arg[str]
    count: Arg[int] = arg(default=1)


class Silent(Job, kind="silent"):
    """A job without a handler."""


class Always(Job, kind="always"):
    """A job with a sync handler, whatever the session."""

    n: Arg[int] = arg(default=0)

    def run(self, ctx: Any) -> int:
        """Write a note."""
        ctx.session.add(Note(text=f"always {self.n}"))
        return self.n


class Awaits(Job, kind="awaits"):
    """A job with an async handler, whatever the session."""

    async def run(self, ctx: Any) -> str:
        """Do nothing."""
        return "awaited"


class OtherJob(JobMixin, Base):
    """A second job table."""

    __tablename__ = "tested_other_jobs"


class OtherTask(OtherJob, kind="other_task"):
    """A job of the second table."""

    def run(self, ctx: Any) -> None:
        """Do nothing."""


async def ok(value: Any) -> Any:
    """Await *value* if it is awaitable: the same handler serves both sessions."""
    return await value if inspect.isawaitable(value) else value


def step(coroutine: Any) -> Any:
    """Run a coroutine that never waits for a loop to its end."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a sync handler waited for an event loop")


KINDS = ["external", "plain", "scoped", "async", "async_external"]
"""Sessions in an outer transaction; never committed; per thread; the same, async."""


class Kit:
    """One test: its session, and its handlers."""

    def __init__(self, kind: str, session: Any, loop: asyncio.Runner | None) -> None:
        self.kind, self.session, self._loop = kind, session, loop
        self.is_async = loop is not None
        self._handled: set[type[Any]] = set()

    def run(self, value: Any) -> Any:
        """Return *value*, awaited if it is awaitable."""
        if inspect.isawaitable(value):
            assert self._loop is not None, "a sync session got an awaitable"
            return self._loop.run(ok(value))
        assert self._loop is None, "an AsyncSession got no awaitable"
        return value

    def call(self, helper: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a helper with the session; return what it returns, awaited."""
        return self.run(helper(self.session, *args, **options))

    def add(self, *objects: Any) -> Any:
        """Add to the session; return the first."""
        self.session.add_all(objects)
        return objects[0]

    def flush(self) -> None:
        """Flush the session."""
        self.run(self.session.flush())

    def scalars(self, statement: Any) -> list[Any]:
        """Return the first column of a query in the test's session."""
        return list(self.run(self.session.scalars(statement)).all())

    def notes(self) -> list[str]:
        """Return the texts of the notes the test can see."""
        return self.scalars(select(Note.text).order_by(Note.text))

    def handle(self, function: Any, cls: type[Any] = Task) -> Any:
        """Make the async *function* the handler of *cls* during this test."""
        if self.is_async:
            handler = Handler(function, is_async=True)
        else:

            def run(job: Any, ctx: Any) -> Any:
                return step(function(job, ctx))

            handler = Handler(run, is_async=False)
        cls.__job_handler__ = handler
        self._handled.add(cls)
        return function

    def forget(self) -> None:
        """Forget the handlers."""
        for cls in self._handled:
            del cls.__job_handler__


@contextmanager
def kit_of(kind: str, engine: Engine) -> Iterator[Kit]:
    """Yield a test with the kind of session."""
    if kind.startswith("async"):
        with asyncio.Runner() as loop, async_kit(kind, engine, loop) as kit:
            yield kit
        return
    with engine.connect() as connection:
        if kind == "external":
            outer = connection.begin()
            mode: Any = "create_savepoint"
            with Session(connection, join_transaction_mode=mode) as session:
                yield Kit(kind, session, None)
            if outer.is_active:  # unless a handler has ended it
                outer.rollback()
            return
        if kind == "scoped":
            scope = scoped_session(sessionmaker(engine, info={"tenant": "t"}))
            yield Kit(kind, scope, None)
            scope.remove()
            return
        with Session(engine) as session:
            yield Kit(kind, session, None)


@contextmanager
def async_kit(kind: str, engine: Engine, loop: asyncio.Runner) -> Iterator[Kit]:
    """Yield a test with an AsyncSession."""
    own = create_async_engine(engine.url)
    try:
        if kind == "async":
            session = AsyncSession(own, expire_on_commit=False)
            yield Kit(kind, session, loop)
            loop.run(session.close())
            return
        connection = loop.run(_entered(own.connect()))
        outer = loop.run(_entered(connection.begin()))
        session = AsyncSession(connection, join_transaction_mode="create_savepoint")
        yield Kit(kind, session, loop)
        loop.run(session.close())
        if outer.is_active:
            loop.run(outer.rollback())
        loop.run(connection.close())
    finally:
        loop.run(own.dispose())


async def _entered(thing: Any) -> Any:
    return await thing.start()


def rows(engine: Engine) -> dict[str, int]:
    """Return how many rows another connection sees in each table."""
    with engine.connect() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }
