"""Fixtures of the pooler's tests: PgBouncer, and the runners' application behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool

from tests.pooler.pgbouncer import PgBouncer, why_not
from tests.pooler.plugin import DOCUMENTED
from tests.runner.harness import Base, Kit

SHELLS = ("threads", "aio", "threads-psycopg2", "aio-asyncpg")


@pytest.fixture(scope="session")
def pooler(sqla_jobs_dsn: str) -> Iterator[PgBouncer]:
    """Yield a pooler with one connection to the server, which all clients share."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    pooler = PgBouncer(sqla_jobs_dsn, size=1)
    yield pooler
    pooler.close()


@pytest.fixture(params=SHELLS)
def kit(
    request: pytest.FixtureRequest, pooler: PgBouncer, engine: Engine
) -> Iterator[Kit]:
    """Yield the application behind the pooler, with engines as documented."""
    yield from behind(pooler, engine, request.param)


def behind(pooler: PgBouncer, engine: Engine, shell: str) -> Iterator[Kit]:
    """Yield the application behind *pooler*; the test's own *engine* goes past it."""
    Base.metadata.create_all(engine)
    kit = Kit(pooler.dsn, engine, shell)
    options: dict[str, Any] = DOCUMENTED.get(kit.driver, {})
    kit.engine_options = {"poolclass": NullPool, "connect_args": options}
    yield kit
    kit.close()
