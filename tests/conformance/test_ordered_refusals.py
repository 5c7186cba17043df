"""Ordered jobs where their order could not be kept: clear errors, nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    func,
    insert,
    literal,
    select,
    true,
)
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    JobValueError,
    enqueue_many,
    enqueue_select,
    install,
)
from tests.conformance.enqueue_kit import in_schema, schema_for
from tests.conformance.ordered_kit import Base, Job, Report, Send, Step


@pytest.fixture(scope="module")
def schema(engine: Engine) -> Iterator[str]:
    """Yield the schema of this module's tables."""
    with schema_for(Base, engine) as name:
        yield name


@pytest.fixture
def db(engine: Engine, schema: str) -> Iterator[Engine]:
    """Yield an engine on empty tables."""
    own: Engine = in_schema(engine, schema)
    yield own
    with own.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def sessions(db: Engine) -> sessionmaker[Session]:
    """Return a maker of sessions that may commit."""
    return sessionmaker(db)


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """Yield a session."""
    with sessions() as session:
        yield session


# What is refused


def test_ordered_is_of_the_class_or_of_the_job(session: Session) -> None:
    """The keyword of the job wins."""
    jobs = [Send(), Send(ordered=True), Step(), Step(ordered=False)]
    session.add_all(jobs)
    session.flush()
    session.expire_all()

    assert [job.ordered for job in jobs] == [False, True, True, False]


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_ordered_must_be_true_or_false(session: Session, value: Any) -> None:
    """A wrong value is an error when it is given, or at the flush."""
    with pytest.raises(JobValueError, match=r"ordered=.* must be True or False"):
        Send(ordered=value)
    job = Send()
    job.ordered = value
    session.add(job)
    with pytest.raises(JobValueError, match=r"Send.ordered = .* must be True or False"):
        session.flush()


@pytest.mark.parametrize(
    ("name", "value"), [("queue", func.lower("A")), ("ordered", true())]
)
def test_expression_for_a_channel_is_refused(
    session: Session, name: str, value: Any
) -> None:
    """A channel that only the database knows cannot be waited for."""
    job = Step(channel="a")
    setattr(job, name, value)
    session.add(job)

    with pytest.raises(JobValueError, match=rf"Step.{name} is an SQL expression"):
        session.flush()


def test_autocommit_is_refused(db: Engine) -> None:
    """A lock that ends with its statement keeps no order."""
    loose = sessionmaker(db.execution_options(isolation_level="AUTOCOMMIT"))
    with loose() as session:
        session.add(Step())
        with pytest.raises(JobValueError, match="ordered jobs need a transaction"):
            session.flush()


@pytest.mark.parametrize(
    ("cls", "row"), [(Step, {}), (Send, {"ordered": True}), (Report, {})]
)
def test_bulk_refuses_ordered_jobs(
    session: Session, cls: type[Job], row: dict[str, Any]
) -> None:
    """It says why and what to use, at the first such row, before it is written."""
    message = rf"row 0: enqueue_many\({cls.__name__}\) takes no ordered jobs.*add_all"
    with pytest.raises(JobValueError, match=message):
        enqueue_many(session, cls, [row] * 200)

    assert enqueue_many(session, cls, [{**row, "ordered": False}]) == 1
    assert session.scalar(select(func.count(Job.id))) == 1


@pytest.mark.parametrize(
    ("cls", "row"),
    [(Step, {}), (Send, {"ordered": True}), (Send, {"ordered": literal(True)})],
)
def test_query_refuses_ordered_jobs(
    session: Session, cls: type[Job], row: dict[str, Any]
) -> None:
    """The rows of one INSERT have no order to keep."""
    rows = select(func.generate_series(1, 3).table_valued("n"))
    message = rf"enqueue_select\({cls.__name__}\) takes no ordered jobs.*add_all"
    with pytest.raises(JobValueError, match=message):
        enqueue_select(session, cls, rows, row)

    assert enqueue_select(session, cls, rows, {"ordered": False}) == 3


TABLE: Any = Job.__table__
RAW = {"kind": "send", "ordered": True}


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        (insert(Send), [{"ordered": False}, {"ordered": True}]),
        (insert(Send), {"ordered": True}),
        (insert(Send).values(ordered=True), None),
        (insert(Send).values([RAW, {**RAW, "ordered": False}]), None),
        (insert(Send).values(ordered=true()), None),
        (insert(TABLE).values(RAW), None),
        (insert(TABLE), [RAW]),
        (
            insert(TABLE).from_select(
                ["kind", "ordered"], select(literal("send"), true())
            ),
            None,
        ),
    ],
    ids=str,
)
def test_raw_insert_of_ordered_jobs_is_refused(
    db: Engine, statement: Any, rows: Any
) -> None:
    """It takes no lock, so it might overtake; with `install` it is an error."""
    made: Any = install(sessionmaker(db, class_=type("Installed", (Session,), {})))
    with made() as session:
        with pytest.raises(JobValueError, match="takes no ordered jobs"):
            session.execute(statement, rows)
        assert session.scalar(select(func.count(Job.id))) == 0


def test_raw_insert_of_others_is_not_refused(db: Engine) -> None:
    """What says that it is not ordered passes."""
    made: Any = install(sessionmaker(db, class_=type("Installed", (Session,), {})))
    with made() as session:
        session.execute(insert(Send), [{"ordered": False}, {"ordered": False}])
        session.execute(insert(Send).values(kind="send", ordered=False))
        session.execute(insert(TABLE).values({**RAW, "ordered": False}))

        assert session.scalar(select(func.count(Job.id))) == 4
