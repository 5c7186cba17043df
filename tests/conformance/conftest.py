"""Fixtures of the protocol's tests: one set of job tables, empty for each test."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, MetaData, create_engine, make_url, text
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs import JobValueError
from sqla_jobs._store.heads import _shared_memory
from tests.conformance.factories import Base, Elsewhere
from tests.drivers.portal import portal
from tests.security.roles import AsApplication

CORE = {"test_settle", "test_enqueue_many", "test_ordered_ids"}
"""The modules whose tests run on several drivers; --driver runs all of them on one."""


@pytest.fixture(autouse=True)
def forget() -> None:
    """Let no test go by what claims of another one left for the next claim."""
    _shared_memory.cache_clear()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the core on the drivers that most applications use."""
    chosen = metafunc.config.getoption("driver") != "psycopg"
    chosen = chosen or metafunc.config.getoption("roles")
    core = metafunc.definition.path.stem in CORE
    if core and not chosen and "engine_driver" in metafunc.fixturenames:
        drivers = ["psycopg", "asyncpg", "psycopg2"]
        metafunc.parametrize("engine_driver", drivers, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Skip what starts a `Runner` where --driver leaves no sync engine for it."""
    try:
        return (yield)
    except JobValueError as exc:
        chosen = pyfuncitem.config.getoption("driver") != "psycopg"
        if chosen and "needs a sync engine" in str(exc):
            pytest.skip(str(exc))
        raise


@pytest.fixture(scope="session")
def engine_driver(request: pytest.FixtureRequest) -> str:
    """Return the driver of the tests."""
    return str(getattr(request, "param", request.config.getoption("driver")))


@pytest.fixture(scope="session")
def engine(dsn: str, engine_driver: str) -> Iterator[Engine]:
    """Yield an engine on this process's database; an async driver works there too."""
    url = make_url(dsn).set(drivername=f"postgresql+{engine_driver}")
    with ExitStack() as stack:
        if url.get_dialect().is_async:
            stack.enter_context(portal())
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def job_engine(engine: Engine) -> Iterator[Engine]:
    """Yield an engine with the tables of the factories, in a schema of their own."""
    schema = f"protocol_{uuid4().hex[:12]}"
    own = engine.execution_options(schema_translate_map={None: schema})
    with engine.begin() as connection:
        connection.execute(CreateSchema(schema))
    Base.metadata.create_all(own)
    yield own
    with engine.begin() as connection:
        connection.execute(DropSchema(schema, cascade=True))


@pytest.fixture(scope="session")
def metadata() -> MetaData:
    """Return the tables of `job_engine`."""
    return Base.metadata


@pytest.fixture
def app_engine(
    job_engine: Engine, metadata: MetaData, as_application: AsApplication
) -> Engine:
    """Return the application's engine; with --roles that of who owns no table."""
    return as_application(job_engine, metadata)


@pytest.fixture
def session(app_engine: Engine) -> Iterator[Session]:
    """Yield a session that is rolled back: for tests that need no second one."""
    with Session(app_engine) as session:
        yield session


@pytest.fixture
def sessions(app_engine: Engine, job_engine: Engine) -> Iterator[sessionmaker[Session]]:
    """Yield a maker of sessions that may commit; the tables are emptied afterwards."""
    yield sessionmaker(app_engine)
    schema = job_engine.get_execution_options()["schema_translate_map"][None]
    names = ", ".join(f"{schema}.{table.name}" for table in Base.metadata.sorted_tables)
    with job_engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names}"))


@pytest.fixture
def elsewhere(sessions: sessionmaker[Session]) -> Elsewhere:
    """Return another worker, whose transactions commit."""
    return Elsewhere(sessions)
