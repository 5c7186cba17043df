"""Fixtures for all tests: a database of this test process, and an engine on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine

DRIVERS = ("psycopg", "psycopg_async", "asyncpg", "psycopg2")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options that run the protocol's and the runners' tests another way."""
    parser.addoption(
        "--driver", choices=DRIVERS, default="psycopg", help="the driver of the tests"
    )
    parser.addoption(
        "--pooler", choices=["poll", "listen"], help="PgBouncer; how jobs are found"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what --pooler rules out."""
    if item.config.getoption("pooler"):
        from tests.pooler.plugin import skip_direct

        skip_direct(item)


@pytest.fixture(scope="session")
def dsn(sqla_jobs_dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of this process's database, which starts empty."""
    mode = request.config.getoption("pooler")
    if mode is None:
        yield sqla_jobs_dsn
        return
    from tests.pooler.plugin import pooled_dsn

    yield from pooled_dsn(mode, sqla_jobs_dsn)


@pytest.fixture(scope="session")
def engine(dsn: str) -> Iterator[Engine]:
    """Yield a psycopg engine on this process's database."""
    engine = create_engine(dsn)
    yield engine
    engine.dispose()
