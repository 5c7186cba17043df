"""Fixtures for all tests: a database of this test process, and an engine on it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest
from sqlalchemy import Engine, create_engine

from tests.isolation import LEVELS, excuse, isolate, skip_committed
from tests.security.roles import AsApplication, applications, is_of_the_owner

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

TIMING = {"chaos", "crash", "drivers", "failover", "faults", "pooler"}
"""Folders of tests that give other processes, and leases, a few seconds."""

LATE = [
    "still not so",
    "did not stop",
    r"no \w+ of job",
    r"assert \(?[\d.]+ <",
    "Timeout",
]
"""What their errors say when only a wait ran out: no promise was broken."""

DRIVERS = ("psycopg", "psycopg_async", "asyncpg", "psycopg2")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options that run the protocol's and the runners' tests another way."""
    parser.addoption(
        "--driver", choices=DRIVERS, default="psycopg", help="the driver of the tests"
    )
    parser.addoption(
        "--pooler", choices=["poll", "listen"], help="PgBouncer; how jobs are found"
    )
    parser.addoption(
        "--isolation", choices=LEVELS, help="the isolation level of the application"
    )
    parser.addoption(
        "--roles", action="store_true", help="jobs by roles with the least privileges"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Wait again, once and in the report, where a machine stood still."""
    for item in items:
        if item.path.parent.name in TIMING:
            again = pytest.mark.flaky(reruns=1, reruns_delay=2, only_rerun=LATE)
            item.add_marker(again)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what --pooler and --isolation rule out."""
    skip_committed(item)
    if item.config.getoption("pooler"):
        from tests.pooler.plugin import skip_direct

        skip_direct(item)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Skip what turns out to be refused at that --isolation."""
    try:
        return (yield)
    except Exception as exc:
        excuse(pyfuncitem, exc)
        raise


@pytest.fixture(scope="session")
def dsn(sqla_jobs_dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of this process's database, which starts empty."""
    level = request.config.getoption("isolation")
    if level is not None:
        isolate(sqla_jobs_dsn, level)
    mode = request.config.getoption("pooler")
    if mode is None:
        yield sqla_jobs_dsn
        return
    from tests.pooler.plugin import pooled_dsn

    yield from pooled_dsn(mode, sqla_jobs_dsn)


@pytest.fixture(scope="session")
def engine(dsn: str) -> Iterator[Engine]:
    """Yield a psycopg engine on this process's database."""
    engine = create_engine(dsn)
    yield engine
    engine.dispose()


@pytest.hookimpl(wrapper=True, specname="pytest_pyfunc_call")
def pytest_excuse_owner(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Skip what does itself, with --roles, what only the owner of the tables may."""
    try:
        return (yield)
    except Exception as exc:
        if pyfuncitem.config.getoption("roles") and is_of_the_owner(exc):
            pytest.skip("the test itself does what only the owner may")
        raise


@pytest.fixture(scope="session")
def as_application(request: pytest.FixtureRequest) -> Iterator[AsApplication]:
    """Yield what returns the application's engine: with --roles, of least rights."""
    with applications(least=request.config.getoption("roles")) as found:
        yield found
