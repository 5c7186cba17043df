"""Scenarios of queues with limits: never more run than may."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from sqla_jobs._store import heads, limits
from sqla_jobs._store.claim import Claim
from tests.conformance.factories import NOW, SECOND, Job, make_job
from tests.interleavings.actions import JOBS, TABLES, Verbs, without_locks
from tests.interleavings.harness import Scenario, Scene, Script, Twin

QUEUE = "slow"


def worker(session: Session, scene: Scene, *, end: str | None = "complete") -> Script:
    """Claim a job of the queue, and end it."""
    found = scene.verbs.claim(session, Job, queues=[QUEUE], now=NOW)
    yield
    scene.commit(session, *(("claim", one.job_id) for one in found))
    for one in found if end else ():
        yield
        _ENDS[end](scene.verbs, session, one)
        yield
        scene.commit(session, ("end", one.job_id))


def _snooze(verbs: Verbs, session: Session, held: Claim) -> None:
    verbs.snooze(session, held, after=SECOND, now=NOW)


_ENDS: Any = {
    "complete": lambda verbs, *held: verbs.complete(*held, now=NOW),
    "release": lambda verbs, *held: verbs.release(*held, now=NOW),
    "snooze": _snooze,
}


def operator(session: Session, scene: Scene) -> Script:
    """Lower the limit to one."""
    scene.verbs.set_queue(session, Job, QUEUE, max_running=1)
    yield
    scene.commit(session, ("limit", 1))


def check(session: Session, scene: Scene) -> Iterator[str]:
    """No claim brought the queue, a channel of it or its rate above the limit."""
    settings, started = scene.facts["settings"], 0
    most = settings.get("max_running", 99)
    of_channel = settings.get("max_running_per_channel", 99)
    running: set[int] = set()
    for event, value in scene.log:
        match event:
            case "limit":
                most = value
            case "end":
                running.discard(value)
            case "claim":
                running.add(value)
                started += 1
                channels = Counter(scene.facts["channels"][one] for one in running)
                if len(running) > most or max(channels.values()) > of_channel:
                    yield f"{channels} run, {most} or {of_channel} may"
    if started > settings.get("rate_limit", 99):
        yield f"{started} began"
    rows = session.connection().execute(_END).all()
    if {row.id for row in rows if row.state == "running"} != running:
        yield f"{rows} run, not {running}"
    session.connection().execute(_END_OF_QUEUE)


_END = delete(JOBS).returning(JOBS.c.id, JOBS.c.state)
_END_OF_QUEUE = delete(TABLES.queues)


def a_queue(session: Session, scene: Scene, *, settings: Any, channels: str) -> None:
    """Make a limited queue with a job in each of *channels*, one letter for each."""
    heads._shared_memory.cache_clear()
    made = [make_job(session, queue=QUEUE, channel=name) for name in channels]
    scene.facts["channels"] = dict(zip(made, channels, strict=True))
    scene.facts["settings"] = settings
    scene.verbs.set_queue(session, Job, QUEUE, must_exist=False, **settings)


def scenario(
    scripts: Any, settings: Any, *, channels: str = "aa", **twins: Twin
) -> Scenario:
    """Return a scenario of one queue."""
    prepare = partial(a_queue, settings=settings, channels=channels)
    return Scenario(prepare, scripts, check, Verbs(), twins)


UNLOCKED = without_locks(limits, "_opening")
TWO = {"one": worker, "two": worker}

LIMITS: dict[str, Scenario] = {
    "two workers, one may run": scenario(TWO, {"max_running": 1}, unlocked=UNLOCKED),
    "three workers, two may run": scenario(
        {
            "one": worker,
            "two": partial(worker, end=None),
            "three": partial(worker, end=None),
        },
        {"max_running": 2},
        channels="abc",
        unlocked=UNLOCKED,
    ),
    "a release beside claims": scenario(
        {"one": partial(worker, end="release"), "two": worker},
        {"max_running": 1},
        unlocked=UNLOCKED,
    ),
    "a snooze beside claims": scenario(
        {"one": partial(worker, end="snooze"), "two": worker},
        {"max_running_per_channel": 1},
        unlocked=UNLOCKED,
    ),
    "one of each channel may run": scenario(
        TWO, {"max_running_per_channel": 1}, channels="aab"
    ),
    "one may begin in an hour": scenario(
        TWO, {"rate_limit": 1, "rate_period": timedelta(hours=1)}, unlocked=UNLOCKED
    ),
    "the limit is lowered": scenario(
        {
            "one": partial(worker, end=None),
            "two": partial(worker, end=None),
            "operator": operator,
        },
        {"max_running": 2},
        unlocked=UNLOCKED,
    ),
}
