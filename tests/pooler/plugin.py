"""What ``--pooler`` changes: the tests' connections go through PgBouncer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event

from sqla_jobs.models import JobTables
from tests.pooler.pgbouncer import PgBouncer, why_not
from tests.runner import harness

DOCUMENTED: dict[str, dict[str, Any]] = {
    "psycopg": {"prepare_threshold": None},
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"s_{uuid4().hex}",
    },
}
"""The connect arguments by driver, as the documentation has them."""

MODES = {
    "poll": "no NOTIFY, no LISTEN",
    "listen": "LISTEN by a listen_url that goes to the server directly",
}


def pooled_dsn(mode: str, dsn: str) -> Iterator[str]:
    """Yield the URL of the same database through a pooler that ends afterwards."""
    if (reason := why_not()) is not None:
        pytest.exit(f"--pooler {reason}", returncode=2)
    pooler = PgBouncer(dsn)

    def connect(dialect: Any, _: Any, _args: Any, options: dict[str, Any]) -> None:
        if options.get("host") == str(pooler.folder):
            driver = dialect.driver.removesuffix("_async")
            options.update({**DOCUMENTED.get(driver, {}), **options})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "DIRECT_URL", dsn)
        if mode == "poll":
            patch.setattr(JobTables, "notify", False)
        else:
            patch.setattr(harness, "LISTEN_URL", dsn)
        event.listen(Engine, "do_connect", connect)
        try:
            yield pooler.dsn
        finally:
            event.remove(Engine, "do_connect", connect)
            pooler.close()


def skip_direct(item: pytest.Item) -> None:
    """Skip a test whose premise is a connection that is its own, or a wake-up."""
    mode = item.config.getoption("pooler")
    if (mark := item.get_closest_marker("direct")) is not None:
        pytest.skip(f"--pooler: {mark.args[0]}")
    if mode == "poll" and item.get_closest_marker("wakes") is not None:
        pytest.skip(f"--pooler={mode}: no commit wakes anybody")
