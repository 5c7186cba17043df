"""All that is known of one job, in the order in which it happened."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tests.chaos.app import Job, Posting
from tests.chaos.scene import Scene


@dataclass
class Struck:
    """A strike that happened, and when: monotonic seconds."""

    name: str
    start: float
    end: float


def story(scene: Scene, strikes: Sequence[Struck], job: int, start: float) -> list[str]:
    """Return the story of a job, a line per event, in seconds from *start*."""
    found = [*_heard(scene, job), *_written(scene, job)]
    found += [(one.start, f"{one.name} begins") for one in strikes]
    found += [(one.end, f"{one.name} has ended") for one in strikes]
    found += scene.notes
    times = [at for at, said in found if said.startswith("job row")] or [start]
    lines = [
        f"{at - start:9.3f} s  {said}"
        for at, said in sorted(found)
        if min(times) - 1 <= at
    ]
    return [f"--- job {job}", *lines]


def _heard(scene: Scene, job: int) -> Iterator[tuple[float, str]]:
    for event in scene.events:
        if event.word in ("start", "end") and event.values[0] == job:
            said = " ".join(map(str, event.values[1:]))
            yield event.at, f"{event.worker}: {event.word} {said}"
    for hit in scene.hits:
        if hit.held.job == job:
            yield hit.at, f"{hit.nemesis} hits {hit.worker}: {hit.held}"
    for key, entries in scene.ledger.entries.items():
        if key.rpartition(":")[0] == f"{Job.__tablename__}:{job}":
            yield time.monotonic(), f"ledger: {key} {len(entries)} times"


def _written(scene: Scene, job: int) -> Iterator[tuple[float, str]]:
    clock = time.monotonic() - time.time()
    with Session(scene.engine) as session:
        row: Any = session.get(Job, job)
        if row is None:
            return
        facts = {
            name: getattr(row, name)
            for name in (
                *("kind", "state", "attempt", "crashes", "snoozes", "lease_token"),
                *("token", "payload", "checkpoint", "reason", "last_error"),
            )
        }
        made = row.created_at.timestamp() + clock
        yield made, f"job row made; now: {facts}"
        for name in ("started_at", "finished_at", "leased_until"):
            if (at := getattr(row, name)) is not None:
                yield at.timestamp() + clock, f"job row: {name}"
        of_job = select(Job.Attempt).where(Job.Attempt.job_id == job)
        for one in session.scalars(of_job):
            at = one.finished_at.timestamp() + clock
            yield at, f"attempt {one.number}, token {one.lease_token}: {one.outcome}"
        postings = select(Posting).where(Posting.job_id == job).order_by(Posting.id)
        for post in session.scalars(postings):
            said = f"{post.step} by {post.worker}, token {post.token}"
            yield time.monotonic(), f"posting {post.id}: {said}"
