"""Scenarios of held jobs: confirmed, extended, aborted or over."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from sqla_jobs._store import holds
from tests.conformance.factories import DAY, LEASE, NOW, Job, make_job
from tests.interleavings.actions import JOBS, LATE, Verbs, claimer, without_locks
from tests.interleavings.harness import Scenario, Scene, Script, Twin


def owner(
    session: Session, scene: Scene, *, verb: str = "confirm", backwards: bool = False
) -> Script:
    """Do what the owner of the held jobs may do."""
    ids = scene.facts["ids"][:: -1 if backwards else 1]
    more = (DAY,) if verb == "extend" else ()
    getattr(scene.verbs, verb)(session, Job, ids, *more, now=NOW)
    yield
    scene.commit(session, *((verb, one) for one in ids))


def sweeper(session: Session, scene: Scene) -> Script:
    """End the holds whose time is over."""
    count = scene.verbs.expire(session, Job, now=LATE)
    yield
    scene.commit(session, ("expire", count))


def canceller(session: Session, scene: Scene) -> Script:
    """Cancel the jobs, held or not."""
    found = scene.verbs.cancel(session, Job, scene.facts["ids"], now=NOW)
    yield
    scene.commit(session, *(("cancel", one) for one in found.cancelled))


def check(session: Session, scene: Scene) -> Iterator[str]:
    """Each job went one way only, and is what the last commit made it."""
    ids = scene.facts["ids"]
    states = dict.fromkeys(ids, "held")
    for event, value in scene.log:
        if event == "HoldExpired":
            continue
        # A sweep says how many it ended, not which: all that it could, here.
        swept = [one for one in ids if states[one] == "held"]
        if event == "expire" and value not in {0, len(swept)}:
            yield f"{value} of {len(swept)} holds expired"
        for one in (swept if value else []) if event == "expire" else [value]:
            if states[one] not in _FROM[event]:
                yield f"{event} of a job that is {states[one]}"
            states[one] = _TO[event]
    rows = session.connection().execute(_END).all()
    for row in rows:
        if row.state != states[row.id]:
            yield f"job is {row.state}, not {states[row.id]}"
        if row.state == "cancelled" and row.attempt:
            yield "a cancelled job has run"
    if len(rows) != len(ids):
        yield f"{len(ids)} jobs became {len(rows)}"


_END = delete(JOBS).returning(JOBS.c.id, JOBS.c.state, JOBS.c.attempt)
_FROM = {
    "cancel": {"held", "available"},
    "claim": {"available"},
    "complete": {"running"},
    "extend": {"held"},
    "confirm": {"held"},
    "abort": {"held"},
    "expire": {"held"},
}
_TO = {
    "cancel": "cancelled",
    "claim": "running",
    "complete": "completed",
    "extend": "held",
    "confirm": "available",
    "abort": "cancelled",
    "expire": "cancelled",
}


def held_jobs(session: Session, scene: Scene, *, count: int = 1) -> None:
    """Make jobs that are held for a while."""
    until = NOW + LEASE
    scene.facts["ids"] = [
        make_job(session, state="held", held_until=until) for _ in range(count)
    ]


def scenario(scripts: Any, *, count: int = 1, **twins: Twin) -> Scenario:
    """Return a scenario of held jobs."""
    prepare = partial(held_jobs, count=count)
    return Scenario(prepare, scripts, check, Verbs(), twins)


UNLOCKED_OWNER = without_locks(holds, "_changing")
UNLOCKED_SWEEP = without_locks(holds, "_expiring")

HOLDS: dict[str, Scenario] = {
    "confirm, expire and claim": scenario(
        {
            "owner": owner,
            "sweeper": sweeper,
            "claimer": partial(claimer, complete=False),
        },
        unlocked_owner=UNLOCKED_OWNER,
        unlocked_sweep=UNLOCKED_SWEEP,
    ),
    "confirm, expire and cancel": scenario(
        {"owner": owner, "sweeper": sweeper, "cancel": canceller},
        unlocked_owner=UNLOCKED_OWNER,
        unlocked_sweep=UNLOCKED_SWEEP,
    ),
    "extend, confirm and expire": scenario(
        {
            "extender": partial(owner, verb="extend"),
            "owner": owner,
            "sweeper": sweeper,
        },
        unlocked_owner=UNLOCKED_OWNER,
        unlocked_sweep=UNLOCKED_SWEEP,
    ),
    "abort, confirm and claim": scenario(
        {
            "aborter": partial(owner, verb="abort"),
            "owner": owner,
            "claimer": partial(claimer, complete=False),
        },
        unlocked_owner=UNLOCKED_OWNER,
    ),
    "two owners of two jobs": scenario(
        {
            "owner": owner,
            "other": partial(owner, verb="abort", backwards=True),
            "sweeper": sweeper,
        },
        count=2,
        unlocked_owner=UNLOCKED_OWNER,
        unlocked_sweep=UNLOCKED_SWEEP,
    ),
}
