"""``notify=False``: commits that enqueue send nothing, and runners do not listen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sqla_jobs import (
    Context,
    JobDefinitionError,
    JobMixin,
    Runner,
    enqueue_many,
    install,
    wait,
)
from sqla_jobs._store import wake
from tests.runner.harness import PATIENCE


class Base(DeclarativeBase):
    """The application's own."""


class Quiet(JobMixin, Base, notify=False):
    """The job system."""

    __tablename__ = "quiet_jobs"


class Note(Quiet, kind="quiet_note"):
    """A job that does nothing."""

    def run(self, ctx: Context) -> None:
        """Do nothing."""


class Loud(JobMixin, Base):
    """Another job system, as they are by default."""

    __tablename__ = "loud_jobs"


class LoudNote(Loud, kind="loud_note"):
    """A job of it."""


@pytest.fixture(scope="module")
def maker(engine: Engine) -> Iterator[sessionmaker[Session]]:
    """Yield a sessionmaker on a database with the tables."""
    Base.metadata.create_all(engine)
    yield install(sessionmaker(engine))
    Base.metadata.drop_all(engine)


def added(session: Session, cls: type[Any]) -> None:
    """Enqueue as applications do."""
    session.add(cls())


def bulk(session: Session, cls: type[Any]) -> None:
    """Enqueue by COPY."""
    enqueue_many(session, cls, [{}] * 150)


def raw(session: Session, cls: type[Any]) -> None:
    """Enqueue by an INSERT that `install` watches."""
    session.execute(insert(cls), [{"queue": "a"}])


@pytest.mark.parametrize("enqueue", [added, bulk, raw])
def test_commit_notifies_nobody(
    maker: sessionmaker[Session], enqueue: Callable[..., None]
) -> None:
    """Commits of such jobs need not wait for each other, as those with NOTIFY do."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        seen.append(args[2])

    found = {}
    event.listen(maker.kw["bind"], "before_cursor_execute", note)
    try:
        for cls in (LoudNote, Note):
            seen.clear()
            wake.forget_recent()
            with maker() as session:
                enqueue(session, cls)
                session.commit()
            found[cls] = ["notify" in statement for statement in seen]
    finally:
        event.remove(maker.kw["bind"], "before_cursor_execute", note)

    assert found[LoudNote][-1] is True
    assert not any(found[Note])


def test_runner_polls_and_does_not_listen(
    maker: sessionmaker[Session], engine: Engine
) -> None:
    """Jobs are found without a connection that would hear nothing."""
    runner = Runner(maker, Quiet, poll=timedelta(milliseconds=20))
    with runner:
        with maker() as session:
            session.add(note := Note())
            session.commit()
        found = wait(maker, note, timedelta(seconds=PATIENCE))
        assert runner._listener is None
    assert found.state == "completed"


def test_keyword_is_one_of_root_classes() -> None:
    """What holds for a table is said once, where the table is made, or above it."""

    class Template(JobMixin, notify=False):
        """Carries keywords for roots."""

    class Root(Template, Base):
        __tablename__ = "quiet_template_jobs"

    assert Root.__jobs__.notify is False
    with pytest.raises(JobDefinitionError, match="notify= holds for a whole job table"):

        class Wrong(Root, notify=False):
            """A subclass."""

    class Between(Root, notify=True):
        """A template below a root."""

        __abstract__ = True

    with pytest.raises(JobDefinitionError, match="Between: notify= holds"):

        class Below(Between):
            """Its job."""

    with pytest.raises(JobDefinitionError, match="notify='no' must be True or False"):

        class Odd(JobMixin, Base, notify="no"):
            """A root."""

            __tablename__ = "odd_jobs"
