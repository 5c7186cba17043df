"""Fixtures: the application's tables, empty for each test, and drivers to run jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import AsyncRunner, Runner
from sqla_jobs.handlers import Handler
from tests.security.app import CANARY, Base, Job, Pay

DRIVERS = ("psycopg", "psycopg2", "asyncpg")


@pytest.fixture(scope="session")
def tables(engine: Engine) -> Iterator[Engine]:
    """Yield an engine on a database with the application's tables."""
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)


@pytest.fixture
def maker(tables: Engine) -> Iterator[sessionmaker[Session]]:
    """Yield the application's sessionmaker; the tables are emptied afterwards."""
    yield sessionmaker(tables)
    names = ", ".join(Base.metadata.tables)
    with tables.begin() as connection:
        connection.execute(text(f"TRUNCATE {names}"))


@pytest.fixture
def drain(dsn: str, maker: sessionmaker[Session]) -> Iterator[Callable[..., None]]:
    """Yield what runs all jobs, with a handler, through the runner of a driver."""
    url = make_url(dsn).set(password=CANARY)

    def run(driver: str, handler: Any, **options: Any) -> None:
        own = url.set(drivername=f"postgresql+{driver}")
        made = Handler(handler, driver == "asyncpg", None, False)
        setattr(Pay, "__job_handler__", made)  # noqa: B010
        if driver == "asyncpg":
            asyncio.run(run_async(own, options))
            return
        engine = create_engine(own)
        Runner(sessionmaker(engine), Job, kinds=[Pay], **options).run_until_idle()
        engine.dispose()

    async def run_async(own: Any, options: dict[str, Any]) -> None:
        engine = create_async_engine(own)
        maker = async_sessionmaker(engine)
        await AsyncRunner(maker, Job, kinds=[Pay], **options).run_until_idle()
        await engine.dispose()

    yield run
    delattr(Pay, "__job_handler__")


class Lines(logging.Handler):
    """Keeps what every formatter could print of the library's records."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record, its traceback and its fields."""
        logged = logging.Formatter().format(record)
        self.text += f"{logged} {record.args!r} {vars(record)!r}\n"


@pytest.fixture
def logged() -> Iterator[Lines]:
    """Yield all that the library logs, down to DEBUG."""
    log, lines = logging.getLogger("sqla_jobs"), Lines()
    level = log.level
    log.addHandler(lines)
    log.setLevel(logging.DEBUG)
    yield lines
    log.removeHandler(lines)
    log.setLevel(level)
