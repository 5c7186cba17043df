"""advanced-alchemy: jobs on its bases, in its sessions, through its repositories."""

from __future__ import annotations

import asyncio
import logging
import warnings
from typing import Any

import pytest
from sqlalchemy import exc, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

from sqla_jobs import (
    Arg,
    AsyncContext,
    AsyncRunner,
    JobMixin,
    JobValueError,
    arg,
    enqueue_many,
    install,
)
from tests.conformance.model_kit import created
from tests.integration.frameworks.kit import require

require("advanced-alchemy")

with warnings.catch_warnings():
    # Its own business with SQLAlchemy 2.1; raised when it is imported.
    warnings.filterwarnings("ignore", "The declarative_mixin", exc.SADeprecationWarning)
    from advanced_alchemy import base as bases
    from advanced_alchemy.config import AsyncSessionConfig, SQLAlchemyAsyncConfig
    from advanced_alchemy.repository import SQLAlchemyAsyncRepository
    from advanced_alchemy.service import SQLAlchemyAsyncRepositoryService

ALL = sorted(
    name
    for name in dir(bases)
    if name.endswith("Base") and hasattr(getattr(bases, name), "registry")
)


class Job(JobMixin, bases.DefaultBase):
    """The job system, in advanced-alchemy's registry, which the process shares."""

    __tablename__ = "alchemy_jobs"


class Author(bases.UUIDAuditBase):
    """A table of the application's."""

    __tablename__ = "alchemy_authors"

    name: Mapped[str]


class Greet(Job):
    """A kind of job."""

    name: Arg[str] = arg(default="")

    async def run(self, ctx: AsyncContext) -> None:
        """Write a row."""
        ctx.session.add(Author(name=self.name))


class Import(Job):
    """A kind with a table of its own."""

    __tablename__ = "imports"
    path: Mapped[str]

    async def run(self, ctx: AsyncContext) -> None:
        """Do nothing."""


class GreetRepository(SQLAlchemyAsyncRepository[Greet]):
    """Jobs as rows of a repository."""

    model_type = Greet


class GreetService(SQLAlchemyAsyncRepositoryService[Greet, GreetRepository]):
    """Jobs as rows of a service."""

    repository_type = GreetRepository


def test_jobs_run_in_sessions_of_its_config(url: str) -> None:
    """Added by a session, a repository and a service; run by an AsyncRunner."""
    config = SQLAlchemyAsyncConfig(
        connection_string=url, session_config=AsyncSessionConfig(expire_on_commit=False)
    )

    async def run() -> None:
        maker: Any = install(config.create_session_maker())
        async with config.get_engine().begin() as connection:
            await connection.run_sync(Job.metadata.create_all)
        async with maker() as session:
            repository = GreetRepository(session=session)
            service = GreetService(session=session)
            session.add(Import(path="x"))
            one = await repository.add(Greet(name="a"))
            await repository.add_many([Greet(name="b"), Greet(name="c")])
            await service.create(Greet(name="d"))
            await session.commit()
            assert (await repository.get(one.id)).name == "a"

            with pytest.raises(JobValueError, match="'name' would be lost"):
                await session.execute(insert(Greet), [{"name": "e"}])

        await AsyncRunner(maker, Job, listen=False).run_until_idle()

        async with maker() as session:
            authors = await session.scalars(select(Author.name))
            assert sorted(authors) == ["a", "b", "c", "d"]
            repository = GreetRepository(session=session)
            assert await repository.count(Greet.state == "completed") == 4
            imports = await session.scalars(select(Import))
            assert [job.state for job in imports] == ["completed"]
        await config.get_engine().dispose()

    asyncio.run(run())


def test_tables_are_named_as_it_names_them() -> None:
    """Its bases name tables after classes; kinds of jobs share the job table."""
    assert Greet.__table__ is Job.__table__
    tables: Any = (Import.__table__, Job.__table__)
    assert tables[0].name == "imports"
    assert tables[1].primary_key.name == "pk_alchemy_jobs"


@pytest.mark.parametrize("name", ALL)
def test_every_base_carries_jobs(
    engine: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The key of a job is its own bigint, whatever key the base gives other tables."""
    caplog.set_level(logging.ERROR)

    class Own(getattr(bases, name)):  # type: ignore[misc]
        __abstract__ = True
        metadata = type(f"Meta{name}", (DeclarativeBase,), {}).metadata  # type: ignore[attr-defined]

    namespace = {"__tablename__": "jobs", "__module__": f"jobs_on_{name}"}
    root: Any = type("Job", (JobMixin, Own), namespace)
    kind: Any = type("Send", (root,), {"__module__": f"jobs_on_{name}"})

    assert root.__table__.primary_key.columns.keys() == ["id"]
    with created(Own, engine) as session:
        assert isinstance(session, Session)
        session.add_all([kind(), kind()])
        session.flush()
        assert enqueue_many(session, kind, [{} for _ in range(120)]) == 120
        assert session.scalar(select(func.max(root.id))) == 122
