"""Fixtures of the drivers' tests: the runners' application, on each driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.drivers.proxy import Proxy
from tests.runner.harness import Base, Kit

SHELLS = ("threads", "aio", "threads-psycopg2", "aio-asyncpg")


@pytest.fixture(params=SHELLS)
def kit(request: pytest.FixtureRequest, dsn: str, engine: Engine) -> Iterator[Kit]:
    """Yield the application with empty tables, for each runner and driver in turn."""
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, request.param)
    yield kit
    kit.close()


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    """Yield a way to the server that loses what it is told to."""
    proxy = Proxy(dsn)
    yield proxy
    proxy.close()
