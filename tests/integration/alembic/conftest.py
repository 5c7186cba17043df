"""Fixtures of the tests with Alembic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from sqla_jobs.testing import DatabaseServer
from tests.integration.alembic.project import Project


@pytest.fixture
def url(sqla_jobs_server: DatabaseServer) -> Iterator[str]:
    """Yield the URL of an empty database of this test."""
    with sqla_jobs_server.temporary_database("sqla_jobs_alembic") as url:
        yield url


@pytest.fixture
def database(url: str) -> Iterator[Engine]:
    """Yield an engine on that database."""
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def project(
    tmp_path: Path, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """Return an application with migrations, made with the template."""
    return Project.create(tmp_path, database, monkeypatch)
