"""Ordered jobs have their ids in the order of `session.add`, on each driver."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from tests.conformance.enqueue_kit import in_schema, schema_for
from tests.conformance.ordered_kit import Base, Job, Report, Send, Step


@pytest.fixture(scope="module")
def schema(engine: Engine) -> Iterator[str]:
    """Yield the schema of this module's tables."""
    with schema_for(Base, engine) as name:
        yield name


@pytest.fixture
def session(engine: Engine, schema: str) -> Iterator[Session]:
    """Yield a session that is rolled back."""
    with Session(in_schema(engine, schema)) as session:
        yield session


def test_jobs_of_all_shapes_keep_the_order_of_add(session: Session) -> None:
    """Kinds, columns and tables make no difference; other jobs may be moved."""
    makers: list[Callable[[int], Any]] = [
        lambda n: Step(number=n, channel="a"),
        lambda n: Step(number=n, channel="b", delay=timedelta(hours=1)),
        lambda n: Send(number=n, channel="a", ordered=True, tags=["x"]),
        lambda n: Report(channel="a", title="x"),
        lambda n: Report(channel="b", priority=n, title=None),
        lambda n: Send(number=n, channel="a"),
    ]
    rand = random.Random(1)
    jobs = [rand.choice(makers)(n) for n in range(60)]
    session.add_all(jobs)
    session.flush()

    ids = [job.id for job in jobs if "ordered" in vars(job)]
    assert len(ids) > 40
    assert ids == sorted(ids)


def test_jobs_of_one_shape_keep_the_order_of_add(session: Session) -> None:
    """Also over several statements of 1,000 rows, in which the server gives the ids."""
    jobs = [Step(number=n, channel=str(n % 7)) for n in range(1_500)]
    session.add_all(jobs)
    session.flush()

    found = session.execute(select(Job.id, Step.number).order_by(Job.id)).all()
    assert [row.number for row in found] == list(range(1_500))
    assert [row.id for row in found] == [job.id for job in jobs]


def test_expunged_jobs_leave_no_gap_for_later_ones(session: Session) -> None:
    """What was added last comes last, also when others were taken out before."""
    for _ in range(20):
        jobs = [Step(number=n) for n in range(6)]
        session.add_all(jobs[:5])
        for job in jobs[:4]:
            session.expunge(job)
        session.add_all([jobs[5], *jobs[:4]])
        session.flush()

        ids = [jobs[number].id for number in (4, 5, 0, 1, 2, 3)]
        assert ids == sorted(ids)
