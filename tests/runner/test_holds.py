"""Held jobs beside a runner: it waits for the owner, and ends what is given up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sqla_jobs import abort_hold, confirm_hold
from tests.runner.harness import Kit, Task

HOUR = timedelta(hours=1)
POLL = timedelta(minutes=5)  # beyond a test's patience: nothing here waits for it


def note_runs(kit: Kit) -> list[int]:
    """Make a handler that notes what ran, and return the notes."""
    ran: list[int] = []

    async def handler(job: Any, ctx: Any) -> None:
        ran.append(job.n)

    kit.handle(handler)
    return ran


@pytest.mark.wakes
def test_confirmed_job_runs_at_once(kit: Kit) -> None:
    """The commit of the confirmation wakes the runner; nothing ran before."""
    ran = note_runs(kit)
    (job,) = kit.add(Task(n=1, hold_for=HOUR))
    kit.run(poll=POLL)
    (other,) = kit.add(Task(n=2))
    kit.until_state(other, "completed")
    assert kit.job(job).state == "held"

    with kit.Session.begin() as session:
        confirm_hold(session, Task, job)

    kit.until_state(job, "completed")
    assert ran == [2, 1]


def test_expired_hold_is_cancelled_when_it_is_over(kit: Kit) -> None:
    """The runner wakes for it by itself, and the job never runs."""
    ran = note_runs(kit)
    (job,) = kit.add(Task(hold_for=timedelta(seconds=0.5)))
    kit.run(poll=POLL)

    assert kit.until_state(job, "cancelled", "completed").reason == "hold expired"
    assert ran == []


@pytest.mark.wakes
def test_next_of_an_ordered_channel_runs_when_the_hold_ends(kit: Kit) -> None:
    """A held job has its place; confirmed, expired or aborted, it lets others go."""
    ran = note_runs(kit)
    confirmed, _expired, aborted, last = kit.add(
        Task(n=1, ordered=True, hold_for=HOUR),
        Task(n=2, ordered=True, hold_for=timedelta(seconds=0.5)),
        Task(n=3, ordered=True, hold_for=HOUR),
        Task(n=4, ordered=True),
    )
    kit.run(poll=POLL)
    (other,) = kit.add(Task(n=0))
    kit.until_state(other, "completed")
    with kit.Session.begin() as session:
        confirm_hold(session, Task, confirmed)
    kit.until_state(confirmed, "completed")
    assert kit.job(last).state == "available"
    with kit.Session.begin() as session:
        abort_hold(session, Task, aborted)

    kit.until_state(last, "completed")
    assert ran == [0, 1, 4]
