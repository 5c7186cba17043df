"""Fixtures of the fault tests: the runner tests' application, in both runners."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.runner.harness import Base, Kit


@pytest.fixture(scope="session")
def tables(engine: Engine) -> Engine:
    """Return an engine on a database with the application's tables."""
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture(params=["threads", "aio"])
def kit(request: pytest.FixtureRequest, dsn: str, tables: Engine) -> Iterator[Kit]:
    """Yield the application with empty tables, for each runner in turn."""
    kit = Kit(dsn, tables, request.param)
    yield kit
    kit.close()


@pytest.fixture
def aio(dsn: str, tables: Engine) -> Iterator[Kit]:
    """Yield the application for tests that only concern asyncio."""
    kit = Kit(dsn, tables, "aio")
    yield kit
    kit.close()
