"""Leases are kept while a runner lives, whatever its handlers do to the process."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url, text

from sqla_jobs._store import wake
from sqla_jobs.runner import watch
from sqla_jobs.runner.watch import LoopWatch
from tests.runner.harness import LEASE, Kit, Task, effects, ok, wait_for

MINUTE = timedelta(minutes=1)
# What rescue does, and a minute later nobody has claimed the job.
TAKE_BACK = (
    "SELECT pg_sleep({}); UPDATE jobs SET state = 'available', crashes = crashes + 1,"
    " lease_token = lease_token + 1, leased_until = NULL WHERE leased_until < now()"
)


@pytest.mark.slow
def test_process_that_stands_still_loses_its_lease_and_nothing_else(kit: Kit) -> None:
    """
    C code that keeps the interpreter's lock stops the heartbeat too: others may take
    the job, the fence refuses what comes late, and the runner goes on.
    """
    if kit.shell == "aio":
        pytest.skip("the interpreter's lock is the same")
    lease = LEASE.total_seconds()
    results: list[Any] = []
    url = make_url(kit.dsn).set(drivername="postgresql")
    other = psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            # The server works while this process cannot.
            other.pgconn.send_query(TAKE_BACK.format(lease + 0.2).encode())
            results.append(ctypes.PyDLL(None).usleep(int((lease + 0.8) * 10**6)))

    kit.handle(run)
    (job,) = kit.add()
    kit.run(lease=LEASE)

    row = kit.until_state(job, "completed")
    assert (row.attempt, row.crashes, kit.notes()) == (2, 1, ["attempt 2"])
    (next_job,) = kit.add()
    kit.until_state(next_job, "completed")
    other.close()
    assert results == [0]


@pytest.mark.slow
def test_thousand_long_jobs_keep_their_leases(aio: Kit) -> None:
    """All run at once; a third of the lease costs few statements, not one per job."""
    kit, over, started, lease = aio, threading.Event(), set[int](), 2 * LEASE

    async def run(job: Any, ctx: Any) -> None:
        started.add(job.id)
        while not over.is_set():  # noqa: ASYNC110 - a thousand of them
            await asyncio.sleep(0.2)

    kit.handle(run)
    kit.add(*[Task(n=n) for n in range(1000)])
    running = kit.run(lease=lease, concurrency=1000)
    kit.until(lambda: len(started) == 1000)
    heartbeat = running.runner._heartbeat
    thirds, before = 4, heartbeat.renewals
    end = time.monotonic() + thirds * lease.total_seconds() / 3
    left = "SELECT extract(epoch FROM min(leased_until) - clock_timestamp()) FROM jobs"
    shortest = []
    while time.monotonic() < end:
        shortest.append(kit.sql(left))
        over.wait(0.1)
    spent = heartbeat.renewals - before
    over.set()

    kit.until(lambda: kit.states() == ["completed"] * 1000)
    assert kit.sql("SELECT count(*) FROM jobs WHERE attempt > 1 OR crashes > 0") == 0
    assert min(shortest) > 0
    print(f"{spent} renewals in {thirds} thirds; {min(shortest)} s left")
    assert spent <= 5 * thirds


LISTENING = "query LIKE 'LISTEN%' AND datname = current_database()"


@pytest.mark.slow
@pytest.mark.direct("it looks at the server's processes")
def test_listener_that_is_killed_again_and_again_comes_back(kit: Kit) -> None:
    """It costs little, leaves nothing behind, and jobs start as soon as before."""

    async def run(job: Any, ctx: Any) -> None:
        pass

    kit.handle(run)
    kit.run(poll=MINUTE)
    pid = f"SELECT max(pid) FROM pg_stat_activity WHERE {LISTENING}"
    kill = "SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE pid = :p"
    kit.until(lambda: kit.sql(pid))
    pick_up(kit)  # the runner has all its connections then
    threads, connections = threading.active_count(), others(kit)
    begin, cpu = time.monotonic(), time.process_time()

    for _ in range(50):
        kit.sql(kill, p=kit.until(lambda: kit.sql(pid)))
    kit.until(lambda: kit.sql(pid))

    seconds, cpu = time.monotonic() - begin, time.process_time() - cpu
    kit.until(lambda: others(kit) <= connections)
    assert threading.active_count() <= threads
    delays = [pick_up(kit) for _ in range(5)]
    print(f"{seconds:.1f} s, CPU {cpu:.2f} s, pick-up {delays}")
    assert seconds > 50 * 0.05, "it does not wait before it tries again"
    assert cpu < seconds / 2
    assert sorted(delays)[2] < 1


def others(kit: Kit) -> int:
    """Return how many connections others have to the database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return int(kit.sql(query))


def pick_up(kit: Kit) -> float:
    """Return the seconds from a commit to the end of its job."""
    wake.forget_recent()
    (job,) = kit.add()
    begin = time.monotonic()
    kit.until_state(job, "completed")
    return time.monotonic() - begin


def test_blocked_event_loop_is_reported_with_its_stack(
    aio: Kit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each time, with the line of the handler that blocks."""
    kit, reported = aio, threading.Event()
    monkeypatch.setattr(watch, "BLOCKED_SECONDS", 0.0)

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "blocked" in record.getMessage():
                reported.set()

    async def run(job: Any, ctx: Any) -> None:
        reported.wait(20)  # not awaited: this is the line

    kit.handle(run)
    (job,) = kit.add()
    handler = Notice()
    logging.getLogger("sqla_jobs").addHandler(handler)
    try:
        kit.drain()
    finally:
        logging.getLogger("sqla_jobs").removeHandler(handler)

    assert kit.job(job).state == "completed"
    said = [m for m in caplog.messages if "event loop has been blocked" in m]
    assert any("reported.wait(20)  # not awaited: this is the line" in m for m in said)


def test_event_loop_that_answers_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sign of life ends the question; each block is told once."""

    async def main() -> None:
        guard = LoopWatch("me", asyncio.get_running_loop())
        for now in (0.0, 60.0, 120.0):
            guard.look(now)
            await asyncio.sleep(0)
        assert not caplog.messages

        guard.look(180.0)
        for later in (3.0, 6.0, 9.0):
            guard.look(180.0 + later)
        assert [m for m in caplog.messages if "blocked for 6 s" in m] == caplog.messages
        assert len(caplog.messages) == 1

    asyncio.run(main())


def test_transaction_that_stays_open_is_reported(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that works with its transaction open is told of the checkpoint."""
    over = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        number = job.n  # expired, it would begin another transaction
        await ok(ctx.session.execute(text("SELECT 1")))
        if number == 1:
            await ok(ctx.checkpoint())
        if number == 2:
            await ok(ctx.session.rollback())
        await wait_for(over, ctx)

    kit.handle(run)
    first, *_ = kit.add(*[Task(n=n) for n in range(3)])

    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.run(lease=LEASE)
        kit.until(lambda: [m for m in caplog.messages if "has been open" in m])
        over.wait(1.2)  # another look
        over.set()
        kit.until(lambda: set(kit.states()) == {"completed"})

    said = [m for m in caplog.messages if "has been open" in m]
    assert len(said) == 1
    assert said[0].startswith(f"job {first}: the transaction of its session")
