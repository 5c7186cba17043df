"""Fixtures of the tests of the testing helpers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.testing.kit import KINDS, Base, Kit, kit_of, rows


@pytest.fixture(scope="session")
def tables(engine: Engine) -> Engine:
    """Return an engine on a database with the application's tables."""
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def nothing_committed(tables: Engine) -> Iterator[None]:
    """Check at the end of the test that another connection sees no row at all."""
    yield
    assert not any(rows(tables).values()), rows(tables)


@pytest.fixture(params=KINDS)
def kit(
    request: pytest.FixtureRequest, tables: Engine, nothing_committed: None
) -> Iterator[Kit]:
    """Yield the application with each kind of session in turn."""
    with kit_of(request.param, tables) as kit:
        yield kit
        kit.forget()


@pytest.fixture(params=["external", "async_external"])
def both(
    request: pytest.FixtureRequest, tables: Engine, nothing_committed: None
) -> Iterator[Kit]:
    """Yield the application with a sync and an async session."""
    with kit_of(request.param, tables) as kit:
        yield kit
        kit.forget()


@pytest.fixture
def sync(tables: Engine, nothing_committed: None) -> Iterator[Kit]:
    """Yield the application for tests that are no different with an AsyncSession."""
    with kit_of("external", tables) as kit:
        yield kit
        kit.forget()
