"""Fixtures of the failover tests: a primary with its standby, and the application."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import NullPool, create_engine

from tests.failover.pair import Pair, why_not
from tests.runner.harness import Base, Kit


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Yield two servers; the second follows the first."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    pair = Pair()
    try:
        pair.open()
        yield pair
    finally:
        pair.close()


@pytest.fixture
def kit(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Kit]:
    """Yield the application with the URL of both; *param* is what runs it."""
    engine = create_engine(pair.dsn, poolclass=NullPool)
    Base.metadata.create_all(engine)
    kit = Kit(pair.dsn, engine, request.param)
    yield kit
    if not pair.standby.lives:  # the test failed
        pair.wait_for_nobody()
    kit.close()
