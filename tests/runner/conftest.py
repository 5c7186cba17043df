"""Fixtures of the runner tests: one application, run by threads and by asyncio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.runner.harness import Base, Kit

SHELLS = {
    "psycopg": ["threads", "aio"],
    "asyncpg": ["aio-asyncpg"],
    "psycopg2": ["threads-psycopg2"],
}
"""What can run the jobs, by driver."""

CORE = {"test_promises", "test_running", "test_settling", "test_fence"}
"""The modules whose tests run on all drivers; --driver runs all of them on one."""


@pytest.fixture(scope="session")
def tables(engine: Engine) -> Engine:
    """Return an engine on a database with the application's tables."""
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture(scope="session")
def runner_dsn(
    dsn: str, tables: Engine, request: pytest.FixtureRequest
) -> Iterator[str]:
    """Yield the URL of the runners; with --roles theirs is the role of workers."""
    if not request.config.getoption("roles"):
        yield dsn
        return
    from tests.security.roles import least_privileges

    with least_privileges(tables, Base.metadata) as roles:
        yield roles.dsn("work")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test in all shells, the core of them on all drivers."""
    driver = str(metafunc.config.getoption("driver"))
    shells = SHELLS[driver]
    if driver == "psycopg" and metafunc.definition.path.stem in CORE:
        shells = [shell for each in SHELLS.values() for shell in each]
    for name in {"kit", "own"} & set(metafunc.fixturenames):
        metafunc.parametrize(name, shells, indirect=True)


def shell_of(request: pytest.FixtureRequest, shell: str) -> str:
    """Return the first of the driver's shells that is like *shell*."""
    driver = str(request.config.getoption("driver"))
    for found in SHELLS[driver]:
        if found.startswith(shell):
            return found
    pytest.skip(f"{driver} has no such engine")


@pytest.fixture
def kit(
    request: pytest.FixtureRequest, runner_dsn: str, tables: Engine
) -> Iterator[Kit]:
    """Yield the application with empty tables, for each runner in turn."""
    kit = Kit(runner_dsn, tables, request.param)
    yield kit
    kit.close()


@pytest.fixture
def threads(
    request: pytest.FixtureRequest, runner_dsn: str, tables: Engine
) -> Iterator[Kit]:
    """Yield the application for tests that only concern threads."""
    kit = Kit(runner_dsn, tables, shell_of(request, "threads"))
    yield kit
    kit.close()


@pytest.fixture
def aio(
    request: pytest.FixtureRequest, runner_dsn: str, tables: Engine
) -> Iterator[Kit]:
    """Yield the application for tests that only concern asyncio."""
    kit = Kit(runner_dsn, tables, shell_of(request, "aio"))
    yield kit
    kit.close()
