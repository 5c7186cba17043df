"""The heartbeat of an async runner, whatever the application's engine is made of."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import Engine, make_url
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from tests.runner.harness import LEASE, Base, Kit, Task, wait_for

UNNAMED = {
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: f"s_{uuid4().hex}",
    "statement_cache_size": 0,
}
ENGINES: dict[str, dict[str, Any]] = {
    "NullPool": {"poolclass": NullPool},
    "AsyncAdaptedQueuePool": {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1},
    "PgBouncer": {"connect_args": UNNAMED, "poolclass": NullPool},
    "serializer": {"json_serializer": lambda value: json.dumps(value, indent=1)},
    "pre-ping": {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 0},
    "async_creator": {},
}


@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
def test_heartbeat_has_connections_of_its_own(
    dsn: str, engine: Engine, options: dict[str, Any]
) -> None:
    """
    Leases are renewed by a loop of its own, on connections made as the engine's are,
    while the handler has the engine's only one.
    """
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, "aio-asyncpg")
    loops: list[int] = []
    kit.engine_options = options or {"async_creator": creator(dsn, loops)}
    renewed = threading.Event()

    async def run(job: Any, ctx: Any) -> dict[str, list[int]]:
        await ctx.session.connection()
        await wait_for(renewed)
        return {"n": [job.n]}

    kit.handle(run)
    try:
        (job,) = kit.add(Task(n=5))
        running = kit.run(lease=LEASE, concurrency=1)
        kit.until(lambda: running.runner._heartbeat)
        kit.until(lambda: running.runner._heartbeat.renewals)
        renewed.set()
        assert kit.until_state(job, "completed").result == {"n": [5]}
        running.stop(grace=timedelta(0))
    finally:
        renewed.set()
        kit.close()
    if not options:
        assert len(set(loops)) == 2


def creator(dsn: str, loops: list[int]) -> Any:
    """Return an ``async_creator`` that notes the loops it is called in."""
    plain = make_url(dsn).set(drivername="postgresql")

    async def connect(*_: Any, **__: Any) -> Any:
        loops.append(id(asyncio.get_running_loop()))
        return await asyncpg.connect(plain.render_as_string(hide_password=False))

    return connect
