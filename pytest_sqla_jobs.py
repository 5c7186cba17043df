"""
The pytest plugin of sqla_jobs: a PostgreSQL for the tests that ask for one.

pytest imports it in every project of the environment. It is a module of its own so
that this does not import sqla_jobs, nor SQLAlchemy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqla_jobs.testing import DatabaseServer

DSN_VARIABLE = "SQLA_JOBS_TEST_DSN"
"""The environment variable with the URL of a server to use instead of our own."""


@pytest.fixture(scope="session")
def sqla_jobs_server() -> Iterator[DatabaseServer]:
    """Yield a PostgreSQL server: the one of SQLA_JOBS_TEST_DSN, else our own."""
    from sqla_jobs.testing import DatabaseServer, PostgresServer

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
