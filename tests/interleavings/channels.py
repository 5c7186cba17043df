"""Scenarios of ordered channels: one job at a time, in the order of the sends."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from sqla_jobs._store import channels, head_rows, heads
from tests.conformance.factories import NOW, Job, Work, make_job
from tests.interleavings.actions import (
    JOBS,
    Verbs,
    claimer,
    without_locks,
    without_name_locks,
)
from tests.interleavings.harness import Scenario, Scene, Script, Twin


def sender(session: Session, scene: Scene) -> Script:
    """Send a job to the channel."""
    job = Work(ordered=True, channel="c")
    session.add(job)
    session.flush()
    yield
    scene.commit(session, ("send", job.id))


def requeuer(session: Session, scene: Scene) -> Script:
    """Put the dead job back to its place."""
    found = scene.verbs.requeue(session, Job, [scene.facts["dead"]], now=NOW)
    yield
    scene.commit(session, *(("requeue", one) for one in found.requeued))


def canceller(session: Session, scene: Scene) -> Script:
    """Cancel the first of the jobs, or ask it to end."""
    found = scene.verbs.cancel(session, Job, scene.facts["ids"][:1], now=NOW)
    yield
    scene.commit(session, *(("cancel", one) for one in found.cancelled))


def check(session: Session, scene: Scene) -> Iterator[str]:
    """Ids are in the order of commits, starts in the order of ids; one runs at once."""
    model = Model(scene)
    for event, value in scene.log:
        if event == "LeaseLost":
            yield f"{value} lost its lease"
        else:
            yield from getattr(model, event)(value) or ()
    rows = session.connection().execute(_END).all()
    for state in ("waiting", "running"):
        found = {row.id for row in rows if row.state == _STATES[state]}
        if found != getattr(model, state):
            yield f"{state} are {found}, not {getattr(model, state)}"


class Model:
    """The channel as the commits, in their order, should make it."""

    def __init__(self, scene: Scene) -> None:
        self.dead = scene.facts["dead"]
        self.waiting, self.running = set(scene.facts["ids"]), set[int]()
        self.last = 0

    def send(self, job_id: int) -> Iterator[str]:
        """Add a job behind all others."""
        if job_id < self.last:
            yield f"{job_id} was sent before {self.last}"
        self.last = job_id
        self.waiting.add(job_id)

    def requeue(self, job_id: int) -> None:
        """Add a job in front of whatever does not run yet."""
        self.waiting.add(job_id)

    def claim(self, job_id: int) -> Iterator[str]:
        """Start the first, alone."""
        # A claim may not have seen the one that was requeued meanwhile.
        earlier = {one for one in self.waiting if one < job_id} - {self.dead}
        if earlier or self.running or job_id not in self.waiting:
            yield f"{job_id} began before {earlier}, beside {self.running}"
        self.running.add(job_id)
        self.waiting.discard(job_id)

    def complete(self, job_id: int) -> None:
        """Let the next one come."""
        self.running.discard(job_id)

    def cancel(self, job_id: int) -> None:
        """Forget a job that waits."""
        self.waiting.discard(job_id)


_STATES = {"waiting": "available", "running": "running"}
_END = delete(JOBS).returning(JOBS.c.id, JOBS.c.state)


def a_channel(session: Session, scene: Scene, *, jobs: int, dead: bool) -> None:
    """Make jobs of the channel, behind a dead one."""
    heads._shared_memory.cache_clear()
    make = partial(make_job, session, ordered=True, channel="c")
    scene.facts["dead"] = make(state="discarded") if dead else None
    scene.facts["ids"] = [make() for _ in range(jobs)]


def scenario(
    scripts: Any, *, jobs: int = 0, dead: bool = False, **twins: Twin
) -> Scenario:
    """Return a scenario of one channel."""
    prepare = partial(a_channel, jobs=jobs, dead=dead)
    return Scenario(prepare, scripts, check, Verbs(), twins)


UNLOCKED_SENDS = without_name_locks(channels)
UNLOCKED_CLAIMS = without_locks(head_rows, "_pick_heads")

CHANNELS: dict[str, Scenario] = {
    "two senders and a claimer": scenario(
        {"one": sender, "two": sender, "claimer": claimer},
        unlocked_sends=UNLOCKED_SENDS,
    ),
    "two claimers of two jobs": scenario(
        {"one": claimer, "two": claimer},
        jobs=2,
        unlocked_claims=UNLOCKED_CLAIMS,
    ),
    "sender, claimer and cancel": scenario(
        {"sender": sender, "claimer": claimer, "cancel": canceller},
        jobs=1,
        unlocked_claims=UNLOCKED_CLAIMS,
    ),
    "two claimers and a requeue of an earlier job": scenario(
        {
            "one": claimer,
            "two": partial(claimer, complete=False),
            "requeuer": requeuer,
        },
        jobs=1,
        dead=True,
        unlocked_claims=UNLOCKED_CLAIMS,
    ),
}
