"""Fixtures of the model: an engine with its tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine

from tests.model.shapes import Base


@pytest.fixture
def model_engine(dsn: str) -> Iterator[Engine]:
    """Yield an engine with the model's tables."""
    engine = create_engine(dsn, pool_size=1, max_overflow=0)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()
