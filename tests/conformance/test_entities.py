"""Claims that make instances of their rows make what the ORM would have loaded."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from sqlalchemy import Engine, Integer, insert, inspect, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    composite,
    mapped_column,
    reconstructor,
)

from sqla_jobs import Arg, JobMixin, arg
from sqla_jobs._store import take
from sqla_jobs._store.claim import claim_jobs
from sqla_jobs._store.entities import instances
from sqla_jobs.models import job_tables
from tests.conformance.model_kit import created

LEASE = timedelta(minutes=1)


class Base(DeclarativeBase):
    """The application's."""


class Job(JobMixin, Base):
    """The root, with a column of the application."""

    __tablename__ = "entity_jobs"

    tenant: Mapped[str | None] = mapped_column("tenant_name")


class Send(Job, kind="send", aliases=["post"]):
    """A kind in the table of the root, with an argument and a column of its own."""

    to: Arg[str] = arg(default="")
    size: Mapped[int] = mapped_column(default=1, nullable=True)


class Import(Job, kind="import"):
    """A kind with another table."""

    __tablename__ = "entity_imports"

    path: Mapped[str] = mapped_column(default="")


class Heard(JobMixin, Base):
    """A root that is told of its loads."""

    __tablename__ = "entity_heard"
    loads: ClassVar[list[int]] = []

    @reconstructor
    def loaded(self) -> None:
        """Note the load."""
        self.loads.append(self.id)


class Paired(JobMixin, Base):
    """A root with a value of two columns."""

    __tablename__ = "entity_paired"
    pair: Mapped[tuple[int, int]] = composite(
        lambda *both: both,
        mapped_column("a", Integer, default=1),
        mapped_column("b", Integer, default=2),
    )


class Facts(JobMixin, Base):
    """A root with a value that tells its instance of changes."""

    __tablename__ = "entity_facts"
    facts: Mapped[dict[str, Any]] = mapped_column(
        MutableDict.as_mutable(JSONB), default=dict
    )


class Late(JobMixin, Base):
    """A root with a column that is loaded when asked for."""

    __tablename__ = "entity_late"
    text: Mapped[str] = mapped_column(deferred=True, default="")


class HearIt(Heard, kind="hear"):
    """A kind of it."""


class PairIt(Paired, kind="pair"):
    """A kind of it."""


class NoteIt(Facts, kind="note"):
    """A kind of it."""


class ReadIt(Late, kind="read"):
    """A kind of it."""


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session on the tables of `Job`."""
    with created(Base, engine) as session:
        yield session


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many instances each claim made itself."""
    counts = list[int]()

    def counted(*args: Any) -> list[Any]:
        found = instances(*args)
        counts.append(len(found))
        return found

    monkeypatch.setattr(take, "instances", counted)
    return counts


def claim_in(session: Session, root: type[Any]) -> list[Any]:
    """Claim as runners do."""
    return claim_jobs(
        session,
        job_tables(root),
        kinds=list(job_tables(root).kinds),
        queues=None,
        limit=9,
        lease=LEASE,
        runner_id=uuid4(),
    )


def claimed(session: Session, root: type[Any] = Job) -> list[Any]:
    """Return what a claim in a session of its own found, detached as for handlers."""
    with Session(session.get_bind()) as own:
        found = claim_in(own, root)
        own.expunge_all()
        own.commit()
    return found


def values(job: Any) -> dict[str, Any]:
    """Return what is loaded of an instance."""
    return {k: v for k, v in vars(job).items() if k != "_sa_instance_state"}


def test_instance_is_what_a_query_loads(session: Session, made: list[int]) -> None:
    """Of each class in the root's table: the same values, nothing to be flushed."""
    session.add(Send(to="a", size=7, tenant="t"))
    session.flush()
    session.execute(insert(job_tables(Job).table).values(kind="post", payload={}))
    session.commit()

    found = claimed(session)

    assert made == [2]
    assert [type(job) for job in found] == [Send, Send]
    assert [(job.to, job.size, job.tenant) for job in found] == [
        ("a", 7, "t"),
        ("", 1, None),
    ]
    for job in found:
        state = inspect(job)
        loaded = session.get(Send, job.id)
        assert values(job) == values(loaded)
        assert state.identity_key == inspect(loaded).identity_key
        assert (state.detached, state.modified, state.session) == (True, False, None)


def test_changes_of_an_instance_are_flushed(session: Session) -> None:
    """Added to a session it is as any other: what is changed is written."""
    session.add(Send(to="a"))
    session.commit()
    (job,) = claimed(session)

    session.add(job)
    job.size = 8
    assert inspect(job).modified
    session.commit()

    size = select(Job.__table__.c.size)
    assert (session.scalar(size), job.attempt) == (8, 1)


def test_rest_of_a_joined_class_is_loaded_when_asked(
    session: Session, made: list[int]
) -> None:
    """Its own table costs a handler that does not look at it nothing."""
    session.add(Import(path="p"))
    session.commit()

    (job,) = claimed(session)

    assert made == [1]
    assert inspect(job).unloaded == {"path"}
    session.add(job)
    assert job.path == "p"
    assert not session.dirty


@pytest.mark.parametrize("kind", [HearIt, PairIt, NoteIt, ReadIt])
def test_what_needs_the_orm_is_loaded_by_it(
    session: Session, made: list[int], kind: type[Any]
) -> None:
    """Where something waits for loads, or one column is not loaded with the rest."""
    session.add(kind())
    session.commit()

    (job,) = claimed(session, kind)

    assert made == []
    assert job.attempt == 1
    if kind is HearIt:
        assert job.loads == [job.id]
    if kind is PairIt:
        assert job.pair == (1, 2)
    if kind is ReadIt:
        assert inspect(job).unloaded == {"text"}
    if kind is NoteIt:
        job.facts["more"] = 1
        assert inspect(job).modified


def test_instance_the_session_holds_is_refreshed(
    session: Session, made: list[int]
) -> None:
    """It does not get a second one beside it."""
    held = Send(to="a")
    session.add(held)
    session.flush()

    (job,) = claim_in(session, Job)

    assert made == []
    assert job is held
    assert held.attempt == 1
