"""What the model has found: each with the shortest way to it."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import cancel, claim, enqueue
from sqla_jobs.testing import ManualClock
from tests.model.shapes import START, Alpha, Job


def test_replaced_job_ends_by_the_clock_of_the_test(model_engine: Engine) -> None:
    """A job that makes room ends when the session's clock says, not the database's."""
    with Session(model_engine) as session:
        ManualClock(session).set(START)
        old, new = Alpha(unique_key="a"), Alpha(unique_key="a")
        session.add(old)
        session.flush()

        assert enqueue(session, new, on_conflict="replace").created

        session.refresh(old)
        assert (old.state, old.finished_at) == ("cancelled", START)


def test_claim_goes_once_round_the_ordered_channels(model_engine: Engine) -> None:
    """Where the last one ended within them, it also finds what is before that."""
    with Session(model_engine) as session:
        jobs = [
            Alpha(queue="mail", channel=channel, ordered=True)
            for channel in ("a", "b", "a")
        ]
        session.add_all(jobs)
        session.flush()
        (first,) = claim(session, Job, limit=1)
        cancel(session, first)

        second, third = claim(session, Job, limit=2)

        assert first.job_id == jobs[0].id
        assert {second.job_id, third.job_id} == {jobs[1].id, jobs[2].id}
