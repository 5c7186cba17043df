"""What a network that swallows everything does to runners, and to their handlers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event, make_url, select

from tests.drivers.proxy import Proxy
from tests.runner.harness import LEASE, Kit, effects, ok


@pytest.fixture
def proxy(kit: Kit) -> Iterator[Proxy]:
    """Yield what stands between the runner and the server."""
    proxy = Proxy(kit.dsn)
    url = make_url(proxy.dsn).set(drivername=f"postgresql+{kit.driver}")
    kit.dsn = url.render_as_string(hide_password=False)
    yield proxy
    proxy.silent.clear()
    proxy.close()


@pytest.mark.direct("its own TCP connections")
def test_lost_attempt_does_not_wait_for_its_statement(kit: Kit, proxy: Proxy) -> None:
    """
    A handler that waits for a server that vanished comes back when its lease is lost,
    since nothing it does can be committed any more, and leaves its slot to others.
    """
    ended: list[float] = []

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")
        await ok(ctx.session.flush())
        if ctx.attempt > 1:
            return
        proxy.silent.set()
        try:
            await ok(ctx.session.execute(select(1)))
        finally:
            ended.append(time.monotonic())

    kit.handle(run)
    (job,) = kit.add()
    start = time.monotonic()
    running = kit.run(lease=LEASE)
    kit.until(lambda: ended)

    assert proxy.silent.is_set()
    assert ended[0] - start > 0.8 * LEASE.total_seconds()
    kit.until(lambda: not running.runner._attempts)
    proxy.silent.clear()
    proxy.hang_up()
    kit.until_state(job, "completed")
    assert kit.notes() == ["attempt 2"]


def test_lease_counts_from_the_claim_and_not_from_the_connection(kit: Kit) -> None:
    """
    A claim may have to wait for a new connection, for longer than a lease while the
    network is away: the job is held all the same, and runs.
    """
    slow = threading.Event()
    pause = partial(asyncio.sleep if kit.shell == "aio" else time.sleep, 0.01)

    def connecting(*_: Any) -> None:
        if slow.is_set():
            slow.clear()
            time.sleep(LEASE.total_seconds())

    def spoil(engine: Engine) -> None:
        event.listen(engine, "do_connect", connecting)

    async def run(job: Any, ctx: Any) -> None:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            ctx.raise_if_interrupted()
            await ok(pause())

    kit.on_engine = spoil
    kit.handle(run)
    running = kit.run(lease=LEASE, poll=timedelta(minutes=1))
    (first,) = kit.add()
    kit.until_state(first, "completed")
    slow.set()
    running.reconnect()
    (job,) = kit.add()
    row = kit.until_state(job, "completed")

    assert not slow.is_set()
    assert (row.attempt, row.crashes) == (1, 0)
