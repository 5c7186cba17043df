"""
A pytest plugin: a PostgreSQL for the tests that ask for one.

A conftest.py names it: ``pytest_plugins = ["sqla_jobs.testing.pytest_plugin"]``. It is
no entry point, so projects that do not name it pay nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sqla_jobs.testing.postgres import DatabaseServer, PostgresServer

DSN_VARIABLE = "SQLA_JOBS_TEST_DSN"
"""The environment variable with the URL of a server to use instead of our own."""


@pytest.fixture(scope="session")
def sqla_jobs_server() -> Iterator[DatabaseServer]:
    """Yield a PostgreSQL server: the one of SQLA_JOBS_TEST_DSN, else our own."""
    dsn = os.environ.get(DSN_VARIABLE)
    if dsn:
        yield DatabaseServer(dsn)
    else:
        with PostgresServer() as server:
            yield server


@pytest.fixture(scope="session")
def sqla_jobs_dsn(sqla_jobs_server: DatabaseServer) -> Iterator[str]:
    """Yield the URL of an empty database that no other test process uses."""
    # The server may be shared, by workers of this test run and by other runs.
    with sqla_jobs_server.temporary_database() as dsn:
        yield dsn
