"""Scenarios of one job: claims, leases, outcomes and cancel requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from sqla_jobs._core.states import JobState
from sqla_jobs._store import claim, operate, settle, sweep
from sqla_jobs._store.claim import Claim
from sqla_jobs.errors import LeaseLost
from tests.conformance.factories import LEASE, NOW, SECOND, Effect, Job, make_job
from tests.interleavings.actions import (
    HELD,
    JOBS,
    LATE,
    Verbs,
    add_effect,
    without_locks,
)
from tests.interleavings.harness import Scenario, Scene, Script, Twin

# Scripts


def work(
    session: Session, scene: Scene, held: Claim, *, checkpoint: bool, outcome: str
) -> Script:
    """Do what a handler does: its effects commit with a checkpoint and an outcome."""
    if checkpoint and not held.state:
        add_effect(session, f"step {held.token}")
        scene.verbs.checkpoint(session, held, {"step": 1}, now=NOW)
        yield
        scene.commit(session, ("checkpoint", held.token))
        yield
    add_effect(session, f"{outcome} {held.token}")
    OUTCOMES[outcome](scene.verbs, session, held)
    yield
    scene.commit(session, (outcome, held.token))


OUTCOMES: dict[str, Callable[[Any, Session, Claim], object]] = {
    "complete": lambda verbs, *held: verbs.complete(*held, now=NOW),
    "fail": lambda verbs, *held: verbs.fail(*held, "no", now=NOW),
    "snooze": lambda verbs, *held: verbs.snooze(*held, after=SECOND, now=NOW),
    "release": lambda verbs, *held: verbs.release(*held, now=NOW),
}


def holder(
    session: Session,
    scene: Scene,
    *,
    checkpoint: bool = False,
    outcome: str = "complete",
) -> Script:
    """Hold the job from the start."""
    held = scene.facts["held"]
    return work(session, scene, held, checkpoint=checkpoint, outcome=outcome)


def heir(session: Session, scene: Scene, *, checkpoint: bool = False) -> Script:
    """Rescue the job, claim it and complete it."""
    yield from sweeper(session, scene)
    yield
    yield from contender(session, scene, now=LATE, checkpoint=checkpoint)


def contender(
    session: Session, scene: Scene, *, now: Any = NOW, checkpoint: bool = False
) -> Script:
    """Claim a job if there is one, and complete it."""
    found = scene.verbs.claim(session, Job, now=now)
    yield
    scene.commit(session, *(("claim", one.token) for one in found))
    for one in found:
        yield
        yield from work(session, scene, one, checkpoint=checkpoint, outcome="complete")


def sweeper(session: Session, scene: Scene) -> Script:
    """Take back the job, whose lease has run out."""
    gone = scene.verbs.rescue(session, Job, now=LATE)
    yield
    scene.commit(session, *(("rescue", None) for _ in gone))


def canceller(session: Session, scene: Scene) -> Script:
    """Ask the job to end."""
    found = scene.verbs.cancel(session, Job, scene.facts["id"], now=NOW)
    yield
    if found.cancelled:
        scene.commit(session, ("cancel", None))
    elif found.requested:
        scene.commit(session, ("request", None))


def heart(session: Session, scene: Scene) -> Script:
    """Renew the lease as a heartbeat does."""
    held = scene.facts["held"]
    scene.verbs.renew(session, held, now=LATE)
    yield
    session.commit()  # of nothing, where another was writing the row


# What must come of it


def check(session: Session, scene: Scene) -> Iterator[str]:
    """Compare the row with what the commits make of it, one after the other."""
    model = Model(scene.facts["state"], scene.facts["token"])
    for event, token in scene.log:
        if event != "LeaseLost":
            yield from model.apply(event, token)
    (row,) = session.connection().execute(_END).all()
    for name in _COUNTED:
        if getattr(row, name) != getattr(model, name):
            yield f"{name} is {getattr(row, name)}, not {getattr(model, name)}"
    if (row.leased_until is not None) != (row.state == "running"):
        yield f"{row.state} until {row.leased_until}"
    if (row.cancel_requested_at is not None) != model.cancel_requested:
        yield "the cancel request is lost"
    notes = sorted(session.execute(_END_OF_EFFECTS).scalars())
    if notes != sorted(model.effects):
        yield f"effects are {notes}, not {model.effects}"


_COUNTED = ("state", "attempt", "crashes", "snoozes", "lease_token")
_ROW = (*_COUNTED, "leased_until", "cancel_requested_at")
_END = delete(JOBS).returning(*(JOBS.c[name] for name in _ROW))
_END_OF_EFFECTS = delete(Effect).returning(Effect.note)


class Model:
    """The job as its commits, in their order, should make it."""

    def __init__(self, state: str, token: int) -> None:
        self.state, self.lease_token, self.attempt = state, token, token
        self.crashes = self.snoozes = 0
        self.cancel_requested = False
        self.effects: list[str] = []

    def apply(self, event: str, token: int | None) -> Iterator[str]:
        """Do what *event* says; yield what is wrong with that."""
        wanted = "running" if event not in {"claim", "cancel"} else "available"
        if self.state != wanted and event != "cancel":
            yield f"{event} of a job that is {self.state}"
        if event in {"claim", "rescue"}:
            self.lease_token += 1
        if token is not None and token != self.lease_token:
            yield f"{event} by holder {token}, but {self.lease_token} holds it"
        if token is not None and event != "claim":
            name = "step" if event == "checkpoint" else event
            if name in {note.partition(" ")[0] for note in self.effects}:
                yield f"{name} happened twice"
            self.effects.append(f"{name} {token}")
        getattr(self, f"_{event}", lambda: None)()

    def _claim(self) -> None:
        self.state, self.attempt = "running", self.attempt + 1

    def _rescue(self) -> None:
        self.state = "cancelled" if self.cancel_requested else "available"
        self.crashes += 1

    def _request(self) -> None:
        self.cancel_requested = True

    def _cancel(self) -> None:
        self.state, self.cancel_requested = "cancelled", True

    def _complete(self) -> None:
        self.state = "completed"

    def _fail(self) -> None:
        self.state = "cancelled" if self.cancel_requested else "retryable"

    def _snooze(self) -> None:
        self.attempt, self.snoozes = self.attempt - 1, self.snoozes + 1
        self.state = "cancelled" if self.cancel_requested else "scheduled"

    def _release(self) -> None:
        self.attempt -= 1
        self.state = "cancelled" if self.cancel_requested else "available"


# Twins: what others do, without the fence


def by_id(session: Session, claim: Claim, *_: Any, state: str, **__: Any) -> None:
    """Settle whatever the row is now."""
    values = {"state": state, "leased_until": None}
    session.execute(update(JOBS).where(JOBS.c.id == claim.job_id).values(values))


def by_state(session: Session, claim: Claim, *_: Any, state: str, **__: Any) -> None:
    """Settle if anybody runs it."""
    held = JOBS.c.id == claim.job_id, JOBS.c.state == "running"
    values = {"state": state, "leased_until": None}
    settled = update(JOBS).where(*held).values(values).returning(JOBS.c.id)
    if session.execute(settled).first() is None:
        session.rollback()
        raise LeaseLost(claim.job_id, claim.attempt)


def look_first(session: Session, claim: Claim, *_: Any, **__: Any) -> None:
    """Check the lease without a lock, as the checkpoint of a state."""
    held = JOBS.c.id == claim.job_id, JOBS.c.lease_token == claim.token
    running = JOBS.c.state == JobState.RUNNING
    if session.execute(select(JOBS.c.id).where(*held, running)).first() is None:
        session.rollback()
        raise LeaseLost(claim.job_id, claim.attempt)


def deaf_fail(session: Session, claim: Claim, *_: Any, **__: Any) -> None:
    """Put the job back, though a cancel was requested."""
    held = JOBS.c.id == claim.job_id, JOBS.c.lease_token == claim.token
    running = JOBS.c.state == "running"
    values = {"state": "retryable", "leased_until": None}
    settled = update(JOBS).where(*held, running).values(values).returning(JOBS.c.id)
    if session.execute(settled).first() is None:
        session.rollback()
        raise LeaseLost(claim.job_id, claim.attempt)


def renew_by_id(session: Session, claim: Claim, *, now: Any) -> None:
    """Renew whatever the row is now."""
    values = {"leased_until": now + LEASE}
    session.execute(update(JOBS).where(JOBS.c.id == claim.job_id).values(values))


# The scenarios


def one_job(session: Session, scene: Scene, *, held: bool = True) -> None:
    """Make the job, and let the first holder have it."""
    scene.facts["state"] = state = "running" if held else "available"
    scene.facts["id"] = job_id = make_job(session, state=state)
    scene.facts["held"] = replace(HELD, job_id=job_id)
    scene.facts["token"] = int(held)


def scenario(scripts: Any, *, held: bool = True, **twins: Twin) -> Scenario:
    """Return a scenario of one job."""
    prepare = partial(one_job, held=held)
    return Scenario(prepare, scripts, check, Verbs(), twins)


def unfenced(**broken: Any) -> Twin:
    """Return a twin with other verbs."""
    return Twin(verbs=broken)


BY_ID = unfenced(complete=partial(by_id, state="completed"))
BY_STATE = unfenced(complete=partial(by_state, state="completed"))
UNLOCKED_RESCUE = without_locks(sweep, "_rescuing")
UNLOCKED_SETTLE = without_locks(settle, "_settling")

LEASES: dict[str, Scenario] = {
    "two holders": scenario(
        {"holder": partial(holder, checkpoint=True), "heir": heir},
        by_id=BY_ID,
        by_state=BY_STATE,
        unlocked_rescue=UNLOCKED_RESCUE,
        unlocked_checkpoint=unfenced(checkpoint=look_first),
    ),
    "two holders with checkpoints": scenario(
        {
            "holder": partial(holder, checkpoint=True),
            "heir": partial(heir, checkpoint=True),
        },
        by_state=BY_STATE,
        unlocked_checkpoint=unfenced(checkpoint=look_first),
    ),
    "holder, heir and cancel": scenario(
        {"holder": holder, "heir": heir, "cancel": canceller},
        unlocked_cancel=without_locks(operate, "_cancelling_by"),
    ),
    "two contenders and cancel": scenario(
        {"one": contender, "two": contender, "cancel": canceller},
        held=False,
        unlocked_claim=without_locks(claim, "_flagged"),
    ),
    "heartbeat, checkpoint and rescue": scenario(
        {
            "holder": partial(holder, checkpoint=True),
            "heart": heart,
            "sweeper": sweeper,
        },
        by_id=BY_ID,
        unlocked_rescue=UNLOCKED_RESCUE,
        renewal_by_id=unfenced(renew=renew_by_id),
    ),
    **{
        f"{outcome}, rescue and cancel": scenario(
            {
                "holder": partial(holder, outcome=outcome),
                "sweeper": sweeper,
                "cancel": canceller,
            },
            unlocked_rescue=UNLOCKED_RESCUE,
            # One job that completes is settled by a single UPDATE, which needs no lock.
            unfenced_settle=BY_ID if outcome == "complete" else UNLOCKED_SETTLE,
        )
        for outcome in OUTCOMES
    },
    "failure and cancel": scenario(
        {"holder": partial(holder, outcome="fail"), "cancel": canceller},
        deaf=unfenced(fail=deaf_fail),
    ),
}
