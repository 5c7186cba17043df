"""Scenarios of unique keys: at most one live job has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from sqla_jobs._store import unique
from tests.conformance.factories import NOW, Job, Work, make_job
from tests.interleavings.actions import (
    HELD,
    JOBS,
    Verbs,
    claimer,
    without_name_locks,
)
from tests.interleavings.harness import Scenario, Scene, Script, Twin

KEY = "the key"


def sender(session: Session, scene: Scene, *, policy: str = "skip") -> Script:
    """Send a job with the key."""
    job = Work(unique_key=KEY, on_conflict=policy)
    session.add(job)
    session.flush()
    yield
    if job in session:
        scene.commit(session, ("replace" if policy == "replace" else "send", job.id))
    else:
        scene.commit(session)


def requeuer(session: Session, scene: Scene) -> Script:
    """Make the dead job live again."""
    found = scene.verbs.requeue(session, Job, [scene.facts["dead"]], now=NOW)
    yield
    scene.commit(session, *(("requeue", one) for one in found.requeued))


def finisher(session: Session, scene: Scene, *, verb: str = "complete") -> Script:
    """End the job that has the key."""
    held = scene.facts["held"]
    more = ("no",) if verb == "fail" else ()
    getattr(scene.verbs, verb)(session, held, *more, now=NOW)
    yield
    scene.commit(session, (verb, held.job_id))


def canceller(session: Session, scene: Scene) -> Script:
    """Cancel what has the key."""
    found = scene.verbs.cancel(session, Job, unique_key=KEY, now=NOW)
    yield
    cancelled = (("complete", one) for one in found.cancelled)
    scene.commit(session, *cancelled, *(("request", one) for one in found.requested))


def check(session: Session, scene: Scene) -> Iterator[str]:
    """No commit made a second live job with the key, and no key was lost."""
    live, requested = {scene.facts["live"]} - {None}, set[int]()
    for event, job_id in scene.log:
        match event:
            case "complete":
                live.discard(job_id)
            case "request":
                requested.add(job_id)
            case "fail":
                live -= requested
            case "replace":
                live = {job_id}
            case "send" | "requeue":
                if live:
                    yield f"{event} of {job_id} beside {live}"
                live.add(job_id)
    rows = session.connection().execute(_END).all()
    final = {"completed", "cancelled", "discarded"}
    left = {row.id for row in rows if row.state not in final}
    if left != live:
        yield f"live are {left}, not {live}"
    if any(row.unique_key != KEY for row in rows):
        yield "a key is lost"


_END = delete(JOBS).returning(JOBS.c.id, JOBS.c.state, JOBS.c.unique_key)


def keyed_jobs(session: Session, scene: Scene, *, state: str | None) -> None:
    """Make a dead job with the key, and perhaps a live one in *state*."""
    scene.facts["dead"] = make_job(session, state="discarded", unique_key=KEY)
    scene.facts["live"] = None
    if state is not None:
        scene.facts["live"] = job_id = make_job(session, state=state, unique_key=KEY)
        scene.facts["held"] = replace(HELD, job_id=job_id)


def scenario(scripts: Any, *, live: str | None = None, **twins: Twin) -> Scenario:
    """Return a scenario of one key."""
    prepare = partial(keyed_jobs, state=live)
    return Scenario(prepare, scripts, check, Verbs(), twins)


UNLOCKED = without_name_locks(unique)

KEYS: dict[str, Scenario] = {
    "two senders and a requeue": scenario(
        {"one": sender, "two": partial(sender, policy="raise"), "requeuer": requeuer},
        unlocked=UNLOCKED,
    ),
    "sender, requeue and the end of the live one": scenario(
        {"sender": sender, "requeuer": requeuer, "finisher": finisher},
        live="running",
        unlocked=UNLOCKED,
    ),
    "sender, failure and cancel": scenario(
        {
            "sender": sender,
            "finisher": partial(finisher, verb="fail"),
            "cancel": canceller,
        },
        live="running",
    ),
    "two that replace, and a claim": scenario(
        {
            "one": partial(sender, policy="replace"),
            "two": partial(sender, policy="replace"),
            "claimer": partial(claimer, complete=False),
        },
        live="available",
        unlocked=UNLOCKED,
    ),
    "one that replaces, requeue and cancel": scenario(
        {
            "sender": partial(sender, policy="replace"),
            "requeuer": requeuer,
            "cancel": canceller,
        },
        live="available",
        unlocked=UNLOCKED,
    ),
}
