"""Who gets the slots: lanes in a flood, channels of fair queues, subscriptions."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from sqla_jobs import JobValueError, Prefix
from tests.runner.harness import Kit, Task, wait_for

HOUR = timedelta(hours=1)
LATE = 7  # the number of a job that is not part of the flood


class Flood:
    """A handler whose fresh jobs never end: each enqueues another one."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.fresh = 0
        self.late: list[int] = []  # how many fresh jobs had run before
        self._lock = threading.Lock()

    async def __call__(self, job: Any, ctx: Any) -> None:
        """Fail a late job once, so that it is retried; top up the others."""
        if job.n == LATE:
            if ctx.attempt == 1 and not job.crashes:
                raise RuntimeError("once")
            with self._lock:
                self.late.append(self.fresh)
            return
        with self._lock:
            self.fresh += 1
        ctx.session.add(Task())

    def start(self, **options: Any) -> None:
        """Run 60 fresh jobs, three that fail first and three that were rescued."""
        late = [Task(n=LATE) for _ in range(6)]
        ids = self.kit.add(*late, *[Task() for _ in range(60)])
        rescued = "UPDATE jobs SET lane = 2, crashes = 1 WHERE id = ANY(:ids)"
        self.kit.sql(rescued, ids=ids[:3])
        self.kit.handle(self.__call__)
        self.kit.run(concurrency=4, **options)


def test_flood_does_not_starve_retried_and_rescued_jobs(kit: Kit) -> None:
    """With the default share all six are served though fresh jobs never end."""
    flood = Flood(kit)

    flood.start()
    kit.until(lambda: len(flood.late) == 6)

    # One of ten of each lane, after a look that found none; with room for chance.
    assert max(flood.late) < 400


def test_without_a_share_fresh_jobs_come_first(kit: Kit) -> None:
    """With 0 nothing else runs as long as there are fresh ones."""
    flood = Flood(kit)

    flood.start(retry_share=0)
    kit.until(lambda: flood.fresh >= 200)

    assert flood.late == []


@pytest.mark.parametrize("share", [-0.1, 1.5, "0.1", None, True, float("nan")])
def test_share_is_a_part(kit: Kit, share: Any) -> None:
    """Anything but 0 to 1 is refused when the runner is made."""
    with pytest.raises(JobValueError, match="retry_share must be 0 to 1"):
        kit.run_one(retry_share=share)


def test_fair_queue_is_emptied_without_waiting_for_the_poll(kit: Kit) -> None:
    """A claim that got less than it asked for is repeated; small channels come soon."""
    kit.sql("INSERT INTO jobs_queues (name, fair) VALUES ('default', true)")
    order: list[str] = []

    async def note(job: Any, ctx: Any) -> None:
        order.append(job.channel)

    kit.handle(note)
    big = [Task(channel="big") for _ in range(100)]
    kit.add(*big, Task(channel="small"), Task(channel="small"), Task())
    kit.run(concurrency=4, poll=HOUR, listen=False)

    kit.until(lambda: len(order) == 103)
    assert set(order[:12]) == {"big", "small", ""}
    assert order[:12].count("small") == 2


def test_slots_of_pairs_names_and_prefixes_hold(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """Each job takes a slot of the most specific subscription, and of no other."""
    gate, running = threading.Event(), Counter[Any]()
    lock = threading.Lock()

    async def run(job: Any, ctx: Any) -> None:
        with lock:
            running[job.queue, job.channel] += 1
        await wait_for(gate)

    kit.handle(run)
    for queue in ("mail", "t-1", "t-2", "else"):
        kit.add(*[Task(queue=queue, channel=c) for c in ("acme", "x") for _ in "123"])
    queues: dict[Any, int] = {"mail": 2, ("mail", "acme"): 1, Prefix("t-"): 3}
    with caplog.at_level(logging.INFO, logger="sqla_jobs"):
        kit.run(queues=queues)
        kit.until(lambda: sum(running.values()) == 6)
        kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))

    assert running["mail", "acme"] == 1
    assert running["mail", "x"] == 2
    assert sum(n for (q, _), n in running.items() if q.startswith("t-")) == 3
    row = kit.sql("SELECT queues FROM jobs_runners")
    assert row == {"mail": 2, '["mail", "acme"]': 1, '{"prefix": "t-"}': 3}
    assert 'queues mail, ["mail", "acme"], {"prefix": "t-"}; concurrency 6' in (
        caplog.text
    )
    gate.set()
    kit.until(lambda: Counter(kit.states()) == {"completed": 18, "available": 6})


def test_run_one_takes_from_patterns(kit: Kit) -> None:
    """A single job comes from a pair or prefix as from a name."""

    async def nothing(job: Any, ctx: Any) -> None: ...

    kit.handle(nothing)
    kit.add(Task(queue="q", channel="x"), Task(queue="t-1"), Task(queue="else"))
    queues: list[Any] = [("q", "x"), Prefix("t-")]

    states = [kit.run_one(queues=queues) for _ in range(3)]

    assert states == ["completed", "completed", None]


def test_fair_queue_fills_all_slots_before_any_job_ends(kit: Kit) -> None:
    """Ten channels of one job and one of many: one claim cannot fill the slots."""
    kit.sql("INSERT INTO jobs_queues (name, fair) VALUES ('default', true)")
    gate, running = threading.Event(), list[str]()

    async def run(job: Any, ctx: Any) -> None:
        running.append(job.channel)
        await wait_for(gate)

    kit.handle(run)
    kit.add(*[Task(channel=f"c{n}") for n in range(10)])
    kit.add(*[Task(channel="big") for _ in range(50)])
    kit.run(concurrency=20, poll=HOUR, listen=False)

    kit.until(lambda: len(running) == 20)
    assert Counter(running)["big"] == 10
    gate.set()
