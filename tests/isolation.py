"""What --isolation does to the tests: another level, and fewer of them."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from sqla_jobs._dialects import JobDialect

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def isolate(dsn: str, level: str) -> None:
    """Give connections to the database that isolation level, unless they say one."""
    name = make_url(dsn).database
    engine = create_engine(dsn)
    with engine.begin() as connection:
        setting = f"default_transaction_isolation = '{level.lower()}'"
        connection.execute(text(f'ALTER DATABASE "{name}" SET {setting}'))
    engine.dispose()


def skip_committed(item: pytest.Item) -> None:
    """Skip a test that is about READ COMMITTED."""
    mark = item.get_closest_marker("read_committed")
    if mark is not None and is_strict(item.config):
        pytest.skip(mark.args[0])


def excuse(item: pytest.Function, exc: Exception) -> None:
    """Skip a test of the protocol whose sessions met what the level refuses them."""
    if not is_strict(item.config) or "conformance" not in item.path.parts:
        return
    if isinstance(exc, DBAPIError) and JobDialect.sqlstate(exc) == "40001":
        pytest.skip("its sessions do not try again after a conflict")
    if isinstance(exc, DBAPIError) and "unique_v1" in str(exc.orig):
        pytest.skip("a snapshot shows no later job: the unique index refuses the key")


def is_strict(config: pytest.Config) -> bool:
    """Return whether the level is above READ COMMITTED."""
    return config.getoption("isolation") not in {None, LEVELS[0]}
