"""Fixtures for all tests: a database of this test process, and an engine on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine

DRIVERS = ("psycopg", "psycopg_async", "asyncpg", "psycopg2")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--driver``, which runs the protocol's and the runners' tests on it."""
    parser.addoption(
        "--driver", choices=DRIVERS, default="psycopg", help="the driver of the tests"
    )


@pytest.fixture(scope="session")
def dsn(sqla_jobs_dsn: str) -> str:
    """Return the URL of this process's database, which starts empty."""
    return sqla_jobs_dsn


@pytest.fixture(scope="session")
def engine(dsn: str) -> Iterator[Engine]:
    """Yield a psycopg engine on this process's database."""
    engine = create_engine(dsn)
    yield engine
    engine.dispose()
