"""What the model has found: each with the shortest way to it."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import enqueue
from sqla_jobs.testing import ManualClock
from tests.model.shapes import START, Alpha


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
