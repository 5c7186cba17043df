"""Fixtures: each module of a companion library has a database of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sqla_jobs.testing import DatabaseServer


@pytest.fixture(scope="module")
def url(sqla_jobs_server: DatabaseServer) -> Iterator[str]:
    """Yield the URL of an empty database."""
    with sqla_jobs_server.temporary_database() as url:
        yield url
