"""The helpers run batch handlers, as batches of one, and ask for permits."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import Arg, BatchContext, Complete, Discard, JobMixin, JobValueError, arg
from sqla_jobs.testing import drain, perform, run_one


class Base(DeclarativeBase):
    """The application's own."""


class Job(JobMixin, Base):
    """The job system."""

    __tablename__ = "batch_helper_jobs"


class Note(Base):
    """What a job writes."""

    __tablename__ = "batch_helper_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Many(Job, kind="many"):
    """A job with a batch handler."""

    n: Arg[int] = arg(default=0)
    commits: Arg[bool] = arg(default=False)

    @classmethod
    def run_many(cls, jobs: list[Many], ctx: BatchContext) -> Any:
        """Write a note for each, and return their numbers."""
        for job in jobs:
            ctx.session.add(Note(text=f"{len(jobs)} with {job.n}"))
            if job.commits:
                ctx.session.commit()
        bad = [job for job in jobs if job.n < 0]
        return {job: job.n for job in jobs} | {job: Discard("negative") for job in bad}


class Alone(Job, kind="alone"):
    """A batch handler that needs no session."""

    @classmethod
    def run_many(cls, jobs: list[Alone], ctx: BatchContext) -> Any:
        """Return the resources."""
        return {jobs[0].id: ctx.resources}


class Asks(Job, kind="asks"):
    """A job that asks for a permit."""

    granted: Arg[bool]

    def acquire(self) -> bool:
        """Grant it or not."""
        return self.granted

    def run(self, ctx: Any) -> None:
        """Do nothing."""


@pytest.fixture
def session(engine: Engine) -> Any:
    """Yield a session in a transaction that is rolled back."""
    with engine.connect() as connection, connection.begin() as outer:
        Base.metadata.create_all(connection)
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        outer.rollback()


def notes(session: Session) -> list[str]:
    """Return what was written."""
    return list(session.scalars(select(Note.text).order_by(Note.id)))


def test_drain_runs_batches_of_one(session: Session) -> None:
    """Each job is a batch, with the outcome that the mapping gives it."""
    session.add_all([Many(n=1), Many(n=2), Many(n=-1)])

    assert drain(session, Job) == {"completed": 2, "discarded": 1}
    assert notes(session) == ["1 with 1", "1 with 2", "1 with -1"]
    results = session.scalars(select(Many.result).order_by(Many.id)).all()
    assert results == [1, 2, None]


def test_commit_in_a_batch_is_refused_in_a_test_too(session: Session) -> None:
    """What a runner refuses fails the test, and nothing stays written."""
    job = Many(commits=True)
    session.add(job)

    with pytest.raises(JobValueError, match=r"run_many\(\) may not commit"):
        run_one(session, job)

    assert (job.state, notes(session)) == ("retryable", [])


def test_perform_returns_the_outcome_of_the_one_job(session: Session) -> None:
    """With a session and without one."""
    outcome = perform(Many(n=3), session=session)

    assert isinstance(outcome, Complete)
    assert outcome.result == 3
    assert notes(session) == ["1 with 3"]
    job = Alone()
    job.id = 5
    assert perform(job, resources="shared").result == "shared"


def test_permits_are_asked_for(session: Session) -> None:
    """A job that is refused does not run."""
    session.add_all([Asks(granted=True), Asks(granted=False)])

    assert drain(session, Job) == {"completed": 1, "scheduled": 1}
