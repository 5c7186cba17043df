"""The kind raw: jobs without a class, which whoever claims them knows how to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_jobs import Arg, JobMixin, Runner, arg, claim, complete, constant, fail
from sqla_jobs._store.enqueue_kind import known_kinds, make_job
from sqla_jobs._store.held import find_claim
from sqla_jobs._store.retention import apply_retention
from sqla_jobs.errors import (
    JobDefinitionError,
    JobValueError,
    LeaseLost,
    PayloadError,
)


class Base(DeclarativeBase):
    """Of these tests."""


class Job(JobMixin, Base):
    """The job table."""

    __tablename__ = "raw_kind_jobs"


class Pay(Job, kind="pay", aliases=["old_pay"]):
    """A kind with an argument, and columns that JSON cannot tell as they are."""

    day: Arg[date]
    note: Arg[str] = arg(default="")
    amount: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))

    def run(self, ctx: Any) -> None:
        """Do nothing."""


@pytest.fixture(scope="module")
def maker(engine: Engine) -> Iterator[sessionmaker[Session]]:
    """Yield a sessionmaker; the tables are there."""
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    Base.metadata.drop_all(engine)


@pytest.fixture
def session(maker: sessionmaker[Session]) -> Iterator[Session]:
    """Yield a session without jobs."""
    with maker() as session:
        session.query(Job).delete()
        session.commit()
        yield session


@pytest.mark.parametrize("keywords", [{"kind": "raw"}, {"aliases": ["raw"]}])
def test_no_class_may_be_raw(keywords: dict[str, Any]) -> None:
    """The kind is reserved, also as an alias, so that no runner ever handles it."""
    with pytest.raises(
        JobDefinitionError, match="'raw' is that of jobs without a class"
    ):
        type("Mine", (Job,), {"__module__": __name__}, **keywords)
    with pytest.raises(JobDefinitionError, match="give it another kind="):
        type("Raw", (Job,), {"__module__": __name__})


def test_raw_job_is_a_row_of_the_root_class(session: Session) -> None:
    """It is added, claimed and completed like any other, and loads as the root."""
    job = make_job(Job, "raw", {"any": ["thing"]}, queue="q", priority=3)
    session.add(job)
    session.commit()

    [claimed] = claim(session, Job, kinds=["raw"])
    complete(session, claimed)
    session.commit()

    assert type(job) is Job
    assert (job.kind, job.queue, job.priority) == ("raw", "q", 3)
    assert (job.payload, job.state) == ({"any": ["thing"]}, "completed")


def test_root_itself_still_has_no_constructor() -> None:
    """A raw job is made on purpose only."""
    with pytest.raises(TypeError, match="is no kind of job"):
        Job(queue="q")


def test_mapped_kind_gets_its_types(session: Session) -> None:
    """Arguments and own columns are read from JSON, by name or by an old kind."""
    payload = {"day": "2026-01-31", "amount": "12.50"}
    for kind in ("pay", "old_pay"):
        job = make_job(Job, kind, payload, delay=timedelta(hours=1))
        session.add(job)
        session.flush()
        assert (job.kind, job.day, job.note) == ("pay", date(2026, 1, 31), "")
        assert job.amount == Decimal("12.50")
        assert job.state == "scheduled"


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({}, "Pay.day is missing"),
        ({"day": 7}, "Pay.day is not date as JSON"),
        ({"day": "2026-01-31", "amount": [1]}, "Pay.amount is not"),
        ({"day": "2026-01-31", "noet": ""}, "unknown argument 'noet'; did you mean"),
        ({"day": "x", "note": 1}, "Pay.day is not .*; Pay.note is not str"),
        ({"day": "2026-01-31", "note": "\0"}, "NUL"),
    ],
)
def test_wrong_payload_names_each_argument(
    payload: dict[str, Any], problem: str
) -> None:
    """All that is wrong is in one error."""
    with pytest.raises(PayloadError, match=problem):
        make_job(Job, "pay", payload)


def test_unknown_kind_lists_the_known() -> None:
    """A typo is an error, not a job that nobody runs."""
    assert known_kinds(Job.__jobs__) == ["raw", "pay"]
    with pytest.raises(
        JobValueError, match=r"'pya'; did you mean .* \(known: raw, pay"
    ):
        make_job(Job, "pya", {})


@pytest.mark.parametrize(
    "options",
    [{"queue": ""}, {"max_attempts": 0}, {"run_at": datetime(2026, 1, 1)}],  # noqa: DTZ001
)
def test_options_of_raw_jobs_are_checked(options: dict[str, Any]) -> None:
    """They are those of the constructor."""
    with pytest.raises(JobValueError):
        make_job(Job, "raw", {}, **options)
    with pytest.raises(TypeError, match="qeue"):
        make_job(Job, "raw", {}, qeue="q")


def test_runner_leaves_raw_jobs_alone(
    maker: sessionmaker[Session], session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """They stay for those who do them, and no warning says that nobody maps them."""
    raw, mine = make_job(Job, "raw", {}), Pay(day=date(2026, 1, 31))
    session.add_all([raw, mine])
    session.commit()

    Runner(maker, Job).run_until_idle()

    session.expire_all()
    assert (raw.state, mine.state) == ("available", "completed")
    assert "nobody here maps" not in caplog.text


def test_raw_jobs_have_the_roots_retention(session: Session) -> None:
    """Old ones are deleted, though no class says when."""
    raw = make_job(Job, "raw", {})
    session.add(raw)
    session.flush()
    raw.state, raw.finished_at = "completed", datetime.now(UTC) - timedelta(days=2)
    session.flush()

    assert apply_retention(session, Job.__jobs__) == 1


def test_claim_is_found_by_its_proof(session: Session) -> None:
    """The holder is whoever knows the token of a running job, and nobody else."""
    session.add(make_job(Job, "raw", {"a": 1}, payload_bytes=b"\0"))
    session.flush()
    [claimed] = claim(session, Job)
    session.commit()

    found = find_claim(session, Job.__jobs__, claimed.job_id, claimed.token)

    assert found == claimed
    assert find_claim(session, Job.__jobs__, claimed.job_id + 1, claimed.token) is None
    with pytest.raises(LeaseLost):
        find_claim(session, Job.__jobs__, claimed.job_id, claimed.token + 1)
    complete(session, claimed)
    with pytest.raises(LeaseLost):
        find_claim(session, Job.__jobs__, claimed.job_id, claimed.token)


def test_queues_backoff_reaches_a_claim_that_was_found(session: Session) -> None:
    """A failure waits as the queue says, also when the claim was read by its token."""
    session.add(Job.Queue(name="q", backoff=constant(timedelta(hours=1)).spec()))
    session.add(make_job(Job, "raw", {}, queue="q"))
    session.flush()
    [claimed] = claim(session, Job)
    found = find_claim(session, Job.__jobs__, claimed.job_id, claimed.token)
    assert found is not None

    fail(session, found, "no")

    job = session.get(Job, claimed.job_id)
    assert job is not None
    session.refresh(job)
    assert job.run_at - datetime.now(UTC) > timedelta(minutes=55)
    session.rollback()
