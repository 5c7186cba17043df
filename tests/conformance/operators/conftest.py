"""Fixtures of the operators' tests: the same as their parent's, on other tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, MetaData, text
from sqlalchemy.orm import Session, sessionmaker

from tests.conformance.enqueue_kit import in_schema, schema_for
from tests.conformance.operators.kit import Base


@pytest.fixture(scope="session")
def job_engine(engine: Engine) -> Iterator[Engine]:
    """Yield an engine with the tables of the kit, in a schema of their own."""
    with schema_for(Base, engine) as name:
        yield in_schema(engine, name)


@pytest.fixture(scope="session")
def metadata() -> MetaData:
    """Return the tables of `job_engine`."""
    return Base.metadata


@pytest.fixture
def sessions(app_engine: Engine, job_engine: Engine) -> Iterator[sessionmaker[Session]]:
    """Yield a maker of sessions that may commit; the tables are emptied afterwards."""
    yield sessionmaker(app_engine)
    schema = job_engine.get_execution_options()["schema_translate_map"][None]
    names = ", ".join(f"{schema}.{table.name}" for table in Base.metadata.sorted_tables)
    with job_engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names}"))
